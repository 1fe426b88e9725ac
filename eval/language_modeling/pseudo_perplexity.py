"""Pseudo-perplexity under a masked language model: each token is predicted from all others around it.

Each scored token is masked, alone, and predicted from both sides; the log-probabilities are summed (Salazar
et al., "Masked Language Model Scoring", ACL 2020, section 2). The sum is not a probability of the text, so
these scores compare masked language models with each other, not with causal ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt

from stlm_kd.artifacts.results import Json, SuiteResult
from stlm_kd.eval.language_modeling.likelihood import ScoredText, likelihood_result
from stlm_kd.eval.language_modeling.masked_windows import (
    MaskedRow,
    TextWindow,
    WindowedText,
    degenerate_tokens,
    find_tokens,
    windowed_text,
)
from stlm_kd.eval.runner import MASKED_WINDOW, Precision
from stlm_kd.eval.suite import register_suite
from stlm_kd.lazy import np

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SUITE = "pseudo-perplexity"


@register_suite(SUITE, tasks=["mlm"], longest_window=MASKED_WINDOW)
def pseudo_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    /,
    *,
    window: Annotated[int, Gt(2)] | None = None,
    tokens: Annotated[int, Gt(0)] | None = 4096,
    seed: Annotated[int, Ge(0)] = 0,
    batch_size: Annotated[int, Gt(0)] = 64,
    precision: Precision = "fp32",
) -> SuiteResult:
    """Pseudo-perplexity and pseudo-bits per byte of windows drawn from the text.

    Draws whole windows, so that nats, tokens and bytes refer to the same text.

    Args:
        model: A masked language model.
        tokenizer: Its tokenizer.
        documents: The held-out text.
        window: Positions per row, including start and end; default: 128, or ``data.context`` or the models'
            positions if fewer.
        tokens: Approximate number of scored tokens, in whole windows drawn from the entire text, since each
            token costs a row; null: all. Models with the same tokenizer and window share the windows.
        seed: Random seed.
        batch_size: Rows per forward pass.
        precision: ``bf16`` runs the model under autocast.

    Raises:
        DataError: No text to score.
        ModelError: A causal model, a tokenizer without mask, start or end token, or a window beyond the
            model's positions.
    """
    text = windowed_text(model, tokenizer, documents, window=window, suite=SUITE)
    drawn = draw_windows(text.windows, tokens=tokens, seed=seed)
    longest_first = sorted(drawn, key=lambda index: -text.windows[index].tokens)
    rows = (row for index in longest_first for row in _masked_rows(text.windows[index], text.mask_id))
    found = find_tokens(model, rows, batch_size=batch_size, precision=precision, suite=SUITE)
    remaining = iter(found)
    pieces: dict[int, ScoredText] = {}
    for index in longest_first:
        piece = text.windows[index]
        nats = math.fsum(next(remaining).nats for _ in range(piece.tokens))
        pieces[index] = ScoredText(nats, piece.tokens, piece.bytes)
    pieces = {index: pieces[index] for index in drawn}
    targets = [token for index in drawn for token in text.windows[index].ids[1:-1]]
    return _result(text, pieces, seed, degenerate_tokens(found, targets))


def _result(
    text: WindowedText, pieces: Mapping[int, ScoredText], seed: int, degenerate: str | None
) -> SuiteResult:
    """Both scores, and the bits per byte of every scored window, by its index."""
    unknown = text.unknown(text.windows[index] for index in pieces)
    tokens = sum(piece.tokens for piece in text.windows)
    scored_tokens = sum(piece.tokens for piece in pieces.values())
    notes = [f"{SUITE}: windows of {text.window} tokens"]
    if len(pieces) < len(text.windows):
        notes.insert(
            0,
            f"pseudo-perplexity of {scored_tokens} of {tokens} tokens: {len(pieces)} of "
            f"{len(text.windows)} windows, drawn at random",
        )
    nats: dict[int, list[Json]] = {}
    sizes: dict[int, list[Json]] = {}
    for index, piece in pieces.items():
        document = text.windows[index].document
        nats.setdefault(document, []).append(piece.nats)
        sizes.setdefault(document, []).append(piece.bytes)
    result = likelihood_result(
        SUITE,
        pieces,
        prefix="pseudo_",
        unknown=unknown,
        bytes_kept=text.bytes_kept,
        degenerate=degenerate,
        notes=notes,
        report={
            "nats": math.fsum(piece.nats for piece in pieces.values()),
            "scored_tokens": scored_tokens,
            "tokens": tokens,
            "scored_bytes": sum(piece.bytes for piece in pieces.values()),
            "bytes": sum(each.bytes for each in text.windows),
            "scored_windows": len(pieces),
            "windows": len(text.windows),
            "documents": text.documents,
            "unknown_tokens": unknown,
            "window": text.window,
            "bytes_kept": text.bytes_kept,
            "seed": seed,
            "blocks": {"nats": [*nats.values()], "bytes": [*sizes.values()]},
        },
    )
    return replace(result, texts={"text": {str(index): text.windows[index].text for index in pieces}})


def draw_windows(windows: Sequence[TextWindow], *, tokens: int | None, seed: int) -> tuple[int, ...]:
    """Indices of windows, in order: drawn until they have ``tokens`` tokens; None: all.

    The window that reaches the number is included; excluding it would under-sample long windows. A larger
    number includes the windows of a smaller one.
    """
    if tokens is None:
        return tuple(range(len(windows)))
    drawn: list[int] = []
    num_tokens = num_bytes = 0
    for index in np.random.default_rng(seed).permutation(len(windows)).tolist():
        if num_tokens >= tokens and num_bytes:
            break
        drawn.append(index)
        num_tokens += windows[index].tokens
        num_bytes += windows[index].bytes
    return tuple(sorted(drawn))


def _masked_rows(window: TextWindow, mask_id: int) -> Iterator[MaskedRow]:
    """One row for each token, with only that token masked."""
    for place in range(1, len(window.ids) - 1):
        seen = (*window.ids[:place], mask_id, *window.ids[place + 1 :])
        yield MaskedRow(seen, (place,), (window.ids[place],))
