"""Teacher dropout and random routing: the teachers in the mixture of an optimizer step. Others do not run.

All draws are functions of the seed, the step and the row, so they do not depend on a resume or on the split
into micro-batches and processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stlm_kd.interventions.draw import named_generator
from stlm_kd.lazy import torch
from stlm_kd.teachers.combination.features import OF_TOKENS, WeightingFeatures
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.combination.weighting import COMBINERS

if TYPE_CHECKING:
    from torch import Tensor


def active_teachers(
    combination: Combination, teachers: Sequence[str], *, index: int, progress: float
) -> tuple[str, ...]:
    """The teachers with nonzero weight in step ``index`` after teacher dropout, in order; at least one."""
    weighing = _weighing(combination, tuple(teachers), index, progress)
    if not combination.teacher_dropout:
        return weighing
    generator = named_generator(combination.seed, "teacher dropout", index)
    numbers = dict(zip(teachers, generator.random(len(teachers)).tolist(), strict=True))
    left = tuple(name for name in weighing if numbers[name] >= combination.teacher_dropout)
    return left or (weighing[int(generator.integers(len(weighing)))],)


def routing_draws(combination: Combination, example_ids_B: Tensor, *, index: int) -> Tensor | None:
    """Uniform random numbers per row, one for all rows, or None, as the combiner needs."""
    needs = COMBINERS[combination.how].needs_with(combination.options)
    if "step_draw" in needs:
        return example_ids_B.new_full(example_ids_B.shape, _of_step(combination, index), dtype=torch.float32)
    if "row_draw" not in needs:
        return None
    numbers = [
        named_generator(combination.seed, "teacher of a row", index, row).random()
        for row in example_ids_B.tolist()
    ]
    return torch.tensor(numbers, dtype=torch.float32, device=example_ids_B.device)


def _of_step(combination: Combination, index: int) -> float:
    return float(named_generator(combination.seed, "teacher of a step", index).random())


def _weighing(
    combination: Combination, teachers: tuple[str, ...], index: int, progress: float
) -> tuple[str, ...]:
    """The teachers with nonzero weight if weights are the same for all tokens of a step; otherwise all."""
    if COMBINERS[combination.how].needs_with(combination.options) & OF_TOKENS:
        return teachers
    evidence = WeightingFeatures(
        teachers,
        torch.zeros(1, len(teachers)),
        progress=progress,
        drawn=torch.tensor([_of_step(combination, index)], dtype=torch.float32),
    )
    weights_1M = COMBINERS[combination.how](evidence, **combination.options)
    return tuple(name for name, weight in zip(teachers, weights_1M[0].tolist(), strict=True) if weight > 0)
