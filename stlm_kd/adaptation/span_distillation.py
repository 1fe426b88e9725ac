"""Cross-tokenizer self-distillation: span likelihoods of a text under the model with its old vocabulary.

Shapes: B rows, T positions of a row, S spans of all rows, b segments of old tokens, t of their positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.data.batch import IGNORED, Batch, Integers
from stlm_kd.data.batches import PackedRows
from stlm_kd.data.token_store import TokenStore
from stlm_kd.losses.spans import log_likelihoods, span_sums
from stlm_kd.models.forward import head_of, last_hidden
from stlm_kd.models.positions import num_positions
from stlm_kd.vocabulary.byte_alignment import NO_SPAN, ByteBoundaries, Spans, ends_of, spans_of, spelled
from stlm_kd.vocabulary.token_bytes import read_vocabulary

_DOCUMENTS = 256
"""Number of documents whose byte boundaries are cached."""

_BATCHES = 1024
"""Number of micro-batches whose spans are cached: those of a step are counted before they are used."""


@dataclass(frozen=True, slots=True)
class BatchSpans:
    """The ``count`` spans of a batch of rows.

    ``span_of_label`` is the span index of each position's label, or ``NO_SPAN``, (B, T); ``stretches`` are
    the segments in order, each with the index of its first span.
    """

    span_of_label: Tensor
    stretches: tuple[tuple[int, Spans], ...]
    count: int


class AlignedTokenisations:
    """Packed rows of a text in the new vocabulary, and the same documents in the old one.

    ``rows`` of all sources are numbered consecutively; ``stores`` are the same sources in the old vocabulary,
    and ``most_old`` is the model's maximum context in old tokens.
    """

    def __init__(
        self,
        rows: Sequence[PackedRows],
        stores: Sequence[TokenStore],
        new: PreTrainedTokenizerFast,
        old: PreTrainedTokenizerFast,
        *,
        most_old: int,
    ) -> None:
        assert [part.store.num_documents for part in rows] == [store.num_documents for store in stores]
        self.context = rows[0].context
        self._rows, self._stores = rows, stores
        self._new, self._old = read_vocabulary(new), read_vocabulary(old)
        self._most_old = most_old
        self._starts = list(accumulate((len(part) for part in rows), initial=0))
        self._ends = lru_cache(maxsize=_DOCUMENTS)(self._counted)

    @property
    def num_rows(self) -> int:
        return self._starts[-1]

    def share_in_spans(self, *, rows: int = 256) -> float:
        """Fraction of predicted tokens that belong to a span, over evenly spaced rows."""
        chosen = np.unique(np.linspace(0, self.num_rows - 1, min(rows, self.num_rows)).round().astype(int))
        found = [spans.of_new for row in chosen.tolist() for spans in self.stretches_of(row)]
        return float((np.concatenate(found) != NO_SPAN).mean())

    def stretches_of(self, row: int) -> Iterator[Spans]:
        """The spans of each chunk of a row, in order; a row of padding (-1) has none."""
        if row < 0:
            return
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        packed = self._rows[part]
        offsets = packed.store.offsets
        for begin, length in packed.chunks_of(row - self._starts[part]):
            document = int(np.searchsorted(offsets, begin, side="right")) - 1
            ends = self._ends(part, document)
            if ends is None:
                nothing = np.zeros(0, np.int64)
                yield Spans(np.full(length, NO_SPAN), nothing, nothing, 0)
            else:
                ids = self._stores[part].document(document)
                yield spans_of(ends, ids, begin - int(offsets[document]), length, most_old=self._most_old)

    def _counted(self, part: int, document: int) -> ByteBoundaries | None:
        new = spelled(self._rows[part].store.document(document), self._new.surfaces)
        old = spelled(self._stores[part].document(document), self._old.surfaces)
        return None if new is None or old is None else ends_of(new, old)


def positions_of(model: PreTrainedModel) -> int:
    """Maximum context of a model in tokens; 1024 if its configuration does not define it."""
    return num_positions(model.config) or 1024


class SpanTeacher:
    """A frozen causal language model that computes span log-likelihoods in its own vocabulary."""

    def __init__(self, model: PreTrainedModel, text: AlignedTokenisations) -> None:
        self.model = model.eval().requires_grad_(False)
        self._text = text
        self._known: dict[int, Tensor] = {}
        self._spans = lru_cache(maxsize=_BATCHES)(self._found)

    def spans(self, example_ids_B: Tensor) -> BatchSpans:
        """The spans of the rows, on the CPU."""
        return self._spans(tuple(example_ids_B.tolist()))

    def _found(self, rows: tuple[int, ...]) -> BatchSpans:
        of_BT = torch.full((len(rows), self._text.context), NO_SPAN)
        stretches: list[tuple[int, Spans]] = []
        count = 0
        for place, row in enumerate(rows):
            position = 0
            for spans in self._text.stretches_of(row):
                end = position + len(spans.of_new)
                of_BT[place, position:end] = _numbered(spans.of_new, count)
                position = end
                stretches.append((count, spans))
                count += spans.count
        return BatchSpans(of_BT, tuple(stretches), count)

    @torch.no_grad()
    def log_probabilities(self, example_ids_B: Tensor) -> Tensor:
        """Log-probability of each span of the rows given the preceding text, (S,), on the model's device."""
        rows = example_ids_B.tolist()
        if rows and all(row in self._known for row in rows):
            return torch.cat([self._known[row] for row in rows]).to(self.model.device)
        spans = self.spans(example_ids_B)
        found_S = torch.zeros(spans.count, device=self.model.device)
        for batch, of_bt in _batches(spans.stretches, positions=spans.span_of_label.numel()):
            batch = batch.to(self.model.device)
            kept = batch.labels != IGNORED
            head = head_of(self.model)
            likelihoods = log_likelihoods(
                last_hidden(self.model, batch)[kept], head.weight, head.bias, batch.labels[kept]
            )
            found_S += span_sums(likelihoods.float(), of_bt.to(self.model.device)[kept], spans.count)
        return found_S

    def remember(self, micro_batch: int) -> None:
        """Precompute all rows in data order: independent of the training's micro-batches and of a resume."""
        known: dict[int, Tensor] = {-1: torch.zeros(0)}
        for rows in torch.split(torch.arange(self._text.num_rows), micro_batch):
            counts = [self.spans(row[None]).count for row in rows]
            known |= zip(rows.tolist(), torch.split(self.log_probabilities(rows).cpu(), counts), strict=True)
        self._known = known


