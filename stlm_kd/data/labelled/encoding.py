"""Texts and pairs of texts under one tokenizer, tokenised once and padded per batch (B rows, T positions)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stlm_kd.data.batch import Integers
from stlm_kd.data.tokenizers import document_ends, encoding_errors
from stlm_kd.lazy import np, torch

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor


if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

MULTIPLE = 8
"""Rows are padded to a multiple of this many positions: GPUs are faster with 8, a CPU with 1."""

_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Encoded:
    """B texts, padded on the right.

    Attributes:
        input_ids: (B, T) int64. Padding positions hold the padding token, or else the end token.
        attention_mask: (B, T) bool, False on padding. A row without a text attends to one padding token,
            because attention over no position is NaN.
        token_type_ids: (B, T) int64: 1 on the second text of a pair; None where all are 0.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None

    def to(self, device: torch.device) -> Encoded:
        """The same rows on a device."""
        types = self.token_type_ids
        return Encoded(
            self.input_ids.to(device, non_blocking=True),
            self.attention_mask.to(device, non_blocking=True),
            None if types is None else types.to(device, non_blocking=True),
        )


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """The concatenated tokens of all texts.

    ``types`` are token types, None where all are 0; ``offsets`` the begin of each text, and the end of the
    last; ``context`` the most tokens of a text, which ``truncated`` texts exceeded; ``padding`` the padding
    id. Rows are padded to a ``multiple`` of positions, at most to ``context``.
    """

    tokens: npt.NDArray[np.int32]
    types: npt.NDArray[np.int8] | None
    offsets: Integers
    context: int
    padding: int
    truncated: int
    multiple: int = MULTIPLE

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> Integers:
        """Number of tokens of each text, special ones included."""
        return np.diff(self.offsets)

    def padded(self, lengths: Integers) -> Integers:
        """Padded length of rows whose longest text has each of these lengths."""
        return np.minimum(-(-lengths // self.multiple) * self.multiple, self.context)

    @property
    def notes(self) -> tuple[str, ...]:
        """A note for the user if training examples are truncated."""
        if not self.truncated:
            return ()
        longer = f"{self.truncated} of {len(self)} training examples are longer than {self.context} tokens"
        return (f"{longer} and cut",)

    def rows(self, places: Integers) -> Encoded:
        """These texts in this order; one row of padding if there are none."""
        if not len(places):
            return self._no_text()
        begins = self.offsets[places]
        lengths_B = self.offsets[places + 1] - begins
        positions_T = np.arange(int(self.padded(lengths_B.max())))
        filled_BT = positions_T < lengths_B[:, None]
        sources_BT = begins[:, None] + positions_T
        ids_BT = np.where(filled_BT, self.tokens.take(sources_BT, mode="clip"), self.padding)
        types_BT = None
        if self.types is not None:
            types_BT = np.where(filled_BT, self.types.take(sources_BT, mode="clip"), 0)
        return Encoded(
            torch.from_numpy(ids_BT.astype(np.int64)),
            torch.from_numpy(filled_BT),
            None if types_BT is None else torch.from_numpy(types_BT.astype(np.int64)),
        )

    def _no_text(self) -> Encoded:
        ids = torch.full((1, min(self.multiple, self.context)), self.padding)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, 0] = True
        return Encoded(ids, mask, None if self.types is None else torch.zeros_like(ids))


def padding_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that fills rows: the padding token, or else the end of a document; ModelError without any."""
    padding = tokenizer.pad_token_id
    return document_ends(tokenizer)[1] if padding is None else int(padding)


def encode_texts(
    texts: Sequence[tuple[str, ...]],
    tokenizer: PreTrainedTokenizerFast,
    *,
    context: int,
    multiple: int = MULTIPLE,
) -> EncodedTexts:
    """Encode texts with the tokenizer's special tokens, truncated to ``context`` tokens.

    In a pair, the longer text is truncated first. If the tokenizer puts nothing between the texts of a pair,
    the end token of a document separates them. An empty text without special tokens is that token alone.
    Raises ModelError as ``padding_id``.
    """
    assert texts and context >= 4 and multiple >= 1
    separated = len(texts[0]) == 1 or separates(tokenizer)
    ids: list[npt.NDArray[np.int32]] = []
    types: list[npt.NDArray[np.int8]] = []
    truncated = 0
    if separated:
        own = encodings(texts, tokenizer, context)
        found: Iterator[Reading] = ((one.ids, one.type_ids, bool(one.overflowing)) for one in own)
    else:
        found = _joined(texts, tokenizer, context)
    for own_ids, own_types, is_cut in found:
        ids.append(np.array(own_ids or [document_ends(tokenizer)[1]], np.int32))
        types.append(np.array(own_types or [0], np.int8))
        truncated += is_cut
    types_together = np.concatenate(types)
    return EncodedTexts(
        tokens=np.concatenate(ids),
        types=types_together if types_together.any() else None,
        offsets=np.cumsum([0, *map(len, ids)]),
        context=context,
        padding=padding_id(tokenizer),
        truncated=truncated,
        multiple=multiple,
    )


Reading = tuple[list[int], list[int], bool]
"""Token ids, token types, and whether the text was truncated."""


def separates(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer separates the texts of a pair by special tokens."""
    alone, pair = (int(tokenizer.num_special_tokens_to_add(pair=pair)) for pair in (False, True))
    return pair > alone


def encodings(
    texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerFast, context: int | None
) -> Iterator[Encoding]:
    """The tokenizer's own encodings; without special tokens and truncation if ``context`` is None."""
    for begin in range(0, len(texts), _AT_ONCE):
        columns = [list(column) for column in zip(*texts[begin : begin + _AT_ONCE], strict=True)]
        with encoding_errors(tokenizer):
            found = tokenizer(
                *columns,
                add_special_tokens=context is not None,
                truncation="longest_first" if context is not None else False,
                max_length=context,
                padding=False,
                verbose=False,
            )
        assert found.encodings is not None
        yield from found.encodings


def _joined(
    texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerFast, context: int
) -> Iterator[Reading]:
    """Pairs separated by the end token of a document, within the special tokens of a single text."""
    end = document_ends(tokenizer)[1]
    before, after = _around(tokenizer)
    for a, keep_a, b, keep_b in _cut_pairs(texts, tokenizer, context - len(before) - len(after) - 1):
        ids = [*before, *a.ids[:keep_a], end, *b.ids[:keep_b], *after]
        yield ids, [0] * len(ids), keep_a + keep_b < len(a.ids) + len(b.ids)


def _around(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    probe = tokenizer("a", return_special_tokens_mask=True)
    own = [place for place, special in enumerate(probe["special_tokens_mask"]) if not special]
    return probe["input_ids"][: own[0]], probe["input_ids"][own[-1] + 1 :]


def _cut_pairs(
    texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerFast, free: int
) -> Iterator[tuple[Encoding, int, Encoding, int]]:
    """Each pair without special tokens, and how many tokens of each text fit into ``free`` positions."""
    first, second = ([(text[side],) for text in texts] for side in (0, 1))
    for a, b in zip(encodings(first, tokenizer, None), encodings(second, tokenizer, None), strict=True):
        keep_a = min(len(a.ids), max(free - len(b.ids), free - free // 2))
        yield a, keep_a, b, min(len(b.ids), free - keep_a)


Source = tuple[int, int, int]
"""Index of the text within an example, first character, one after the last character."""


def token_sources(
    texts: tuple[str, ...], tokenizer: PreTrainedTokenizerFast, *, context: int
) -> list[Source | None]:
    """The span of each token that ``encode_texts`` makes of one example; None for special tokens."""
    if len(texts) == 1 or separates(tokenizer):
        (whole,) = encodings([texts], tokenizer, context)
        places = zip(whole.sequence_ids, whole.offsets, strict=True)
        return [None if side is None else (side, *offsets) for side, offsets in places] or [None]
    before, after = _around(tokenizer)
    ((a, keep_a, b, keep_b),) = _cut_pairs([texts], tokenizer, context - len(before) - len(after) - 1)
    first, second = (
        [(side, *offsets) for offsets in encoding.offsets[:keep]]
        for side, (encoding, keep) in enumerate([(a, keep_a), (b, keep_b)])
    )
    return [*[None] * len(before), *first, None, *second, *[None] * len(after)]
