"""Bits per byte and perplexity of text, with each token scored exactly once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from annotated_types import Gt

from stlm_kd.artifacts.results import UNIFORM, ExampleScore, Json, SuiteResult
from stlm_kd.data.tokenizers import document_ends, ids_from_start
from stlm_kd.errors import DataError
from stlm_kd.eval.language_modeling import likelihood, wikitext
from stlm_kd.eval.language_modeling.round_trip import bytes_kept, lossy_note
from stlm_kd.eval.language_modeling.text_blocks import TextBlocks, text_blocks, token_starts
from stlm_kd.eval.language_modeling.token_losses import Piece, is_uniform, piece_losses
from stlm_kd.eval.runner import Precision, check_window, require_task
from stlm_kd.eval.suite import Options, register_suite
from stlm_kd.models.positions import num_positions

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SUITE = "perplexity"


@dataclass(frozen=True, slots=True)
class DocumentLoss:
    """The loss of one document.

    Attributes:
        nats: Over its tokens.
        tokens: Their number.
        bytes: Of its text.
        blocks: The nats of its blocks; None if the tokenizer has no token offsets.
    """

    nats: float
    tokens: int
    bytes: int
    blocks: TextBlocks | None = None


@dataclass(frozen=True, slots=True)
class TextLoss:
    """The loss of a text.

    Attributes:
        documents: The non-empty documents, in order.
        unknown: The number of unknown tokens.
        window: Maximum tokens in the model's context.
        stride: Tokens by which the window moved.
        uniform: Whether the model gives all tokens the same probability.
        bytes_kept: The fraction of the text's bytes that decoding restores.
    """

    documents: tuple[DocumentLoss, ...]
    unknown: int
    window: int
    stride: int
    uniform: bool = False
    bytes_kept: float = 1.0

    @property
    def nats(self) -> float:
        """The sum over all tokens."""
        return math.fsum(document.nats for document in self.documents)

    @property
    def tokens(self) -> int:
        """The number of tokens, without start and end of documents."""
        return sum(document.tokens for document in self.documents)

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of the text."""
        return sum(document.bytes for document in self.documents)

    def as_result(self) -> SuiteResult:
        """Both metrics as scores, with the bits per byte of every document."""
        pieces = [(document.nats, document.tokens, document.bytes) for document in self.documents]
        notes = []
        if self.unknown:
            notes.append(likelihood.unknown_note(self.unknown, self.tokens))
        if self.bytes_kept < 1:
            notes.append(lossy_note(self.bytes_kept))
        notes.append(f"{SUITE}: windows of {self.window} tokens, stride {self.stride}")
        return SuiteResult(
            SUITE,
            likelihood.likelihood_scores(pieces, degenerate=UNIFORM if self.uniform else None),
            tuple(
                ExampleScore(
                    "text",
                    str(index),
                    "bits_per_byte",
                    likelihood.bits_per_byte(document.nats, document.bytes),
                )
                for index, document in enumerate(self.documents)
                if document.bytes
            ),
            tuple(notes),
            {
                "nats": self.nats,
                "tokens": self.tokens,
                "bytes": self.bytes,
                "documents": len(self.documents),
                "unknown_tokens": self.unknown,
                "window": self.window,
                "stride": self.stride,
                "bytes_kept": self.bytes_kept,
                **self._blocks(),
            },
        )

    def _blocks(self) -> dict[str, Json]:
        """By document; {} if a document has none."""
        found = [document.blocks for document in self.documents if document.blocks is not None]
        if len(found) < len(self.documents):
            return {}
        nats: list[Json] = [list(one.nats) for one in found]
        sizes: list[Json] = [list(one.bytes) for one in found]
        return {"blocks": {"nats": nats, "bytes": sizes}}


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of one document's ids: all but the last are inputs, and the last ``scored`` are targets."""

    document: int
    start: int
    stop: int
    scored: int


def _other_text_identity(options: Options) -> str | None:
    return wikitext.identity() if options.get("on") == "wikitext" else None


def _other_text_requirements(options: Options) -> Iterator[Callable[[], object]]:
    if options.get("on") == "wikitext" and not wikitext.is_reachable():
        yield wikitext.identity


@register_suite(
    SUITE,
    tasks=["clm"],
    reads_held_out=lambda options: options.get("on", "held-out") == "held-out",
    identity=_other_text_identity,
    requirements=_other_text_requirements,
    own_check=_other_text_identity,
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

    Raises:
        DataError: No text to score.
        MissingResourceError: WikiText is requested and missing.
        ModelError: A masked language model, a tokenizer without a start token, or a window beyond the
            model's positions.
    """
    require_task(model, "clm", suite=SUITE)
    window = _checked_window(model.config, window)
    stride = max(window // 2, 1) if stride is None else min(stride, window)
    texts = [text for text in (wikitext.articles() if on == "wikitext" else documents) if text]
    if not texts:
        raise DataError("perplexity: no text to score; give the recipe a data.validation that is not empty")
    ids = ids_from_start(tokenizer, texts)
    windows = [
        piece
        for index, row in enumerate(ids)
        for piece in split_into_windows(index, len(row), window, stride)
    ]
    if not windows:
        raise DataError("perplexity: the tokenizer finds no token in the text")
    nats = [np.zeros(len(row) - 1) for row in ids]
    pieces = [Piece(tuple(ids[each.document][each.start : each.stop]), each.scored) for each in windows]
    losses = piece_losses(model, pieces, batch_size=batch_size, precision=precision, suite=SUITE)
    for each, loss in zip(windows, losses, strict=True):
        nats[each.document][each.stop - each.scored - 1 : each.stop - 1] = loss.token_nats
    starts = token_starts(tokenizer, texts)
    blocks = [
        None if starts is None else text_blocks(text, starts[index], nats[index])
        for index, text in enumerate(texts)
    ]
    unknown_id = tokenizer.unk_token_id
    result = TextLoss(
        tuple(
            DocumentLoss(math.fsum(own), len(own), len(text.encode()), each)
            for own, text, each in zip(nats, texts, blocks, strict=True)
        ),
        0 if unknown_id in (None, document_ends(tokenizer)[0]) else sum(row.count(unknown_id) for row in ids),
        window,
        stride,
        bool(is_uniform(pieces, losses)),
        bytes_kept(tokenizer, texts),
    ).as_result()
    notes = ("perplexity: on WikiText-2's test text",) if on == "wikitext" else ()
    return replace(result, notes=(*notes, *result.notes))


def split_into_windows(document: int, length: int, window: int, stride: int) -> Iterator[Window]:
    """Windows of at most ``window`` inputs in which each id except the first is scored once.

    >>> [(piece.start, piece.stop, piece.scored) for piece in split_into_windows(0, 8, 4, 2)]
    [(0, 5, 4), (2, 7, 2), (4, 8, 1)]
    """
    scored_to = 1
    start = 0
    while scored_to < length:
        stop = min(start + window + 1, length)
        yield Window(document, start, stop, stop - scored_to)
        scored_to = stop
        start += stride


def _checked_window(config: PreTrainedConfig, window: int | None) -> int:
    if window is None:
        return num_positions(config) or 1024
    check_window(config, window, suite=SUITE)
    return window
