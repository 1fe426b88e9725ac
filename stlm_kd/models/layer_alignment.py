"""Alignment of student and teacher layers, and the pairs of hidden states to compare.

Layers are blocks, counted from 0. The names are those of causal distillation (Wu et al., "Causal Distillation
for Language Models", 2022, section 3): hidden states after a student block correspond to those after all
teacher blocks aligned with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

from stlm_kd.errors import ModelError, did_you_mean

Site: TypeAlias = int | Literal["embeddings", "last"]
"""Location of hidden states: after a block, counted from 0; the input of the first block; or the body's last
hidden states, after the final norm if the family has one."""

Alignment: TypeAlias = Mapping[int, tuple[int, ...]]
"""Student layer → aligned teacher layers, both ascending."""

Explicit: TypeAlias = Mapping[int, int | Sequence[int]]
"""Student layer → teacher layer or layers, as in a recipe."""

Choice: TypeAlias = str | Explicit
"""One of ``ALIGNMENTS``, or explicit layers; for hidden states also ``embeddings``."""

ALIGNMENTS = ("full", "middle", "late", "first", "last")


def aligned(choice: Choice, student_layers: int, teacher_layers: int) -> dict[int, tuple[int, ...]]:
    """The teacher layers aligned with each student layer, ascending.

    - ``full``: all teacher layers, in contiguous groups of equal size: student layer s has layers k·s … k·s +
      k - 1, where k is the ratio of the numbers of layers. If k is not an integer, group sizes differ by one;
      no layer is skipped or repeated, and the top layers are aligned. If the teacher has fewer layers than
      the student, the student's layers are grouped in the same way: each teacher layer is aligned with the
      top of its group, and the student's other layers are unaligned.
    - ``middle``: the layer at half the depth of each model.
    - ``late``: the two layers below the last of each model.
    - ``first``, ``last``: the first or last layer of each model.

    Explicit layers must be monotonic in both models. Raises ``ModelError`` if the name is unknown, a layer
    does not exist, or the alignment crosses.

    >>> aligned("full", 3, 7)
    {0: (0, 1), 1: (2, 3), 2: (4, 5, 6)}
    >>> aligned("full", 5, 2)
    {1: (0,), 4: (1,)}
    >>> aligned("late", 6, 12)
    {3: (9,), 4: (10,)}
    >>> aligned({4: [9, 10], 2: 5}, 6, 12)
    {2: (5,), 4: (9, 10)}
    """
    if not isinstance(choice, str):
        return _explicit(choice, student_layers, teacher_layers)
    if choice == "full":
        if student_layers > teacher_layers:
            return {run[-1]: (layer,) for layer, run in enumerate(_runs(student_layers, teacher_layers))}
        return dict(enumerate(_runs(teacher_layers, student_layers)))
    if choice == "middle":
        return {student_layers // 2: (teacher_layers // 2,)}
    if choice == "late":
        return _late(student_layers, teacher_layers)
    if choice == "first":
        return {0: (0,)}
    if choice == "last":
        return {student_layers - 1: (teacher_layers - 1,)}
    raise ModelError(f"{choice!r} is not a known alignment{did_you_mean(choice, ALIGNMENTS)}")


def layer_pairs(
    choices: Choice | Sequence[Choice], student_layers: int, teacher_layers: int
) -> tuple[tuple[int, int], ...]:
    """Pairs of student and teacher blocks, such as those whose attention maps are compared.

    A student layer is paired with the top one of its aligned teacher layers, so that the teacher's top layer
    is included. Pairs are unique. Raises ``ModelError`` as ``aligned``, and for ``embeddings``, no layer.

    >>> layer_pairs(["last", "full"], 2, 6)
    ((1, 5), (0, 2))
    """
    pairs: dict[tuple[int, int], None] = {}
    for choice in _several(choices):
        if choice == "embeddings":
            raise ModelError(f"embeddings are not a layer; use {', '.join(ALIGNMENTS)} or layers")
        alignment = aligned(choice, student_layers, teacher_layers)
        pairs |= dict.fromkeys((layer, tops[-1]) for layer, tops in alignment.items())
    return tuple(pairs)


def site_pairs(
    choices: Choice | Sequence[Choice], student_layers: int, teacher_layers: int
) -> tuple[tuple[Site, Site], ...]:
    """Pairs of student and teacher hidden states to compare.

    As ``layer_pairs``, for the hidden states after the blocks; but ``last`` means the last hidden states of
    the bodies, after the final norm, and ``embeddings`` the inputs of the first blocks.

    >>> site_pairs(["embeddings", "middle", "last"], 4, 12)
    (('embeddings', 'embeddings'), (2, 6), ('last', 'last'))
    """
    pairs: dict[tuple[Site, Site], None] = {}
    for choice in _several(choices):
        if choice == "embeddings":
            pairs["embeddings", "embeddings"] = None
        elif choice == "last":
            pairs["last", "last"] = None
        else:
            pairs |= dict.fromkeys(layer_pairs(choice, student_layers, teacher_layers))
    return tuple(pairs)


def _several(choices: Choice | Sequence[Choice]) -> Sequence[Choice]:
    return [choices] if isinstance(choices, (str, Mapping)) else choices


def _runs(layers: int, count: int) -> list[tuple[int, ...]]:
    """Split the layers into contiguous groups of about equal size, larger ones towards the top."""
    return [tuple(range(i * layers // count, (i + 1) * layers // count)) for i in range(count)]


def _late(student_layers: int, teacher_layers: int) -> dict[int, tuple[int, ...]]:
    for who, layers in (("student", student_layers), ("teacher", teacher_layers)):
        if layers < 3:
            raise ModelError(
                f"late means the two layers below the last, but the {who} has {layers} "
                f"layer{'s' if layers > 1 else ''}; use a {who} of at least 3, or full, middle or last"
            )
    return {student_layers - 3: (teacher_layers - 3,), student_layers - 2: (teacher_layers - 2,)}


def _explicit(choice: Explicit, student_layers: int, teacher_layers: int) -> dict[int, tuple[int, ...]]:
    if not choice:
        raise ModelError("no layer given; use {student layer: teacher layer or layers}")
    alignment: dict[int, tuple[int, ...]] = {}
    for layer, teachers in sorted(choice.items()):
        alignment[layer] = (teachers,) if isinstance(teachers, int) else tuple(teachers)
        _check_layers("student", [layer], student_layers)
        _check_layers("teacher", alignment[layer], teacher_layers)
    for (lower, below), (upper, above) in pairwise(alignment.items()):
        if above[0] < below[-1]:
            raise ModelError(
                f"student layer {lower} has teacher layer {below[-1]}, and student layer {upper}, "
                f"above it, has {above[0]}; give later student layers the same or later teacher layers"
            )
    return alignment


def _check_layers(who: str, layers: Sequence[int], count: int) -> None:
    if not layers or list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < count:
        given = ", ".join(map(str, layers)) or "no layer"
        raise ModelError(
            f"{who} layers {given} given, but the {who} has {count}; "
            f"use different indices 0 to {count - 1} in ascending order"
        )
