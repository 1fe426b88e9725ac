"""A gating layer that learns teacher weights per token from the student's hidden states.

It is trained only on the likelihood of the labels under the mixture: a divergence would favour the teacher
that is closest to the student already. Its loss does not reach the student. Shapes: N tokens, D width of the
student, M teachers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

GATE = "gate"
"""Name of the term that trains the gate, also in metrics."""

LEAST_LOG_PROB = -100.0
"""Lower bound of label log-probabilities: a label ruled out by every teacher yields no gradient."""


class Gate(nn.Module):
    """A linear layer from the student's hidden state before the head to a score per teacher, at first 0."""

    def __init__(self, width: int, teachers: Sequence[str]) -> None:
        super().__init__()
        self.teachers = tuple(teachers)
        self.scores = nn.Linear(width, len(teachers), device="meta").to_empty(device="cpu")
        nn.init.zeros_(self.scores.weight)
        nn.init.zeros_(self.scores.bias)

    def forward(self, hidden_ND: Tensor, teachers: Sequence[str]) -> Tensor:
        """Scores of the given teachers, (N, M), before the softmax; no gradient reaches the hidden states."""
        chosen = [self.teachers.index(name) for name in teachers]
        with torch.autocast(hidden_ND.device.type, enabled=False):
            found_NM: Tensor = self.scores(hidden_ND.detach().to(self.scores.weight.dtype))
        return found_NM[:, chosen]

    def nothing(self) -> Tensor:
        """A zero with gradient 0 for the gate: engines expect a gradient for every parameter."""
        return self.scores.weight.flatten()[:0].sum() + self.scores.bias[:0].sum()


def gate_losses(scores_NM: Tensor, label_log_probs_NM: Tensor) -> Tensor:
    """-log Σ w p(label) at each token, (N,), in nats, with w the softmax of the scores."""
    clamped_NM = label_log_probs_NM.clamp(min=LEAST_LOG_PROB)
    return -(scores_NM.log_softmax(-1) + clamped_NM).logsumexp(-1)
