"""Combiners: each returns weights (n, M) for n tokens and M teachers, which sum to one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt, Le

from stlm_kd.errors import ExtensionError, listed
from stlm_kd.lazy import torch
from stlm_kd.registry import Extension, Registry, registering
from stlm_kd.schedules import Ramp, Shape
from stlm_kd.teachers.combination.features import Need, WeightingFeatures

if TYPE_CHECKING:
    from torch import Tensor


Options = Mapping[str, object]


@dataclass(frozen=True, eq=False)
class Combiner(Extension):
    """A combiner: ``combiner(evidence, /, **options)`` → the teachers' weights at each token, (n, M).

    Attributes:
        needs: The features of ``WeightingFeatures`` to compute for it, or a function from its options to
            these.
    """

    needs: Collection[Need] | Callable[[Options], Collection[Need]] = ()

    def __post_init__(self) -> None:
        known = get_args(Need)
        if not callable(self.needs) and (unknown := [need for need in self.needs if need not in known]):
            raise ExtensionError(
                f"{self.function.__module__}: way to combine teachers {self.name}: needs {unknown[0]!r}; "
                f"expected some of {listed(known)}"
            )

    def needs_with(self, options: Options) -> frozenset[Need]:
        """The features that it needs with these options."""
        return frozenset(self.needs(options) if callable(self.needs) else self.needs)


def _fault(found: Any, arguments: tuple[Any, ...]) -> str | None:
    """What is wrong with the weights of a combiner."""
    expected = tuple(arguments[0].blank.shape)
    if not isinstance(found, torch.Tensor) or found.shape != expected:
        shape = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        return f"{shape} found; expected a weight for each token and teacher, shape {expected}"
    if found.numel() and not (found.min() >= 0 and bool(((found.sum(-1) - 1).abs() <= 1e-3).all())):
        return (
            f"weights from {float(found.min()):.3g} with sums up to {float(found.sum(-1).max()):.3g} found; "
            "expected weights of at least 0 that sum to one at each token"
        )
    return None


COMBINERS: Registry[Combiner] = Registry(
    "way to combine teachers", 1, reserved=("how", "teacher_dropout"), fault=_fault
)

register_combiner = registering(
    COMBINERS,
    Combiner,
    """Register a function ``combiner(evidence, /, **options)`` as a way to combine teachers.

    ``evidence`` is a ``WeightingFeatures``: features of n tokens and M teachers, of which those in ``needs``
    are computed. The function returns weights (n, M), at least 0, that sum to one at each token; the
    teachers' mixture is the weighted sum of their probabilities. Recipes name it in ``combine: {how: NAME,
    option: value}``.

    >>> from stlm_kd.teachers.combination import WeightingFeatures
    >>> @register_combiner("best", needs=["confidence"])
    ... def best(evidence, /):
    ...     chosen = evidence.confidence.argmax(-1, keepdim=True)
    ...     return evidence.blank.scatter(-1, chosen, 1.0)
    >>> import torch
    >>> confidence = torch.tensor([[-2.0, -1.0]])
    >>> COMBINERS["best"](WeightingFeatures(("a", "b"), torch.zeros(1, 2), confidence=confidence))
    tensor([[0., 1.]])
    """,
)

Sharpness = Annotated[float, Gt(0)]
"""Exponent of the weights: 1 is proportional; larger values approach the best teacher alone."""

NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]


@register_combiner("mean")
def mean(evidence: WeightingFeatures, /) -> Tensor:
    """Equal weights."""
    return shares(torch.ones_like(evidence.blank))


@register_combiner("weighted")
def weighted(evidence: WeightingFeatures, /, *, weights: Mapping[str, NotNegative]) -> Tensor:
    """A fixed weight for each teacher.

    Args:
        evidence: Features; uses the teachers' names.
        weights: Weight of each teacher by name, not all 0; only their ratios matter.
    """
    return shares(evidence.blank + evidence.blank.new_tensor([weights[name] for name in evidence.teachers]))


@register_combiner("domains", ["domain"])
def domains(evidence: WeightingFeatures, /, *, weights: Mapping[str, Mapping[str, NotNegative]]) -> Tensor:
    """Fixed weights for each domain of the data.

    Args:
        evidence: Features; uses the tokens' domains.
        weights: Weights by domain and teacher, not all 0 in any domain; only the ratios matter.
    """
    assert evidence.domain is not None
    rows = [[weights[domain][name] for name in evidence.teachers] for domain in evidence.domains]
    return shares(evidence.blank.new_tensor(rows)[evidence.domain])


@register_combiner("confidence", ["confidence"])
def confidence(evidence: WeightingFeatures, /, *, sharpness: Sharpness = 1.0) -> Tensor:
    """Weights proportional to the probability of a teacher's top-1 prediction, to the power of sharpness."""
    assert evidence.confidence is not None
    return softmax(sharpness * evidence.confidence)


