"""One objective of a recipe: a loss, its weight and options, and their schedules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args, get_origin

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationInfo,
    model_validator,
)
from typing_extensions import Self

from stlm_kd.errors import did_you_mean
from stlm_kd.models.layer_alignment import ALIGNMENTS
from stlm_kd.recipe.schema.fields import NotNegative, Part, Real, Text, fault, show
from stlm_kd.recipe.schema.options import added_options, known_name
from stlm_kd.registry import Registry
from stlm_kd.teachers import COMBINED

LABELS = "labels"
"""The name of the loss that needs no teacher."""

Moment = Annotated[Real, Field(ge=0, le=1)]


class Schedule(Part):
    """A number that changes during training; times are fractions of the optimizer steps.

    ``linear`` and ``cosine`` interpolate from the first to the second of two values ``between`` two times;
    ``step-wise`` switches to the next value at each time of ``at``.
    """

    called: ClassVar[str] = "a key of a schedule"
    schedule: Literal["linear", "cosine", "step-wise"]
    values: tuple[Real, ...]
    between: tuple[Moment, Moment] | None = None
    at: tuple[Annotated[Moment, Field(lt=1)], ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _over_the_whole_training(cls, given: object) -> object:
        if not isinstance(given, dict) or given.get("schedule") == "step-wise":
            return given
        return given if given.get("between") is not None else {**given, "between": (0.0, 1.0)}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.schedule == "step-wise":
            self._check_steps()
            return self
        if self.at is not None:
            raise fault(f"at is for step-wise schedules; {self.schedule} uses between")
        if len(self.values) != 2:
            raise fault(f"{len(self.values)} values found; expected two, from and to, for {self.schedule}")
        assert self.between is not None
        begin, end = self.between
        if not begin < end:
            raise fault(f"between {begin:g} and {end:g} found; expected begin < end")
        return self

    def _check_steps(self) -> None:
        if self.between is not None:
            raise fault(
                "between is for linear and cosine; step-wise switches to the next value at each entry of at"
            )
        at = self.at or ()
        if len(self.values) != len(at) + 1 or not at:
            expected = f"{len(at) + 1} for {len(at)} entries of at" if at else "at with at least one entry"
            raise fault(f"{len(self.values)} values found; expected {expected}")
        if list(at) != sorted(set(at)) or at[0] == 0:
            raise fault(f"at {list(at)} found; expected distinct fractions above 0 in ascending order")


def or_schedule(annotation: Any) -> PlainValidator:
    """A validator of numbers of this kind, and of schedules of such numbers."""
    adapter = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))

    def validate(value: object, info: ValidationInfo) -> object:
        if isinstance(value, Schedule):
            return value
        if not isinstance(value, Mapping):
            return adapter.validate_python(value)
        schedule = Schedule.model_validate(value, context=info.context)
        for number in schedule.values:
            adapter.validate_python(number)
        return schedule

    return PlainValidator(validate)


Weight = Annotated[float | Schedule, or_schedule(NotNegative)]


def _is_number(annotation: Any) -> bool:
    return annotation is float or (get_origin(annotation) is Annotated and get_args(annotation)[0] is float)


def loss_registries() -> tuple[Registry[Any], ...]:
    """The losses on logits, hidden states and attention maps, and those after interventions."""
    from stlm_kd.distillation.terms import INTERCHANGE_LOSSES
    from stlm_kd.losses import LOSSES, MAP_LOSSES, STATE_LOSSES

    return LOSSES, STATE_LOSSES, MAP_LOSSES, INTERCHANGE_LOSSES


def _loss(value: object) -> object:
    return known_name(value, [name for registry in loss_registries() for name in registry], "loss")


class Objective(Part):
    """One term of the training objective; the options of its loss are further fields.

    ``on``: count the positions that have a label, or all non-padding positions.
    """

    called: ClassVar[str] = "a key of objectives"
    loss: Annotated[Text, BeforeValidator(_loss)]
    weight: Weight = 1.0
    teacher: Text = COMBINED

    @classmethod
    def of_option(cls, annotation: Any) -> Any:
        """A number may have a schedule."""
        return Annotated[Any, or_schedule(annotation)] if _is_number(annotation) else annotation

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the loss."""
        return added_options(self, Response, Feature, MapFeature)


class Response(Objective):
    """A loss on logits."""

    on: Literal["labels", "attended"] = "labels"


LayerMap: TypeAlias = dict[str, int | tuple[int, ...]]
Sites: TypeAlias = tuple[str | LayerMap, ...]


def _layer(value: object) -> int | None:
    if type(value) is int and value >= 0:
        return value
    return int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,4}", value) else None


def layer_map(value: Mapping[Any, Any]) -> LayerMap:
    """Layer of the student, as text like all YAML keys → one or several layers of the teacher."""
    found: LayerMap = {}
    for key, layers in value.items():
        student = _layer(key)
        teacher = [_layer(entry) for entry in (layers if isinstance(layers, (list, tuple)) else [layers])]
        if student is None or None in teacher or not teacher:
            raise fault(
                f"{key}: {show(layers)} found; expected layers of student and teacher, such as {{0: 1, 1: 3}}"
            )
        numbers = tuple(number for number in teacher if number is not None)
        found[str(student)] = numbers if isinstance(layers, (list, tuple)) else numbers[0]
    if not found:
        raise fault("an empty mapping found; expected layers, such as {0: 1, 1: 3}")
    return found


def _sites(value: object, names: Sequence[str]) -> Sites:
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    if not entries:
        raise fault("an empty list found; expected at least one site")
    return tuple(_site(entry, names) for entry in entries)


def _site(value: object, names: Sequence[str]) -> str | LayerMap:
    if isinstance(value, Mapping):
        return layer_map(value)
    if isinstance(value, str) and value in names:
        return value
    hint = did_you_mean(value, names) if isinstance(value, str) else ""
    choices = ", ".join(names)
    raise fault(f"{show(value)} found; expected one of {choices}, or layers such as {{0: 1, 1: 3}}{hint}")


STATE_SITES = ("embeddings", *ALIGNMENTS)


class Feature(Objective):
    """A loss on hidden states at one or several sites of both teacher and student.

    ``projection``: a trained linear map from the student's width to the teacher's; auto: if widths differ.
    """

    on: Literal["labels", "attended"] = "attended"
    sites: Annotated[Sites, PlainValidator(lambda value: _sites(value, STATE_SITES))] = ("last",)
    projection: Literal["auto", "linear", "none"] = "auto"


class MapFeature(Objective):
    """A loss on attention maps at one or several layers; ``on`` selects queries."""

    on: Literal["labels", "attended"] = "attended"
    sites: Annotated[Sites, PlainValidator(lambda value: _sites(value, ALIGNMENTS))] = ("last",)
