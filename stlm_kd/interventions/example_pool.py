"""Pools of all training rows, from which sources outside the batch are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stlm_kd.data.batch import Batch, FlatRows
from stlm_kd.data.batches import PackedRows
from stlm_kd.data.labelled.batches import EncodedExamples, ExampleBatch
from stlm_kd.data.masking import Masking


class TextPool:
    """Rows of packed documents, numbered as in ``BatchStream``; none of weight 0, masked like bases."""

    def __init__(self, parts: Sequence[PackedRows], masking: Masking | None = None) -> None:
        self._masking = masking
        starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        own = [(part, start) for part, start in zip(parts, starts, strict=False) if part.weight > 0]
        self._parts = [part for part, _ in own]
        self._begins = np.cumsum([0, *(len(part) for part in self._parts)])
        self._shifts = [start - begin for (_, start), begin in zip(own, self._begins.tolist(), strict=False)]

    def __len__(self) -> int:
        return int(self._begins[-1])

    def number(self, place: int) -> int:
        return place + int(self._shifts[self._part_of(place)])

    def batch(self, places: Sequence[int], generators: Sequence[np.random.Generator]) -> Batch:
        arrays = FlatRows.padding(len(places), self._parts[0].context, self._parts[0].store.eos_id)
        for row, place in enumerate(places):
            index = self._part_of(place)
            own = np.array([place - int(self._begins[index])])
            arrays.put(np.array([row]), self._parts[index].arrays(own))
        if self._masking is not None:
            arrays = self._masking.apart(arrays, generators)
        return arrays.batch(np.array([self.number(place) for place in places], np.int64))

    def _part_of(self, place: int) -> int:
        return int(np.searchsorted(self._begins, place, side="right")) - 1


class ExamplePool:
    """Pool of labelled examples."""

    def __init__(self, examples: EncodedExamples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def number(self, place: int) -> int:
        return place

    def batch(self, places: Sequence[int], generators: Sequence[np.random.Generator]) -> ExampleBatch:
        return self._examples.batch(np.array(places, np.int64))
