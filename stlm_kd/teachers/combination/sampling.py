"""Which teachers the mixture of an optimizer step is made of: the others are not run for it.

Everything is a function of the seed, the step and the row: a resumed run draws what an uninterrupted one
draws, and so does any split into micro-batches and processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stlm_kd.interventions.draw import named_generator
from stlm_kd.teachers.combination.features import OF_TOKENS, WeightingFeatures
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.combination.weighting import COMBINERS


def active_teachers(
    combination: Combination, teachers: Sequence[str], *, index: int, progress: float
) -> tuple[str, ...]:
    """Those that weigh something in a step and are not left out by chance; at least one.

    Args:
        combination: How teachers become one, and how likely each is left out.
        teachers: All of them.
        index: The optimizer step.
        progress: The share of the training that is done.
    """
    weighing = _weighing(combination, tuple(teachers), index, progress)
    if not combination.teacher_dropout:
        return weighing
    generator = named_generator(combination.seed, "teacher dropout", index)
    numbers = dict(zip(teachers, generator.random(len(teachers)).tolist(), strict=True))
    left = tuple(name for name in weighing if numbers[name] >= combination.teacher_dropout)
    return left or (weighing[int(generator.integers(len(weighing)))],)


def routing_draws(combination: Combination, example_ids_B: Tensor, *, index: int) -> Tensor | None:
    """A number from 0 to 1 for each row; the same one for all, or None, where that is what is asked for."""
    needs = COMBINERS.needs(combination.how, combination.options)
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
    """Those of a weight above 0, where all tokens of a step have the same; else all."""
    if COMBINERS.needs(combination.how, combination.options) & OF_TOKENS:
        return teachers
    evidence = WeightingFeatures(
        teachers,
        torch.zeros(1, len(teachers)),
        progress=progress,
        drawn=torch.tensor([_of_step(combination, index)], dtype=torch.float32),
    )
    weights_1M = COMBINERS[combination.how](evidence, **combination.options)
    return tuple(name for name, weight in zip(teachers, weights_1M[0].tolist(), strict=True) if weight > 0)
