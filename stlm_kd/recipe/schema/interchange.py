"""The objectives of a recipe that compare outputs after interventions on hidden states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, PlainValidator, TypeAdapter, ValidationInfo

from stlm_kd.models.layer_alignment import ALIGNMENTS
from stlm_kd.recipe.schema.fields import Count, Flag, Positive, Share, Text, fault, show
from stlm_kd.recipe.schema.objective import LayerMap, Objective, Schedule, Weight, layer_map, schedulable
from stlm_kd.recipe.schema.options import known_name
from stlm_kd.registry import Registry

if TYPE_CHECKING:
    from stlm_kd.interventions.wordnet import Relation


def _temperature(value: object, info: ValidationInfo) -> object:
    return _TEMPERATURES.validate_python(value, context=info.context)


_TEMPERATURES: TypeAdapter[float | Schedule] = TypeAdapter(schedulable(Positive))
Temperature = Annotated[float | Schedule, PlainValidator(_temperature)]

Alignment: TypeAlias = str | LayerMap
Alignments: TypeAlias = Alignment | dict[str, Alignment]


def sources() -> Registry[Any]:
    """The sources of counterfactual states."""
    from stlm_kd.interventions.sources import SOURCES

    return SOURCES


def _alignment(value: object) -> Alignments:
    """A name, a mapping of student layers to teacher layers, or one of these for each teacher by name."""
    if not isinstance(value, Mapping) or not value or _is_layers(value):
        return _one(value)
    return {str(name): _one(given) for name, given in value.items()}


def _is_layers(value: Mapping[Any, Any]) -> bool:
    return any(str(key).isdecimal() for key in value)


def _one(value: object) -> Alignment:
    if isinstance(value, Mapping):
        return layer_map(value)
    if isinstance(value, str) and value in ALIGNMENTS:
        return value
    choices = ", ".join(ALIGNMENTS)
    raise fault(f"{show(value)} found; expected one of {choices}, or layers such as {{0: [0, 1], 1: [2, 3]}}")


class Interchange(Objective):
    """A loss on the outputs of student and teachers after the same interchange intervention in both.

    ``alignment``: the teacher layers aligned with each student layer, for all teachers or by teacher;
    ``layer_schedule``: the layer exchanged in a step; ``positions``, ``fraction`` and ``max_tokens``:
    contiguous or random positions, and how many; ``source``: the source of counterfactual states, with its
    options; ``source_site``: the state that replaces a block's output; ``causal_cosine_weight``: weight of
    the cosine distance of last hidden states; ``exclude_last``: exclude the student's last layer.
    """

    weight: Weight = 0.25
    on: Literal["labels", "attended"] = "attended"
    temperature: Temperature = 2.0
    causal_cosine_weight: Weight = 0.0
    alignment: Annotated[Alignments, PlainValidator(_alignment)] = "full"
    layer_schedule: Literal["random", "top-down", "bottom-up"] = "random"
    exclude_last: Flag = False
    positions: Literal["consecutive", "random", "masked"] = "consecutive"
    fraction: Share = 0.3
    max_tokens: Count | None = None
    source: Annotated[Text, BeforeValidator(lambda value: known_name(value, sources()))] = "other-example"
    pairing: Literal["batch", "independent"] | None = None
    mixup_map: Literal["same", "residual"] | None = None
    mixup_noise: Literal["normal", "matched", "token-embedding"] | None = None
    source_site: Literal["block-output", "block-input"] = "block-output"
    exact_dropout: Flag = False

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the loss."""
        return {"temperature": self.temperature}

    @property
    def source_options(self) -> dict[str, Any]:
        """The source's options that are set."""
        given = {name: getattr(self, name) for name in SOURCE_OPTIONS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def pairs_rows(self) -> bool:
        """Whether rows of an optimizer step are sources of each other."""
        from stlm_kd.interventions.sources import pairs_rows

        return pairs_rows(self.source, self.source_options)

    @property
    def is_by_teacher(self) -> bool:
        """Whether every teacher has its own alignment."""
        return isinstance(self.alignment, dict) and not _is_layers(self.alignment)

    def alignment_of(self, teacher: str) -> str | dict[int, int | tuple[int, ...]]:
        """The alignment with a teacher: a name or layers."""
        chosen: object = self.alignment
        if self.is_by_teacher and isinstance(self.alignment, dict):
            chosen = self.alignment[teacher]
        if isinstance(chosen, str):
            return chosen
        assert isinstance(chosen, dict)
        return {int(layer): layers for layer, layers in chosen.items()}


SOURCE_OPTIONS = ("pairing", "mixup_map", "mixup_noise")
"""Fields that only some sources use."""


def relations(objectives: Iterable[Objective]) -> list[Relation]:
    """The WordNet relations that the objectives' sources use."""
    from stlm_kd.interventions.wordnet import RELATIONS

    used = {entry.source for entry in objectives if isinstance(entry, Interchange)}
    return [relation for relation in RELATIONS if relation in used]