def _batches(stretches: Iterable[tuple[int, Spans]], *, positions: int) -> Iterator[tuple[Batch, Tensor]]:
    """Batches of old tokens, longest segments first, with the span of each label."""
    left = sorted(
        ((first, spans) for first, spans in stretches if spans.count), key=lambda entry: -len(entry[1].of_old)
    )
    while left:
        size = max(1, positions // len(left[0][1].of_old))
        yield _batch(left[:size])
        left = left[size:]


def _batch(stretches: Sequence[tuple[int, Spans]]) -> tuple[Batch, Tensor]:
    ids = [torch.from_numpy(spans.old_ids) for _, spans in stretches]
    of = [_numbered(spans.of_old, first) for first, spans in stretches]
    labels_bt = pad_sequence([own[1:] for own in ids], batch_first=True, padding_value=IGNORED)
    mask_bt = labels_bt != IGNORED
    batch = Batch(
        input_ids=pad_sequence([own[:-1] for own in ids], batch_first=True),
        attention_mask=mask_bt,
        labels=labels_bt,
        document_ids=mask_bt.to(torch.int64),
        position_ids=torch.arange(mask_bt.shape[1]) * mask_bt,
        example_ids=torch.arange(len(stretches)),
    )
    return batch, pad_sequence(of, batch_first=True, padding_value=NO_SPAN)


def _numbered(span_of: Integers, first: int) -> Tensor:
    """The span of each position, numbered from ``first`` instead of 0."""
    of = torch.from_numpy(span_of)
    return torch.where(of >= 0, of + first, of)
