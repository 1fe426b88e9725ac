"""What an intervention draws from: documents, and numbers named by what they are for.

Everything is a function of the seed, the intervention's name, the step and the row. Nothing drawn is stored:
a resumed run draws what an uninterrupted one draws, and what is drawn for a row does not depend on the
micro-batch or the process that has it. Which row of a step is its source, the batch says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from stlm_kd.data.batch import IGNORED, Batch, Integers
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.errors import DataError
from stlm_kd.interventions.plan import Positions
from stlm_kd.interventions.spec import Intervention
from stlm_kd.interventions.word_tokens import WordTokens


class SourcePool(Protocol):
    """Rows from which sources are drawn that are not in the batch."""

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def number(self, place: int) -> int:
        """The row's ``example_id``, of the row at a place from 0."""
        ...

    def batch(self, places: Sequence[int], generators: Sequence[np.random.Generator]) -> AnyBatch:
        """These rows in this order, the tokens of each masked by its generator where any are."""
        ...


@dataclass(frozen=True, slots=True)
class SourceInputs:
    """What interventions are made of.

    Attributes:
        seed: Of the training.
        pool: All training rows.
        lexicon: The tokens of the student's vocabulary.
    """

    seed: int = 0
    pool: SourcePool | None = None
    lexicon: WordTokens | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A document within a row: its positions, and those of them that have a label, ascending."""

    row: int
    positions: Integers
    labelled: Integers


def documents_of(batch: AnyBatch) -> list[list[Document]]:
    """The documents of each row; none of a row of padding. The batch lies on the CPU."""
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
    """One micro-batch, about to have places chosen in it.

    Args:
        intervention: How.
        batch: The base, on the CPU.
        index: The optimizer step.
        supplies: Seed, pool and tokens.
    """

    def __init__(
        self, intervention: Intervention, batch: AnyBatch, index: int, supplies: SourceInputs
    ) -> None:
        self.intervention, self.batch, self.index, self.supplies = intervention, batch, index, supplies
        self.documents = documents_of(batch)
        self.ids: list[int] = batch.example_ids.tolist()

    @property
    def rows(self) -> list[int]:
        """The rows that hold something."""
        return [row for row, documents in enumerate(self.documents) if documents]

    def generator(self, purpose: str, *rows: int) -> np.random.Generator:
        """For one purpose in this step, of rows by their places in the batch."""
        numbers = [self.ids[row] for row in rows]
        return named_generator(self.supplies.seed, self.intervention.name, self.index, purpose, *numbers)

    def pool(self) -> SourcePool:
        """All training rows.

        Raises:
            DataError: There are not even two.
        """
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
        assert lexicon is not None, "a source that draws tokens is supplied with them"
        return lexicon

    def across(
        self, base: Document, source: Document, generator: np.random.Generator
    ) -> tuple[Integers, Integers]:
        """As many positions of one document as of another, ascending."""
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


def named_generator(seed: int, *names: int | str) -> np.random.Generator:
    """A generator of random numbers for what the names say, whatever else is drawn."""
    text = "/".join(map(str, (seed, *names)))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def places_of(found: Sequence[tuple[int, Integers]]) -> Positions:
    """Positions of rows, one after the other."""
    if not found:
        return Positions(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    rows = np.repeat([row for row, _ in found], [len(positions) for _, positions in found])
    return Positions(torch.from_numpy(rows), torch.from_numpy(np.concatenate([own for _, own in found])))


def _run(positions: Integers, count: int, generator: np.random.Generator) -> Integers:
    """So many neighbours, from any start."""
    start = int(generator.integers(len(positions) - count + 1))
    return positions[start : start + count]


def _some(positions: Integers, count: int, generator: np.random.Generator) -> Integers:
    """So many of them, in order."""
    return np.sort(generator.choice(positions, count, replace=False))
