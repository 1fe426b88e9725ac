"""Which layer of a student answers to which layers of a teacher, and which of their states are compared.

Layers are blocks, counted from 0. The names are those of causal distillation (Wu et al., "Causal Distillation
for Language Models", 2022, section 3), where the state after a student's block stands for the states after
all the teacher's blocks that are aligned with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

from stlm_kd.errors import ModelError, did_you_mean

Site: TypeAlias = int | Literal["embeddings", "last"]
"""Where a state is read: after a block, counted from 0; what the first block meets; or the body's last hidden
state, after the final norm where the family has one."""

Alignment: TypeAlias = Mapping[int, tuple[int, ...]]
"""Student layer → the teacher's layers that it stands for, both ascending."""

Explicit: TypeAlias = Mapping[int, int | Sequence[int]]
"""Student layer → teacher layer or layers, as a recipe gives them."""

Choice: TypeAlias = str | Explicit
"""One of ``ALIGNMENTS``, or layers; for states also ``embeddings``."""

ALIGNMENTS = ("full", "middle", "late", "first", "last")


def aligned(choice: Choice, student_layers: int, teacher_layers: int) -> dict[int, tuple[int, ...]]:
    """The teacher's layers of each aligned student layer, ascending.

    - ``full``: all the teacher's layers, in equal runs: student layer s has k·s … k·s + k - 1, with k the
      ratio of the numbers of layers. Where that is no whole number the runs differ by one layer in length;
      none is skipped or used twice, and the teacher's top belongs to the student's top. A teacher of fewer
      layers than the student divides the student's layers into runs in the same way: each of its layers
      belongs to the top of its run, and the student's other layers stand for none.
    - ``middle``: the layer at half the depth of each.
    - ``late``: the two layers below the last of each.
    - ``first``, ``last``: the first or last layer of each.

    >>> aligned("full", 3, 6)
    {0: (0, 1), 1: (2, 3), 2: (4, 5)}
    >>> aligned("full", 3, 7)
    {0: (0, 1), 1: (2, 3), 2: (4, 5, 6)}
    >>> aligned("full", 5, 2)
    {1: (0,), 4: (1,)}
    >>> aligned("late", 6, 12)
    {3: (9,), 4: (10,)}
    >>> aligned({4: [9, 10], 2: 5}, 6, 12)
    {2: (5,), 4: (9, 10)}

    Args:
        choice: A name, or layers; of these a later one of the student must not stand for an earlier one of
            the teacher.
        student_layers: How many the student has.
        teacher_layers: How many the teacher has.

    Raises:
        ModelError: The name is unknown, a layer is in neither model, or they cross.
    """
    if not isinstance(choice, str):
        return _explicit(choice, student_layers, teacher_layers)
    if choice == "full":
        return _full(student_layers, teacher_layers)
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
    """Pairs of a student's and a teacher's block, such as those whose attention maps are compared.

    A student layer is paired with the top one of the teacher's layers that it stands for, so that the
    teacher's top counts. No pair comes twice.

    >>> layer_pairs("full", 2, 6)
    ((0, 2), (1, 5))
    >>> layer_pairs(["last", "full"], 2, 6)
    ((1, 5), (0, 2))

    Raises:
        ModelError: As ``aligned`` does; or ``embeddings`` are asked for, which are no layer.
    """
    pairs: dict[tuple[int, int], None] = {}
    for choice in _several(choices):
        if choice == "embeddings":
            raise ModelError(f"embeddings are no layer; use {', '.join(ALIGNMENTS)} or layers")
        alignment = aligned(choice, student_layers, teacher_layers)
        pairs |= dict.fromkeys((layer, tops[-1]) for layer, tops in alignment.items())
    return tuple(pairs)


def site_pairs(
    choices: Choice | Sequence[Choice], student_layers: int, teacher_layers: int
) -> tuple[tuple[Site, Site], ...]:
    """Pairs of a student's and a teacher's state that are compared.

    As ``layer_pairs``, of the states after the blocks; but ``last`` is the bodies' last hidden states, after
    the final norm, and ``embeddings`` what the first blocks meet.

    >>> site_pairs(["embeddings", "middle", "last"], 4, 12)
    (('embeddings', 'embeddings'), (2, 6), ('last', 'last'))

    Raises:
        ModelError: As ``aligned`` does.
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
    if isinstance(choices, (str, Mapping)):
        return [choices]
    return choices


def _full(student_layers: int, teacher_layers: int) -> dict[int, tuple[int, ...]]:
    if student_layers > teacher_layers:
        return {run[-1]: (layer,) for layer, run in enumerate(_runs(student_layers, teacher_layers))}
    return dict(enumerate(_runs(teacher_layers, student_layers)))


def _runs(layers: int, count: int) -> list[tuple[int, ...]]:
    """All layers in so many runs of about equal length, the longer ones towards the top."""
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
    rows = list(alignment.items())
    for (lower, below), (upper, above) in pairwise(rows):
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
