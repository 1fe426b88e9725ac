"""A fixed number of masks for each row, so that what a teacher says of a masked row can be stored.

Usually the masks of a step are drawn over all its rows together and never come again. Where a teacher is
cached, each row is masked for itself, by its number and that of a variant alone; which variant comes is drawn
for each row and epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stlm_kd.data.batch import Integers

_MASKS, _CHOICE = 101, 102  # what a random generator is for


def variant_generators(rows: Integers, variants: Integers) -> Iterator[np.random.Generator]:
    """For each row under its variant, what draws its masks: the same for all seeds of a training."""
    for row, variant in zip(rows.tolist(), variants.tolist(), strict=True):
        yield np.random.default_rng([_MASKS, row, variant])


def chosen_variants(seed: int, epoch: int, *, rows: int, variants: int) -> Integers:
    """The variant under which each row comes in an epoch, (rows,)."""
    return np.random.default_rng([seed, epoch, _CHOICE]).integers(variants, size=rows)
