"""The ways to combine teachers: each gives weights (n, M) for n tokens and M teachers, which sum to one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from stlm_kd.registry import Registry
from stlm_kd.schedules import Ramp, Shape
from stlm_kd.teachers.combination.features import Need, WeightingFeatures

Combiner = Callable[..., Tensor]
"""``combiner(evidence, /, **options)`` → the teachers' weights at each token, (n, M)."""

Options = Mapping[str, object]
Needs = Collection[Need] | Callable[[Options], Collection[Need]]


class Combiners(Registry[Combiner]):
    """Ways to combine teachers by name, with what each looks at."""

    def __init__(self) -> None:
        super().__init__("way to combine teachers")
        self._needs: dict[str, Needs] = {}

    def weighing(self, name: str, needs: Needs = ()) -> Callable[[Combiner], Combiner]:
        """Add the decorated function under a name.

        Args:
            name: Not yet taken.
            needs: What it looks at, of which alone ``WeightingFeatures`` is made; perhaps by its options.
        """
        self._needs[name] = needs
        return self.register(name)

    def needs(self, name: str, options: Options) -> frozenset[Need]:
        """What a way looks at."""
        needs = self._needs[name]
        return frozenset(needs(options) if callable(needs) else needs)


COMBINERS = Combiners()

Sharpness = Annotated[float, Gt(0)]
"""1: in proportion; the larger, the nearer to the best teacher alone."""

NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]


@COMBINERS.weighing("mean")
def mean(evidence: WeightingFeatures, /) -> Tensor:
    """The same weight for all."""
    return shares(torch.ones_like(evidence.blank))


@COMBINERS.weighing("weighted")
def weighted(evidence: WeightingFeatures, /, *, weights: Mapping[str, NotNegative]) -> Tensor:
    """A fixed weight for each teacher.

    Args:
        evidence: Of it the teachers' names.
        weights: One for each teacher by name, not all 0; only their ratios count.
    """
    return shares(evidence.blank + evidence.blank.new_tensor([weights[name] for name in evidence.teachers]))


@COMBINERS.weighing("domains", ["domain"])
def domains(evidence: WeightingFeatures, /, *, weights: Mapping[str, Mapping[str, NotNegative]]) -> Tensor:
    """Fixed weights for each domain of the data.

    Args:
        evidence: Of it the tokens' domains.
        weights: By domain and teacher; in each domain not all 0, and only the ratios count.
    """
    assert evidence.domain is not None
    rows = [[weights[domain][name] for name in evidence.teachers] for domain in evidence.domains]
    return shares(evidence.blank.new_tensor(rows)[evidence.domain])


@COMBINERS.weighing("confidence", ["confidence"])
def confidence(evidence: WeightingFeatures, /, *, sharpness: Sharpness = 1.0) -> Tensor:
    """In proportion to the probability of a teacher's likeliest outcome, to the power of sharpness."""
    assert evidence.confidence is not None
    return softmax(sharpness * evidence.confidence)


@COMBINERS.weighing("entropy", ["entropy"])
def entropy(evidence: WeightingFeatures, /, *, sharpness: Sharpness = 1.0) -> Tensor:
    """In proportion to exp(-sharpness · entropy in nats): who is surer weighs more."""
    assert evidence.entropy is not None
    return softmax(-sharpness * evidence.entropy)


@COMBINERS.weighing("label-likelihood", ["label_log_prob"])
def label_likelihood(evidence: WeightingFeatures, /, *, sharpness: Sharpness = 1.0) -> Tensor:
    """In proportion to the probability that a teacher gives to the label, to the power of sharpness.

    With sharpness 1 these are the posterior probabilities of the teachers after the label, from equal ones
    before. A token without a label has equal weights.
    """
    assert evidence.label_log_prob is not None and evidence.labelled is not None
    told_nM = evidence.label_log_prob.masked_fill(~evidence.labelled[:, None], 0.0)
    return softmax(sharpness * told_nM)


@COMBINERS.weighing("learned", ["gate"])
def learned(evidence: WeightingFeatures, /, *, weight: Annotated[float, Gt(0)] = 1.0) -> Tensor:
    """As a small gate says, which is trained beside the student to make the labels likely.

    Args:
        evidence: Of it the gate's scores.
        weight: Of the gate's loss in the total. No more than clipping knows of it: the gate has its own
            parameters, and AdamW moves them by the direction of their gradient.
    """
    assert evidence.gate is not None
    return softmax(evidence.gate.to(evidence.blank))


@COMBINERS.weighing("annealed", ["progress"])
def annealed(
    evidence: WeightingFeatures,
    /,
    *,
    first: str,
    last: str,
    shape: Shape = "linear",
    begin: Share = 0.0,
    end: Share = 1.0,
) -> Tensor:
    """From one teacher to another over the training.

    Args:
        evidence: Of it the share of the optimizer steps that is done.
        first: The teacher alone until ``begin``.
        last: The teacher alone from ``end`` on.
        shape: Of the change between.
        begin: A share of the optimizer steps.
        end: A later one.
    """
    done = Ramp(shape, 0.0, 1.0, begin, end).at(evidence.progress)
    weights = {first: 1.0 - done, last: done}
    row = [weights.get(name, 0.0) for name in evidence.teachers]
    return shares(evidence.blank + evidence.blank.new_tensor(row))


def _draw_of(options: Options) -> list[Need]:
    return ["row_draw"] if options.get("per") == "sequence" else ["step_draw"]


@COMBINERS.weighing("random", _draw_of)
def random(evidence: WeightingFeatures, /, *, per: Literal["batch", "sequence"] = "batch") -> Tensor:
    """One teacher at a time, each as likely.

    Args:
        evidence: Of it the drawn numbers.
        per: One for the whole batch of an optimizer step, so that the others are not run; or one for each
            sequence, a row of packed text or an example.
    """
    assert evidence.drawn is not None, per
    chosen_n = (evidence.drawn * len(evidence.teachers)).long().clamp(max=len(evidence.teachers) - 1)
    return evidence.blank.scatter(1, chosen_n[:, None], 1.0)


def shares(raw_nM: Tensor) -> Tensor:
    """The weights divided by their sum; equal ones where all are 0, as of those that are left of all."""
    total_n1 = raw_nM.sum(-1, keepdim=True)
    return torch.where(total_n1 > 0, raw_nM / total_n1.clamp(min=1e-30), 1 / raw_nM.shape[-1])


def softmax(scores_nM: Tensor) -> Tensor:
    """Weights in proportion to exp(scores); equal ones where all are -inf: no teacher allows the label."""
    nobody_n1 = scores_nM.isneginf().all(-1, keepdim=True)
    return scores_nM.masked_fill(nobody_n1, 0.0).softmax(-1)
