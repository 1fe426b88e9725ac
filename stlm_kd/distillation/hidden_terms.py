"""The terms of an objective that compare hidden states or attention maps: one sum for each.

Rows that count are chosen before anything is computed, so that nothing of the others, padding above all,
reaches a value or a gradient.

Shapes: B rows, T positions, N positions that count, D width, H heads, K keys.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from stlm_kd.errors import ModelError
from stlm_kd.losses.attention import MAP_LOSSES
from stlm_kd.losses.hidden import STATE_LOSSES
from stlm_kd.models.layer_alignment import Site
from stlm_kd.models.outputs import ModelOutputs

Projected = Literal["auto", "linear", "none"]
"""Whether a student's states are projected: where the widths differ, always, or never."""

Options = Mapping[str, object]
"""Keyword arguments of a loss."""

_NO_OPTIONS: Options = {}


class TermProjections(nn.ModuleDict):
    """One term's learned maps from the student's width to the teacher's, one for each pair of states.

    Args:
        pairs: The term's pairs; a pair's projection is named after it in checkpoints.
        student_width: Of its states.
        teacher_width: Of its states.
        how: ``auto`` makes none where the widths agree.
        term: Its name, by which its projections are drawn, whatever other terms there are.
        seed: Of the training.

    Raises:
        ModelError: ``none`` is asked for, and the widths differ.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[Site, Site]],
        student_width: int,
        teacher_width: int,
        *,
        how: Projected = "auto",
        term: str,
        seed: int,
    ) -> None:
        super().__init__()
        if how == "none" and student_width != teacher_width:
            raise ModelError(
                f"none, but the student's states are {student_width} wide and the teacher's "
                f"{teacher_width}; use auto or linear"
            )
        self.projected = how == "linear" or student_width != teacher_width
        for pair in pairs if self.projected else ():
            name = _pair_name(pair)
            self[name] = _linear(student_width, teacher_width, seed=f"{seed}/{term}/{name}")

    def forward(self, state_ND: Tensor, pair: tuple[Site, Site]) -> Tensor:
        """The student's state in the teacher's width; as it is where nothing is projected."""
        if not self.projected:
            return state_ND
        projection = self[_pair_name(pair)]
        assert isinstance(projection, nn.Linear)
        projected_ND = projection(state_ND.to(projection.weight.dtype))
        assert isinstance(projected_ND, Tensor)
        return projected_ND


class Projections(nn.ModuleDict):
    """The projections of all terms on hidden states, which are trained with the student.

    Args:
        terms: By the term's name; None: there are none.
    """

    def __init__(self, terms: Mapping[str, TermProjections] | None = None) -> None:
        super().__init__()
        for name, projections in (terms or {}).items():
            key = _module_name(name)
            assert key not in self, f"two terms whose projections are {key}"
            self[key] = projections

    def of(self, term: str) -> TermProjections:
        """The term's projections."""
        projections = self[_module_name(term)]
        assert isinstance(projections, TermProjections)
        return projections

    def nothing(self, terms: Collection[str]) -> Tensor | float:
        """0, which nevertheless depends on all projections of these terms, with gradient 0.

        For steps in which a term rests: engines expect a gradient for every parameter.
        """
        names = {_module_name(term) for term in terms} & set(self)
        return sum((p.flatten()[:0].sum() for name in names for p in self[name].parameters()), 0.0)


def hidden_state_loss(
    loss: str,
    pairs: Sequence[tuple[Site, Site]],
    student: ModelOutputs,
    teacher: ModelOutputs,
    mask_BT: Tensor,
    projections: TermProjections,
    options: Options = _NO_OPTIONS,
) -> Tensor:
    """Σ over the positions under the mask of the mean over pairs of a loss of hidden states; a scalar.

    Args:
        loss: Name in ``STATE_LOSSES``.
        pairs: Sites of the student and of the teacher; at least one.
        student: Holds its sites of the pairs.
        teacher: Holds its own.
        mask_BT: The positions that count.
        projections: The term's; every one of them is used, also where no position counts.
        options: Of the loss.
    """
    values_N = [
        STATE_LOSSES[loss](
            projections(student.states[pair[0]][mask_BT], pair), teacher.states[pair[1]][mask_BT], **options
        )
        for pair in pairs
    ]
    return torch.stack([value_N.sum() for value_N in values_N]).mean()


def attention_loss(
    loss: str,
    pairs: Sequence[tuple[int, int]],
    student: ModelOutputs,
    teacher: ModelOutputs,
    mask_BT: Tensor,
    options: Options = _NO_OPTIONS,
) -> Tensor:
    """Σ over the queries under the mask of the mean over pairs and heads of a loss of maps; a scalar.

    Heads are compared one by one where both have as many of them; else each side's probabilities are averaged
    over its heads first.

    Args:
        loss: Name in ``MAP_LOSSES``.
        pairs: Layers of the student and of the teacher; at least one.
        student: Holds its maps of the pairs.
        teacher: Holds its own.
        mask_BT: The queries that count.
        options: Of the loss.
    """
    sums = []
    for student_layer, teacher_layer in pairs:
        student_NHK = _queries(student.maps[student_layer], mask_BT)
        teacher_NHK = _queries(teacher.maps[teacher_layer], mask_BT)
        if student_NHK.shape[1] != teacher_NHK.shape[1]:
            student_NHK, teacher_NHK = _heads_averaged(student_NHK), _heads_averaged(teacher_NHK)
        values = MAP_LOSSES[loss](student_NHK.flatten(0, 1), teacher_NHK.flatten(0, 1), **options)
        sums.append(values.sum() / student_NHK.shape[1])
    return torch.stack(sums).mean()


def _queries(map_BHTK: Tensor, mask_BT: Tensor) -> Tensor:
    """The rows of the queries under the mask, (N, H, K)."""
    return map_BHTK.transpose(1, 2)[mask_BT]


def _heads_averaged(log_NHK: Tensor) -> Tensor:
    """Log of the mean of the heads' probabilities, (N, 1, K); -inf where all of them have it."""
    nowhere_N1K = log_NHK.isneginf().all(1, keepdim=True)
    finite_NHK = log_NHK.masked_fill(nowhere_N1K, 0.0)  # its gradient would not be a number
    mean_N1K = finite_NHK.logsumexp(1, keepdim=True) - math.log(log_NHK.shape[1])
    return mean_N1K.masked_fill(nowhere_N1K, float("-inf"))


def _pair_name(pair: tuple[Site, Site]) -> str:
    """A pair as checkpoints name its projection.

    >>> _pair_name((3, 11)), _pair_name(("last", "last"))
    ('layer3_to_layer11', 'last_to_last')
    """
    return "_to_".join(site if isinstance(site, str) else f"layer{site}" for site in pair)


def _module_name(term: str) -> str:
    """A term's name as the name of a module, which has no dots; no teacher's name has what stands for them.

    >>> _module_name("hint@large.v2")
    'hint@large~v2'
    """
    return term.replace(".", "~")


def _linear(inputs: int, outputs: int, *, seed: str) -> nn.Linear:
    """Drawn as PyTorch draws its layers, but from a generator of its own."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(number)
    bound = inputs**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
