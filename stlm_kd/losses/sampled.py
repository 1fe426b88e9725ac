"""Sparse targets: a top-k head with a sampled tail, and the losses on them.

A plain top-k target is biased. Head and sampled tail together are an unbiased estimate of the distribution,
so a loss that is linear in the teacher's probabilities has the correct expectation and gradient. Shapes: N
tokens, H entries of the head, M draws from the tail, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stlm_kd.lazy import functional, torch
from stlm_kd.losses.precision import at_least_float32
from stlm_kd.losses.table import (
    SPARSE_LOSSES,
    SPARSE_SLOPES,
    Temperature,
    TemperatureScaling,
    temperature_factor,
)
from stlm_kd.losses.tempered import TemperedLogits

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TopKTail:
    """A teacher's distribution at one temperature: top-k head and samples from the tail.

    Attributes:
        ids: Token ids, (N, H + M), or (B, T, H + M) before tokens are selected: the H distinct ids of the
            head, then M draws from the others, with replacement, in proportion to their probability.
        log_probs: Log-probabilities of the head, (N, H).
        tail: Log of the total probability outside the head, (N,). Each draw represents 1/M of it; its
            importance weight is this divided by its own probability.
        entropy: Entropy of the full distribution in nats, (N,).
        temperature: Temperature of all of these.
        vocabulary: Number of real tokens; ids from here on are padding with probability 0.
        label_log_probs: Log-probability of each token's label, (N,), for teacher weights; None if not stored.
            Arbitrary where a token has no label.
    """

    ids: Tensor
    log_probs: Tensor
    tail: Tensor
    entropy: Tensor
    temperature: float
    vocabulary: int
    label_log_probs: Tensor | None = None

    def rows(self, chosen: Tensor | slice) -> TopKTail:
        """Select tokens by mask, indices or slice."""
        return self.map(lambda part: part[chosen])

    def to(self, device: torch.device) -> TopKTail:
        """The same target on a device."""
        return self.map(lambda part: part.to(device, non_blocking=True))

    def map(self, change: Callable[[Tensor], Tensor]) -> TopKTail:
        """Apply a function to every tensor."""
        own = {name: getattr(self, name) for name in TENSORS}
        changed: dict[str, Any] = {name: change(part) for name, part in own.items() if part is not None}
        return replace(self, **changed)

    def masses(self) -> Tensor:
        """The probability mass of each entry of ``ids``, (N, H + M)."""
        draws = self.ids.shape[-1] - self.log_probs.shape[-1]
        tail_N = at_least_float32(self.tail).exp()
        shared_NM = (tail_N / max(draws, 1))[:, None].expand(-1, draws)
        return torch.cat([at_least_float32(self.log_probs).exp(), shared_NM], dim=-1)

    def spread(self, outcomes: int) -> Tensor:
        """Dense log-probabilities, (N, outcomes): the head, and the tail spread evenly over all other tokens.

        For losses that are not linear in the teacher's probabilities. They have no unbiased estimate; this
        one gives every token a nonzero probability.
        """
        head = self.log_probs.shape[-1]
        each_N1 = at_least_float32(self.tail)[:, None] - math.log(max(self.vocabulary - head, 1))
        log_NC = each_N1.repeat(1, outcomes)
        log_NC[:, self.vocabulary :] = -torch.inf
        return log_NC.scatter_(-1, self.ids[:, :head], at_least_float32(self.log_probs))

    def check(self, temperature: float) -> None:
        """Raise ValueError if a temperature is not the target's."""
        if temperature != self.temperature:
            raise ValueError(
                f"a sparse target at temperature {self.temperature:g} cannot serve a loss at {temperature:g}"
            )


TENSORS = ("ids", "log_probs", "tail", "entropy", "label_log_probs")
"""The tensors of a ``TopKTail``."""


