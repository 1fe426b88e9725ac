"""A fixed number of masks for each row, so that a teacher's outputs for a masked row can be cached.

By default the masks of a step are drawn over all its rows together and never repeat. With a cached teacher,
each row is masked independently, by its number and a variant's number alone; the variant is drawn for each
row and epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stlm_kd.data.batch import Integers

_MASKS, _CHOICE = 101, 102  # purpose of a random generator, part of its seed


def variant_generators(rows: Integers, variants: Integers) -> Iterator[np.random.Generator]:
    """The generator of each row's masks under its variant: the same for all training seeds."""
    for row, variant in zip(rows.tolist(), variants.tolist(), strict=True):
        yield np.random.default_rng([_MASKS, row, variant])


def chosen_variants(seed: int, epoch: int, *, rows: int, variants: int) -> Integers:
    """The mask variant of each row in an epoch, (rows,)."""
    return np.random.default_rng([seed, epoch, _CHOICE]).integers(variants, size=rows)
