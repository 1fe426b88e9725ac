"""The training loss of masked language models, on held-out text.

BERT's masking (Devlin et al., "BERT", 2019, section 3.1): a fraction of the tokens is drawn, and replaced by
the mask token (0.8), a random token (0.1) or itself (0.1). They are drawn uniformly, not with the weights
that training may use, since these depend on the training text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le

from stlm_kd.artifacts.results import ExampleScore, Score, SuiteResult
from stlm_kd.data.batch import IGNORED
from stlm_kd.data.masking import even_masking
from stlm_kd.errors import DataError
from stlm_kd.eval.language_modeling.likelihood import ratio_stderr
from stlm_kd.eval.language_modeling.masked_windows import (
    Found,
    MaskedRow,
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

SUITE = "masked-loss"


@register_suite(SUITE, tasks=["mlm"], longest_window=MASKED_WINDOW)
def masked_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    /,
    *,
    share: Annotated[float, Gt(0), Le(1)] = 0.15,
    seed: Annotated[int, Ge(0)] = 0,
    window: Annotated[int, Gt(2)] | None = None,
    batch_size: Annotated[int, Gt(0)] = 16,
    precision: Precision = "fp32",
) -> SuiteResult:
    """Loss and accuracy on masked tokens of the held-out text.

    Args:
        model: A masked language model.
        tokenizer: Its tokenizer.
        documents: The text.
        share: Fraction of the non-special tokens to mask, drawn uniformly. Models with the same tokenizer and
            window share the masks.
        seed: Random seed.
        window: Positions per row, including start and end; default: 128, or ``data.context`` or the models'
            positions if fewer.
        batch_size: Rows per forward pass.
        precision: ``bf16`` runs the model under autocast.

    Raises:
        DataError: No text to score, or only special tokens.
        ModelError: A causal model, a tokenizer without mask, start or end token, or a window beyond the
            model's positions.
    """
    text = windowed_text(model, tokenizer, documents, window=window, suite=SUITE)
    rows, candidates = corrupted_rows(text, tokenizer, share=share, seed=seed)
    if not candidates:
        raise DataError(f"{SUITE}: the tokenizer finds only special tokens in the text")
    masked = {index: row for index, row in enumerate(rows) if row.places}
    longest_first = sorted(masked, key=lambda index: -len(masked[index].ids))
    found = find_tokens(
        model,
        (masked[index] for index in longest_first),
        batch_size=batch_size,
        precision=precision,
        suite=SUITE,
    )
    by_index = dict(zip(longest_first, found, strict=True))
    counted = {index: (by_index[index], len(row.places)) for index, row in masked.items()}
    degenerate = degenerate_tokens(found, [target for row in masked.values() for target in row.targets])
    return _result(text, counted, candidates, share=share, seed=seed, degenerate=degenerate)


def _result(
    text: WindowedText,
    counted: Mapping[int, tuple[Found, int]],
    candidates: int,
    *,
    share: float,
    seed: int,
    degenerate: str | None,
) -> SuiteResult:
    """Loss and accuracy with standard errors over the windows, and the loss of every window.

    ``counted``: the predictions and the number of masked tokens of each window that has some, by its index.
    """
    counts = [count for _, count in counted.values()]
    nats, right = ([getattr(one, name) for one, _ in counted.values()] for name in ("nats", "right"))
    unknown = text.unknown(text.windows)
    unknown_note = f"{unknown} tokens of the text are unknown to the tokenizer and never masked"
    return SuiteResult(
        SUITE,
        masked_scores(nats, right, counts, degenerate),
        tuple(
            ExampleScore("text", str(index), "masked_loss", found.nats / count)
            for index, (found, count) in counted.items()
        ),
        (unknown_note,) if unknown else (),
        {
            "nats": math.fsum(nats),
            "masked_tokens": sum(counts),
            "by_window": {"masked": [*counts], "right": right},
            "tokens": candidates,
            "scored_windows": len(counted),
            "windows": len(text.windows),
            "documents": text.documents,
            "unknown_tokens": unknown,
            "window": text.window,
            "bytes_kept": text.bytes_kept,
            "share": share,
            "seed": seed,
        },
        texts={"text": {str(index): text.windows[index].text for index in counted}},
    )


def masked_scores(
    nats: Sequence[float], right: Sequence[int], counts: Sequence[int], degenerate: str | None
) -> tuple[Score, Score]:
    """Loss and accuracy from each window's loss, tokens predicted right, and masked tokens."""
    score = partial(Score, "text", examples=len(counts), degenerate=degenerate)
    losses, accuracies = (
        ratio_stderr(list(zip(map(float, values), counts, strict=True))) for values in (nats, right)
    )
    return (
        score("masked_loss", math.fsum(nats) / sum(counts), losses, higher_is_better=False),
        score("masked_accuracy", sum(right) / sum(counts), accuracies),
    )


def corrupted_rows(
    text: WindowedText, tokenizer: PreTrainedTokenizerFast, *, share: float, seed: int
) -> tuple[list[MaskedRow], int]:
    """Each window with masking applied and the masked tokens as targets; and the number of candidates.

    The fraction (rounded up) is drawn from all non-special tokens of the text together.
    """
    ids = np.concatenate([np.array(window.ids, np.int64) for window in text.windows])
    candidates = ~np.isin(ids, [*text.ends, *tokenizer.all_special_ids])
    masking = even_masking(tokenizer, share=share)
    seen, labels = masking.apply(ids, candidates, np.random.default_rng(seed))
    cuts = np.cumsum([len(window.ids) for window in text.windows])[:-1]
    rows = []
    for seen_T, label_T in zip(np.split(seen, cuts), np.split(labels, cuts), strict=True):
        places = np.flatnonzero(label_T != IGNORED)
        rows.append(MaskedRow(seen_T.tolist(), places.tolist(), label_T[places].tolist()))
    return rows, int(candidates.sum())
