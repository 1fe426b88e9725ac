"""Logits with log-probabilities at several temperatures, shared by losses. Shapes: N tokens, C classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class TemperedLogits:
    """Logits and their log-probabilities, cached by temperature; shared, so callers must not modify them.

    Args:
        logits_NC: Logits (N, C). They are overwritten, so that temperature 1 needs no second tensor.
    """

    def __init__(self, logits_NC: Tensor) -> None:
        self._shifted_NC = logits_NC
        self._shift_N1: Tensor | None = None
        self._log_probs: dict[float, Tensor] = {}

    @classmethod
    def of_log_probs(cls, log_probs_NC: Tensor, temperature: float) -> TemperedLogits:
        """Create from log-probabilities at a temperature; the logits are known up to a constant."""
        softened = cls(log_probs_NC if temperature == 1.0 else log_probs_NC * temperature)
        softened._log_probs[temperature] = log_probs_NC
        return softened

    @property
    def logits(self) -> Tensor:
        """Logits (N, C)."""
        return self._shifted_NC if self._shift_N1 is None else self._shifted_NC + self._shift_N1

    def log_probs(self, temperature: float) -> Tensor:
        """Log-probabilities (N, C) at a temperature."""
        if temperature == 1.0 and 1.0 not in self._log_probs:
            self._shift_N1 = self._shifted_NC.logsumexp(-1, keepdim=True)
            self._log_probs[1.0] = self._shifted_NC.sub_(self._shift_N1)
        if temperature not in self._log_probs:
            softened_NC = self._shifted_NC / temperature
            self._log_probs[temperature] = softened_NC.sub_(softened_NC.logsumexp(-1, keepdim=True))
        return self._log_probs[temperature]
