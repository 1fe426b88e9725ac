"""Loss terms on hidden states and attention maps, each reduced to one sum.

The mask is applied before the loss is computed. Masked positions, such as padding, affect neither the value
nor the gradient.

Shapes: B rows, T positions, N unmasked positions, D width, H heads, K keys.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from stlm_kd.distillation.terms import Term
from stlm_kd.errors import ModelError
from stlm_kd.losses import MAP_LOSSES, STATE_LOSSES
from stlm_kd.models.layer_alignment import Site
from stlm_kd.models.outputs import ModelOutputs

Projected = Literal["auto", "linear", "none"]
"""When the student's hidden states are projected: if the widths differ, always, or never."""


class TermProjections(nn.ModuleDict):
    """Learned projections of one term from the student's width to the teacher's, one per pair of layers.

    Args:
        pairs: The term's aligned layers. Checkpoints name a projection after its pair.
        student_width: Width of the student's hidden states.
        teacher_width: Width of the teacher's hidden states.
        how: ``auto`` creates no projection if the widths are equal.
        term: The term's name. It seeds the initialisation, which is therefore independent of other terms.
        seed: Random seed of the training.

    Raises:
        ModelError: ``how`` is ``none`` and the widths differ.
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
        """Project the student's hidden states to the teacher's width; identity without projections."""
        if not self.projected:
            return state_ND
        projection = self[_pair_name(pair)]
        assert isinstance(projection, nn.Linear)
        projected_ND = projection(state_ND.to(projection.weight.dtype))
        assert isinstance(projected_ND, Tensor)
        return projected_ND


class Projections(nn.ModuleDict):
    """The projections of all hidden-state terms, by term name, trained jointly with the student."""

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
        """A zero that depends on all projections of these terms, with gradient 0.

        Used in steps where a term is inactive: engines expect a gradient for every parameter.
        """
        names = {_module_name(term) for term in terms} & set(self)
        return sum((p.flatten()[:0].sum() for name in names for p in self[name].parameters()), 0.0)


def hidden_state_loss(
    term: Term, student: ModelOutputs, teacher: ModelOutputs, mask_BT: Tensor, projections: TermProjections
) -> Tensor:
    """Hidden-state loss averaged over pairs of layers and summed over the positions of a mask; a scalar.

    The term has a loss in ``STATE_LOSSES`` and at least one pair of layers. All its projections are used,
    even if the mask is empty.
    """
    loss = STATE_LOSSES[term.loss]
    sums = []
    for pair in term.pairs:
        student_ND = projections(student.states[pair[0]][mask_BT], pair)
        sums.append(loss(student_ND, teacher.states[pair[1]][mask_BT], **term.options).sum())
    return torch.stack(sums).mean()


def attention_loss(term: Term, student: ModelOutputs, teacher: ModelOutputs, mask_BT: Tensor) -> Tensor:
    """Attention-map loss averaged over pairs of layers and heads, summed over a mask's queries; a scalar.

    The term has a loss in ``MAP_LOSSES`` and at least one pair of layers. Heads are compared one to one if
    both models have the same number. Otherwise each model's attention probabilities are averaged over its
    heads first.
    """
    sums = []
    for student_layer, teacher_layer in term.pairs:
        assert isinstance(student_layer, int) and isinstance(teacher_layer, int)
        student_NHK = _queries(student.maps[student_layer], mask_BT)
        teacher_NHK = _queries(teacher.maps[teacher_layer], mask_BT)
        if student_NHK.shape[1] != teacher_NHK.shape[1]:
            student_NHK, teacher_NHK = _heads_averaged(student_NHK), _heads_averaged(teacher_NHK)
        values = MAP_LOSSES[term.loss](student_NHK.flatten(0, 1), teacher_NHK.flatten(0, 1), **term.options)
        sums.append(values.sum() / student_NHK.shape[1])
    return torch.stack(sums).mean()


def _queries(map_BHTK: Tensor, mask_BT: Tensor) -> Tensor:
    """Attention rows of the unmasked queries, (N, H, K)."""
    return map_BHTK.transpose(1, 2)[mask_BT]


def _heads_averaged(log_NHK: Tensor) -> Tensor:
    """Log of the mean probability over heads, (N, 1, K); -inf where every head has -inf."""
    nowhere_N1K = log_NHK.isneginf().all(1, keepdim=True)
    finite_NHK = log_NHK.masked_fill(nowhere_N1K, 0.0)  # avoids a NaN gradient
    mean_N1K = finite_NHK.logsumexp(1, keepdim=True) - math.log(log_NHK.shape[1])
    return mean_N1K.masked_fill(nowhere_N1K, float("-inf"))


def _pair_name(pair: tuple[Site, Site]) -> str:
    """Name of a pair's projection in checkpoints.

    >>> _pair_name((3, 11)), _pair_name(("last", "last"))
    ('layer3_to_layer11', 'last_to_last')
    """
    return "_to_".join(site if isinstance(site, str) else f"layer{site}" for site in pair)


def _module_name(term: str) -> str:
    """Module name of a term: dots, which module names cannot contain, become ``~``, unused in teacher names.

    >>> _module_name("hint@large.v2")
    'hint@large~v2'
    """
    return term.replace(".", "~")


def _linear(inputs: int, outputs: int, *, seed: str) -> nn.Linear:
    """Linear layer with PyTorch's default initialisation, drawn from its own generator."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(number)
    bound = inputs**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