@dataclass(frozen=True, slots=True)
class FullDistribution:
    """A dense distribution in a mixture with sparse ones.

    Attributes:
        log_probs: Log-probabilities of all classes, (N, C), -inf where ruled out.
        temperature: Their temperature.
    """

    log_probs: Tensor
    temperature: float

    @property
    def ids(self) -> Tensor:
        """All class ids at each token, (N, C), as an expanded view."""
        tokens, outcomes = self.log_probs.shape
        return torch.arange(outcomes, device=self.log_probs.device).expand(tokens, outcomes)

    @property
    def entropy(self) -> Tensor:
        """Entropy in nats, (N,)."""
        entropy_N: Tensor = torch.special.entr(self.masses()).sum(-1)
        return entropy_N

    def masses(self) -> Tensor:
        """The probabilities, (N, C)."""
        return at_least_float32(self.log_probs).exp()

    def check(self, temperature: float) -> None:
        """As ``TopKTail.check``."""
        assert temperature == self.temperature


@dataclass(frozen=True, slots=True)
class TargetMixture:
    """The mixture Σ w p of several targets, some sparse: their entries concatenated, with duplicate ids.

    Attributes:
        targets: M targets of one temperature.
        weights: Weights (N, M) that sum to one at each token.
    """

    targets: Sequence[TopKTail | FullDistribution]
    weights: Tensor

    @property
    def ids(self) -> Tensor:
        """Token ids, (N, entries)."""
        return torch.cat([target.ids for target in self.targets], dim=-1)

    @property
    def entropy(self) -> Tensor:
        """Σ w H of the targets' entropies, (N,), in nats.

        The entropy of the mixture is unknown. It is larger by the targets' generalised Jensen-Shannon
        divergence, which does not depend on the student: a loss that uses this value has the same gradient.
        """
        return sum(
            (
                weight_N * at_least_float32(target.entropy)
                for target, weight_N in zip(self.targets, self.weights.unbind(-1), strict=True)
            ),
            self.weights.new_zeros(()),
        )

    def masses(self) -> Tensor:
        """The probability mass of each entry of ``ids``, (N, entries)."""
        pairs = zip(self.targets, self.weights.unbind(-1), strict=True)
        return torch.cat([target.masses() * weight_N[:, None] for target, weight_N in pairs], dim=-1)

    def check(self, temperature: float) -> None:
        """As ``TopKTail.check``, for each target."""
        for target in self.targets:
            target.check(temperature)


@SPARSE_LOSSES.register("forward_kl")
def sparse_forward_kl(
    student_NC: Tensor,
    target: TopKTail | TargetMixture,
    /,
    *,
    temperature: Temperature = 1.0,
    temperature_scaling: TemperatureScaling = "t2",
) -> Tensor:
    """Unbiased estimate of ``forward_kl`` at each token, (N,), in nats; single estimates may be negative.

    For a mixture, the gradient is that of KL(Σ w p || q) and the value is Σ w KL(p || q). The difference does
    not depend on the student; see ``TargetMixture.entropy``. A target of another temperature is a ValueError.
    """
    target.check(temperature)
    log_NC = functional.log_softmax(at_least_float32(student_NC) / temperature, dim=-1)
    cross_N = (target.masses() * log_NC.gather(-1, target.ids)).sum(-1)
    return temperature_factor(temperature, temperature_scaling) * -(target.entropy + cross_N)


@SPARSE_SLOPES.register("forward_kl")
def sparse_forward_kl_slope(
    student: TemperedLogits,
    target: TopKTail | TargetMixture,
    /,
    *,
    temperature: Temperature = 1.0,
    temperature_scaling: TemperatureScaling = "t2",
) -> tuple[Tensor, Tensor]:
    """Values and gradient of ``sparse_forward_kl``: q minus the mass of each entry."""
    target.check(temperature)
    factor = temperature_factor(temperature, temperature_scaling)
    log_NC, masses = student.log_probs(temperature), target.masses()
    values_N = -(target.entropy + (masses * log_NC.gather(-1, target.ids)).sum(-1))
    slope_NC = log_NC.exp().mul_(masses.sum(-1, keepdim=True) * (factor / temperature))
    slope_NC.scatter_add_(-1, target.ids, masses * -(factor / temperature))
    return values_N * factor, slope_NC
