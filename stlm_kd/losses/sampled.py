"""Targets of which the likely outcomes are known and the others sampled, and the losses that need no more.

A plain top-k target is biased. Head and sampled tail together are an unbiased estimate of the distribution,
so a loss linear in the teacher's probabilities, and its gradient, are right on average over the draws.

Shapes: N tokens, H outcomes of the head, M draws from the tail, C outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from stlm_kd.losses.precision import at_least_float32
from stlm_kd.losses.table import (
    SPARSE_LOSSES,
    SPARSE_SLOPES,
    Temperature,
    TemperatureScaling,
    temperature_factor,
)
from stlm_kd.losses.tempered import TemperedLogits


@dataclass(frozen=True, slots=True)
class TopKTail:
    """A teacher's distribution at one temperature: its head, and draws from the rest.

    Attributes:
        ids: Outcomes, (N, H + M), or (B, T, H + M) before the tokens that count are chosen: the H of the
            head, each once, then M draws from the others, with replacement, by their probability.
        log_probs: Of the head, (N, H).
        tail: Logarithm of the whole probability outside the head, (N,). A draw stands for an M-th of it, so
            its importance weight is that over its own probability.
        entropy: Of the whole distribution, in nats, (N,).
        temperature: By which all of these were softened.
        vocabulary: Outcomes from here on are padding and have no probability.
        label_log_probs: Log-probability of each token's label, (N,), by which teachers can be weighed; None
            where it was not kept. Meaningless where a token has no label.
    """

    ids: Tensor
    log_probs: Tensor
    tail: Tensor
    entropy: Tensor
    temperature: float
    vocabulary: int
    label_log_probs: Tensor | None = None

    def rows(self, chosen: Tensor | slice) -> TopKTail:
        """The tokens under a mask, at indices, or of a slice."""
        names = ("ids", "log_probs", "tail", "entropy", "label_log_probs")
        parts = {name: getattr(self, name) for name in names}
        return replace(self, **{name: part[chosen] for name, part in parts.items() if part is not None})

    def masses(self) -> Tensor:
        """The probability that each entry of ``ids`` stands for, (N, H + M)."""
        draws = self.ids.shape[-1] - self.log_probs.shape[-1]
        tail_N = at_least_float32(self.tail).exp()
        shared_NM = (tail_N / max(draws, 1))[:, None].expand(-1, draws)
        return torch.cat([at_least_float32(self.log_probs).exp(), shared_NM], dim=-1)

    def spread(self, outcomes: int) -> Tensor:
        """Log-probabilities, (N, outcomes): the head's, and the tail's evenly over what is outside the head.

        For losses that are not linear in the teacher, which no estimate serves without bias: this one leaves
        no outcome without probability.
        """
        head = self.log_probs.shape[-1]
        each_N1 = at_least_float32(self.tail)[:, None] - math.log(max(self.vocabulary - head, 1))
        log_NC = each_N1.repeat(1, outcomes)
        log_NC[:, self.vocabulary :] = -torch.inf
        return log_NC.scatter_(-1, self.ids[:, :head], at_least_float32(self.log_probs))

    def check(self, temperature: float) -> None:
        """Refuse another temperature than the target's own.

        Raises:
            ValueError: It is another.
        """
        if temperature != self.temperature:
            raise ValueError(
                f"a sparse target at temperature {self.temperature:g} cannot serve a loss at {temperature:g}"
            )


@dataclass(frozen=True, slots=True)
class FullDistribution:
    """A distribution that is known whole, beside sparse ones in a mixture.

    Attributes:
        log_probs: Of every outcome, (N, C), -inf where it is ruled out.
        temperature: By which they were softened.
    """

    log_probs: Tensor
    temperature: float

    @property
    def ids(self) -> Tensor:
        """Every outcome at each token, (N, C), in no memory of its own."""
        tokens, outcomes = self.log_probs.shape
        return torch.arange(outcomes, device=self.log_probs.device).expand(tokens, outcomes)

    @property
    def entropy(self) -> Tensor:
        """In nats, (N,)."""
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
    """Σ w p of several targets, some sparse: the entries of all in a row; an outcome may come twice.

    Attributes:
        targets: M targets of one temperature.
        weights: (N, M), summing to one at each token.
    """

    targets: Sequence[TopKTail | FullDistribution]
    weights: Tensor

    @property
    def ids(self) -> Tensor:
        """Outcomes, (N, entries)."""
        return torch.cat([target.ids for target in self.targets], dim=-1)

    @property
    def entropy(self) -> Tensor:
        """Σ w H of the targets' entropies, (N,), in nats.

        The mixture's own is not known. It is larger, by the targets' generalised Jensen-Shannon divergence,
        which no student changes: a loss that takes this one in its place has the right gradient.
        """
        return sum(
            (
                weight_N * at_least_float32(target.entropy)
                for target, weight_N in zip(self.targets, self.weights.unbind(-1), strict=True)
            ),
            self.weights.new_zeros(()),
        )

    def masses(self) -> Tensor:
        """The probability that each entry of ``ids`` stands for, (N, entries)."""
        pairs = zip(self.targets, self.weights.unbind(-1), strict=True)
        return torch.cat([target.masses() * weight_N[:, None] for target, weight_N in pairs], dim=-1)

    def check(self, temperature: float) -> None:
        """As ``TopKTail.check``, of each target."""
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
    """An unbiased estimate of ``forward_kl`` at each token, (N,), in nats; below 0 where draws are unlucky.

    Of a mixture, its gradient is that of KL(Σ w p || q), and its value Σ w KL(p || q), which is larger by
    what no student changes; see ``TargetMixture.entropy``.

    Raises:
        ValueError: The target has another temperature.
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
    """Of ``sparse_forward_kl``: q less the mass of each entry."""
    target.check(temperature)
    factor = temperature_factor(temperature, temperature_scaling)
    log_NC, masses = student.log_probs(temperature), target.masses()
    values_N = -(target.entropy + (masses * log_NC.gather(-1, target.ids)).sum(-1))
    slope_NC = log_NC.exp().mul_(masses.sum(-1, keepdim=True) * (factor / temperature))
    slope_NC.scatter_add_(-1, target.ids, masses * -(factor / temperature))
    return values_N * factor, slope_NC
