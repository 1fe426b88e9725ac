"""Draw the intervention of an optimizer step on one micro-batch, before student and teachers run.

All draws are functions of the seed, the intervention's name, the step and the row, so they do not depend on a
resume or on the split into micro-batches and processes. The batch determines the source row of each row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stlm_kd.data.batch import IGNORED, Batch, Integers
from stlm_kd.data.labelled.batches import AnyBatch, on_cpu
from stlm_kd.errors import DataError
from stlm_kd.interventions.plan import Plan, Positions, affected
from stlm_kd.interventions.source import SOURCES
from stlm_kd.interventions.spec import Intervention
from stlm_kd.interventions.word_tokens import WordTokens
from stlm_kd.lazy import np, torch


class SourcePool(Protocol):
    """Rows from which sources outside the batch are drawn."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def number(self, place: int) -> int:
        """The ``example_id`` of the row at an index from 0."""
        ...

    def batch(self, places: Sequence[int], generators: Sequence[np.random.Generator]) -> AnyBatch:
        """These rows in this order; for masked models, each is masked by its generator."""
        ...


@dataclass(frozen=True, slots=True)
class SourceInputs:
    """What draws need beside the batch: the training's seed, all its rows, the student's tokens."""

    seed: int = 0
    pool: SourcePool | None = None
    lexicon: WordTokens | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A document within a row: its positions, and its labelled positions, both ascending."""

    row: int
    positions: Integers
    labelled: Integers


def documents_of(batch: AnyBatch) -> list[list[Document]]:
    """The documents of each row of a batch on the CPU; none for a row of padding."""
    if isinstance(batch, Batch):
        numbers_BT, labels_BT = batch.document_ids.numpy(), batch.labels.numpy()
    else:
        numbers_BT = batch.attention_mask.numpy().astype(np.int64)
        labels_BT = np.full_like(numbers_BT, IGNORED)
    found: list[list[Document]] = []
    for row, number in enumerate(batch.example_ids.tolist()):
        own, labels_T = numbers_BT[row], labels_BT[row]
        last = int(own.max()) if number >= 0 else 0
        spans = [np.flatnonzero(own == document) for document in range(1, last + 1)]
        found.append([Document(row, span, span[labels_T[span] != IGNORED]) for span in spans if len(span)])
    return found


class SourceRequest:
    """A micro-batch, on the CPU, for which an intervention is drawn in optimizer step ``index``."""

    def __init__(
        self, intervention: Intervention, batch: AnyBatch, index: int, supplies: SourceInputs
    ) -> None:
        self.intervention, self.batch, self.index, self.supplies = intervention, batch, index, supplies
        self.documents = documents_of(batch)
        self.ids: list[int] = batch.example_ids.tolist()

    @property
    def rows(self) -> list[int]:
        """The rows that are not padding."""
        return [row for row, documents in enumerate(self.documents) if documents]

    def generator(self, purpose: str, *rows: int) -> np.random.Generator:
        """Random generator for one purpose in this step and for rows of the batch, by index."""
        numbers = [self.ids[row] for row in rows]
        return named_generator(self.supplies.seed, self.intervention.name, self.index, purpose, *numbers)

    def pool(self) -> SourcePool:
        """All training rows; DataError if there are fewer than two."""
        pool = self.supplies.pool
        if pool is None or len(pool) < 2:
            raise DataError(
                f"{self.intervention.name}: no other row to draw a source from; give more text or a shorter "
                "data.context, or use a source in context or mixup"
            )
        return pool

    def lexicon(self) -> WordTokens:
        """The student's tokens."""
        lexicon = self.supplies.lexicon
        assert lexicon is not None, "sources that draw tokens need a lexicon"
        return lexicon

    def across(
        self, base: Document, source: Document, generator: np.random.Generator
    ) -> tuple[Integers, Integers]:
        """Equally many positions of two documents, ascending."""
        how = self.intervention.positions
        if how == "masked":
            count = self._limited(min(len(base.labelled), len(source.positions)))
            return _some(base.labelled, count, generator), _some(source.positions, count, generator)
        count = self._count(min(len(base.positions), len(source.positions)))
        choose = _run if how == "consecutive" else _some
        return choose(base.positions, count, generator), choose(source.positions, count, generator)

    def within(self, base: Document, generator: np.random.Generator) -> Integers:
        """Positions of one document, ascending."""
        if self.intervention.positions == "masked":
            return _some(base.labelled, self._limited(len(base.labelled)), generator)
        count = self._count(len(base.positions))
        choose = _run if self.intervention.positions == "consecutive" else _some
        return choose(base.positions, count, generator)

    def _count(self, length: int) -> int:
        return self._limited(max(1, int(self.intervention.fraction * length)))

    def _limited(self, count: int) -> int:
        most = self.intervention.max_tokens
        return count if most is None else min(count, most)


def draw_plan(
    intervention: Intervention,
    batch: AnyBatch,
    supplies: SourceInputs,
    *,
    index: int,
    steps: int,
    causal: bool,
) -> Plan:
    """Draw the plan for a micro-batch of optimizer step ``index`` (from 0) of ``steps``, on its device.

    Drawn on the CPU and moved without synchronising with the device. All micro-batches and processes of a
    step use the same layer. Positions are never padding, and base and source positions each lie within one
    document. Raises DataError if the source must be another row, and there is none.
    """
    readable = on_cpu(batch)
    draw = SourceRequest(intervention, readable, index, supplies)
    base, source = SOURCES[intervention.source](draw, **intervention.options)
    layer = layer_at(intervention, supplies.seed, index=index, steps=steps)
    plan = Plan(
        student_layer=layer,
        teacher_layers={name: layers[layer] for name, layers in intervention.layers.items()},
        source_site=intervention.source_site,
        base=base,
        source=source,
        touched=affected(base, readable, causal=causal),
        exact_dropout=intervention.exact_dropout,
    )
    return plan.to(batch.input_ids.device)


def layer_at(intervention: Intervention, seed: int, *, index: int, steps: int) -> int:
    """The student layer to overwrite in an optimizer step.

    ``top-down`` and ``bottom-up`` give each layer an equal share of the steps, as in the few-shot study.
    """
    layers = intervention.student_layers
    if intervention.layer_schedule == "random":
        return layers[int(named_generator(seed, intervention.name, index, "layer").integers(len(layers)))]
    place = min(index * len(layers) // steps, len(layers) - 1)
    return layers[place if intervention.layer_schedule == "bottom-up" else -1 - place]


def named_generator(seed: int, *names: int | str) -> np.random.Generator:
    """A random generator seeded by the names, independent of other draws."""
    text = "/".join(map(str, (seed, *names)))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def places_of(found: Sequence[tuple[int, Integers]]) -> Positions:
    """Concatenate positions of rows."""
    if not found:
        return Positions(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    rows = np.repeat([row for row, _ in found], [len(positions) for _, positions in found])
    return Positions(torch.from_numpy(rows), torch.from_numpy(np.concatenate([own for _, own in found])))


def _run(positions: Integers, count: int, generator: np.random.Generator) -> Integers:
    """``count`` contiguous positions from a random start."""
    start = int(generator.integers(len(positions) - count + 1))
    return positions[start : start + count]


def _some(positions: Integers, count: int, generator: np.random.Generator) -> Integers:
    """``count`` random positions, ascending."""
    return np.sort(generator.choice(positions, count, replace=False))
