"""What a live teacher holds on each device, by placement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from transformers import PreTrainedModel

from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.teachers import Placement
from stlm_kd.teachers.live import outer_layers
from stlm_kd.teachers.units import largest_fetched

PLACEMENTS: tuple[Placement, ...] = get_args(Placement)


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of a teacher's weights on each device: always, and those added while it runs or projects."""

    stays: int
    running: int = 0
    projecting: int = 0


@dataclass(frozen=True, slots=True)
class PlacedTeacher:
    """A live teacher's weights in bytes.

    Attributes:
        name: In the recipe.
        placement: In the recipe.
        whole: All of them.
        outer: Embedding and head, a tied one once.
        head: The larger of embedding and head.
        block: The largest that is fetched at once, embedding and head left out.
        unit: The same with these.
        divides: Whether its family can be sharded.
    """

    name: str
    placement: Placement
    whole: int
    outer: int
    head: int
    block: int
    unit: int
    divides: bool

    @classmethod
    def of(cls, name: str, placement: Placement, model: PreTrainedModel) -> PlacedTeacher:
        """The sizes of a model, which may be without storage."""
        layers = outer_layers(model)
        outer = {id(weight): weight.nbytes for layer in layers for weight in layer.parameters()}
        return cls(
            name,
            placement,
            sum(weight.nbytes for weight in model.parameters()),
            sum(outer.values()),
            max((sum(weight.nbytes for weight in layer.parameters()) for layer in layers), default=0),
            largest_fetched(model, without=layers),
            largest_fetched(model),
            model.config.model_type in ARCHITECTURES,
        )

    def held(self, gpus: int, placement: Placement | None = None) -> Held:
        """What each of so many accelerators holds; ``placement`` in place of the recipe's.

        >>> sizes = {"whole": 100, "outer": 20, "head": 20, "block": 5, "unit": 20}
        >>> teacher = PlacedTeacher("t", "replicate", **sizes, divides=True)
        >>> teacher.held(2).stays, teacher.held(2, "shard"), teacher.held(1, "shard").stays
        (100, Held(stays=50, running=20, projecting=20), 100)
        >>> teacher.held(2, "offload"), teacher.held(2, "cpu").stays
        (Held(stays=20, running=5, projecting=0), 0)
        """
        match placement or self.placement:
            case "cpu":
                return Held(0)
            case "offload":
                return Held(self.outer, self.block)
            case "shard" if gpus > 1:
                return Held(-(-self.whole // gpus), self.unit, self.head)
        return Held(self.whole)
