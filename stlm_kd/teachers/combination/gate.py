"""A gate that learns which teacher to trust where, from what the student makes of the text.

It is trained on the likelihood that the mixture gives to the labels, and on nothing else: a divergence would
draw it to the teacher that the student is nearest to already, and its own loss does not reach the student.

Shapes: N tokens, D width of the student, M teachers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

GATE = "gate"
"""The term that trains the gate, in metrics too."""

LEAST_LOG_PROB = -100.0
"""What a teacher gives to a label at least: of one that every teacher rules out there is nothing to learn."""


class Gate(nn.Module):
    """A score of each teacher, affine in the state that meets the student's head; at first 0, as the mean.

    Args:
        width: Of the state.
        teachers: Their names.
    """

    def __init__(self, width: int, teachers: Sequence[str]) -> None:
        super().__init__()
        self.teachers = tuple(teachers)
        self.scores = nn.Linear(width, len(teachers), device="meta").to_empty(device="cpu")
        nn.init.zeros_(self.scores.weight)
        nn.init.zeros_(self.scores.bias)

    def forward(self, hidden_ND: Tensor, teachers: Sequence[str]) -> Tensor:
        """The scores of some of the teachers, (N, M), of which the softmax are weights.

        Args:
            hidden_ND: Nothing is learnt by what made them.
            teachers: In this order.
        """
        chosen = [self.teachers.index(name) for name in teachers]
        with torch.autocast(hidden_ND.device.type, enabled=False):
            found_NM: Tensor = self.scores(hidden_ND.detach().to(self.scores.weight.dtype))
        return found_NM[:, chosen]

    def nothing(self) -> Tensor:
        """0, with a gradient of 0 for the gate: engines expect one for every parameter."""
        return self.scores.weight.flatten()[:0].sum() + self.scores.bias[:0].sum()


def gate_losses(scores_NM: Tensor, label_log_probs_NM: Tensor) -> Tensor:
    """-log Σ w p(label) at each token, (N,), in nats, with w the softmax of the scores."""
    told_NM = label_log_probs_NM.clamp(min=LEAST_LOG_PROB)
    return -(scores_NM.log_softmax(-1) + told_NM).logsumexp(-1)
