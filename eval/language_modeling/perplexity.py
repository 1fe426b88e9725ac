"""Bits per byte and perplexity of text, with each token scored exactly once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from annotated_types import Gt

from stlm_kd.artifacts.results import UNIFORM, Json, SuiteResult, text_hash
from stlm_kd.data.tokenizers import document_ends, ids_from_start
from stlm_kd.errors import DataError, UsageError
from stlm_kd.eval.language_modeling import wikitext
from stlm_kd.eval.language_modeling.likelihood import ScoredText, likelihood_result
from stlm_kd.eval.language_modeling.round_trip import bytes_kept
from stlm_kd.eval.language_modeling.text_blocks import text_blocks, token_starts
from stlm_kd.eval.language_modeling.token_losses import Piece, is_uniform, piece_losses
from stlm_kd.eval.pins import SuiteData
from stlm_kd.eval.runner import Precision, checked_window, require_task, texts_to_score
from stlm_kd.eval.suite import Options, register_suite
from stlm_kd.lazy import np
from stlm_kd.models.positions import num_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SUITE = "perplexity"


class Window(NamedTuple):
    """A range of a document's ids: all but the last are inputs, and the last ``scored`` are targets."""

    start: int
    stop: int
    scored: int


def _other_text_identity(options: Options) -> str | None:
    return wikitext.identity(options.get("hub")) if options.get("on") == "wikitext" else None


def _check_other_text(options: Options) -> None:
    if options.get("hub") is not None and options.get("on") != "wikitext":
        raise UsageError("perplexity: hub is for on: wikitext; leave it out for held-out text")
    _other_text_data(options)
    _other_text_identity(options)


def _other_text_data(options: Options) -> dict[str, SuiteData]:
    return {"wikitext": wikitext.data(options.get("hub"))} if options.get("on") == "wikitext" else {}


def _other_text_requirements(options: Options) -> Iterator[Callable[[], object]]:
    if options.get("on") == "wikitext" and not wikitext.is_reachable(options.get("hub")):
        yield partial(wikitext.identity, options.get("hub"))


@register_suite(
    SUITE,
    tasks=["clm"],
    reads_held_out=lambda options: options.get("on", "held-out") == "held-out",
    identity=_other_text_identity,
    data=_other_text_data,
    requirements=_other_text_requirements,
    own_check=_check_other_text,
)
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    /,
    *,
    on: Literal["held-out", "wikitext"] = "held-out",
    window: Annotated[int, Gt(1)] | None = None,
    stride: Annotated[int, Gt(0)] | None = None,
    batch_size: Annotated[int, Gt(0)] = 16,
    precision: Precision = "fp32",
    hub: str | None = None,
) -> SuiteResult:
    """Bits per byte and perplexity per token of a text, in overlapping windows from each start token on.

    In the first window a token is predicted from all tokens before it, later from at least ``window -
    stride`` tokens. The end token is not part of the text and not scored.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        documents: The held-out text.
        on: The text to score: held-out, or ``wikitext``: WikiText-2's test text, from a file in
            ``STLM_KD_DATA`` or the Hub.
        window: Tokens in the model's context; default: the recipe's ``data.context``, or the smallest number
            of positions of the models given to ``eval``.
        stride: Tokens by which the window moves; default: half a window.
        batch_size: Maximum windows per forward pass.
        precision: ``bf16`` runs the model under autocast.
        hub: WikiText at another revision, such as ``Salesforce/wikitext@main``, read from the Hub.

    Raises:
        DataError: No text to score.
        MissingResourceError: WikiText is requested and missing.
        ModelError: A masked language model, a tokenizer without a start token, or a window beyond the
            model's positions.
    """
    require_task(model, "clm", suite=SUITE)
    window = checked_window(model.config, window or num_positions(model.config) or 1024, suite=SUITE)
    stride = max(window // 2, 1) if stride is None else min(stride, window)
    texts = texts_to_score(wikitext.articles(hub) if on == "wikitext" else documents, suite=SUITE)
    ids = ids_from_start(tokenizer, texts)
    windows = [
        (index, *piece)
        for index, row in enumerate(ids)
        for piece in split_into_windows(len(row), window, stride)
    ]
    if not windows:
        raise DataError("perplexity: the tokenizer finds no token in the text")
    nats = [np.zeros(len(row) - 1) for row in ids]
    pieces = [Piece(tuple(ids[index][start:stop]), scored) for index, start, stop, scored in windows]
    losses = piece_losses(model, pieces, batch_size=batch_size, precision=precision, suite=SUITE)
    for (index, _, stop, scored), loss in zip(windows, losses, strict=True):
        nats[index][stop - scored - 1 : stop - 1] = loss.token_nats
    starts = token_starts(tokenizer, texts)
    unknown_id = tokenizer.unk_token_id
    result = text_result(
        [
            ScoredText(
                math.fsum(own),
                len(own),
                len(text.encode()),
                None if starts is None else text_blocks(text, starts[index], own),
            )
            for index, (own, text) in enumerate(zip(nats, texts, strict=True))
        ],
        0 if unknown_id in (None, document_ends(tokenizer)[0]) else sum(row.count(unknown_id) for row in ids),
        window,
        stride,
        UNIFORM if is_uniform(pieces, losses) else None,
        bytes_kept(tokenizer, texts),
    )
    notes = ("perplexity: on WikiText-2's test text",) if on == "wikitext" else ()
    hashes = {str(index): text_hash(text) for index, text in enumerate(texts)}
    return replace(result, notes=(*notes, *result.notes), texts={"text": hashes})


def text_result(
    documents: Sequence[ScoredText],
    unknown: int,
    window: int,
    stride: int,
    degenerate: str | None = None,
    kept: float = 1.0,
) -> SuiteResult:
    """Both metrics as scores, with the bits per byte of every document that is not empty, in order.

    Tokens do not include start and end; ``unknown`` is the number of unknown ones. ``degenerate`` says why
    the model distinguishes no tokens, if so; ``kept`` is the fraction of the bytes that decoding restores.
    """
    report: dict[str, Json] = {
        "nats": math.fsum(document.nats for document in documents),
        "tokens": sum(document.tokens for document in documents),
        "bytes": sum(document.bytes for document in documents),
        "documents": len(documents),
        "unknown_tokens": unknown,
        "window": window,
        "stride": stride,
        "bytes_kept": kept,
    }
    blocks = [document.blocks for document in documents if document.blocks is not None]
    if len(blocks) == len(documents):
        nats: list[Json] = [list(each.nats) for each in blocks]
        sizes: list[Json] = [list(each.bytes) for each in blocks]
        report["blocks"] = {"nats": nats, "bytes": sizes}
    return likelihood_result(
        SUITE,
        dict(enumerate(documents)),
        unknown=unknown,
        bytes_kept=kept,
        degenerate=degenerate,
        notes=[f"{SUITE}: windows of {window} tokens, stride {stride}"],
        report=report,
    )


def split_into_windows(length: int, window: int, stride: int) -> Iterator[Window]:
    """Windows of at most ``window`` inputs in which each id except the first is scored once.

    >>> [(piece.start, piece.stop, piece.scored) for piece in split_into_windows(8, 4, 2)]
    [(0, 5, 4), (2, 7, 2), (4, 8, 1)]
    """
    scored_to = 1
    start = 0
    while scored_to < length:
        stop = min(start + window + 1, length)
        yield Window(start, stop, stop - scored_to)
        scored_to = stop
        start += stride
