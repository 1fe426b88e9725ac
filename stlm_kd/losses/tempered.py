"""Logits whose softmax at a temperature several losses share.

Shapes: N tokens, C outcomes.
"""

from __future__ import annotations

from torch import Tensor


class TemperedLogits:
    """Logits and their log-probabilities at the temperatures asked for; shared, so not to be written to.

    Args:
        logits_NC: Shape (N, C). They are written over, so that at temperature 1 no second tensor is needed.
    """

    def __init__(self, logits_NC: Tensor) -> None:
        self._shifted_NC = logits_NC
        self._shift_N1: Tensor | None = None
        self._log_probs: dict[float, Tensor] = {}

    @classmethod
    def of_log_probs(cls, log_probs_NC: Tensor, temperature: float) -> TemperedLogits:
        """What has these log-probabilities at the temperature; its logits are known up to a constant."""
        softened = cls(log_probs_NC if temperature == 1.0 else log_probs_NC * temperature)
        softened._log_probs[temperature] = log_probs_NC
        return softened

    @property
    def logits(self) -> Tensor:
        """Of shape (N, C)."""
        return self._shifted_NC if self._shift_N1 is None else self._shifted_NC + self._shift_N1

    def log_probs(self, temperature: float) -> Tensor:
        """Log-probabilities of shape (N, C) at the temperature."""
        if temperature == 1.0 and 1.0 not in self._log_probs:
            self._shift_N1 = self._shifted_NC.logsumexp(-1, keepdim=True)
            self._log_probs[1.0] = self._shifted_NC.sub_(self._shift_N1)
        if temperature not in self._log_probs:
            softened_NC = self._shifted_NC / temperature
            self._log_probs[temperature] = softened_NC.sub_(softened_NC.logsumexp(-1, keepdim=True))
        return self._log_probs[temperature]