@register_combiner("entropy", ["entropy"])
def entropy(evidence: WeightingFeatures, /, *, sharpness: Sharpness = 1.0) -> Tensor:
    """Weights proportional to exp(-sharpness · entropy in nats): low-entropy teachers get more weight."""
    assert evidence.entropy is not None
    return softmax(-sharpness * evidence.entropy)


@register_combiner("label-likelihood", ["label_log_prob"])
def label_likelihood(evidence: WeightingFeatures, /, *, sharpness: Sharpness = 1.0) -> Tensor:
    """Weights proportional to a teacher's probability of the label, to the power of sharpness.

    With sharpness 1 these are the posterior probabilities of the teachers given the label, under a uniform
    prior. A token without a label has equal weights.
    """
    assert evidence.label_log_prob is not None and evidence.labelled is not None
    label_log_prob_nM = evidence.label_log_prob.masked_fill(~evidence.labelled[:, None], 0.0)
    return softmax(sharpness * label_log_prob_nM)


@register_combiner("learned", ["gate"])
def learned(evidence: WeightingFeatures, /, *, weight: Annotated[float, Gt(0)] = 1.0) -> Tensor:
    """Weights from a small gate, trained with the student to maximise the likelihood of the labels.

    Args:
        evidence: Features; uses the gate's scores.
        weight: Weight of the gate's loss in the total. It affects only gradient clipping: the gate has its
            own parameters, and AdamW is invariant to the scale of their gradient.
    """
    assert evidence.gate is not None
    return softmax(evidence.gate.to(evidence.blank))


@register_combiner("annealed", ["progress"])
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
    """Transition from one teacher to another over the training.

    Args:
        evidence: Features; uses the training progress.
        first: The only teacher until ``begin``.
        last: The only teacher from ``end`` on.
        shape: Shape of the transition.
        begin: Fraction of the optimizer steps at which the transition begins.
        end: Fraction at which it ends, after ``begin``.
    """
    done = Ramp(shape, 0.0, 1.0, begin, end).at(evidence.progress)
    weights = {first: 1.0 - done, last: done}
    row = [weights.get(name, 0.0) for name in evidence.teachers]
    return shares(evidence.blank + evidence.blank.new_tensor(row))


@register_combiner("random", lambda given: ["row_draw" if given.get("per") == "sequence" else "step_draw"])
def random(evidence: WeightingFeatures, /, *, per: Literal["batch", "sequence"] = "batch") -> Tensor:
    """One teacher at a time, drawn uniformly.

    Args:
        evidence: Features; uses the random draws.
        per: One draw for the whole batch of an optimizer step, in which the other teachers do not run; or
            one per sequence: a row of packed text or an example.
    """
    assert evidence.drawn is not None, per
    chosen_n = (evidence.drawn * len(evidence.teachers)).long().clamp(max=len(evidence.teachers) - 1)
    return evidence.blank.scatter(1, chosen_n[:, None], 1.0)


def shares(raw_nM: Tensor) -> Tensor:
    """Weights normalised by their sum; equal weights where all are 0, as after teacher dropout."""
    total_n1 = raw_nM.sum(-1, keepdim=True)
    return torch.where(total_n1 > 0, raw_nM / total_n1.clamp(min=1e-30), 1 / raw_nM.shape[-1])


def softmax(scores_nM: Tensor) -> Tensor:
    """Softmax of scores; equal weights where all are -inf, as for a label that every teacher rules out."""
    nobody_n1 = scores_nM.isneginf().all(-1, keepdim=True)
    return scores_nM.masked_fill(nobody_n1, 0.0).softmax(-1)
