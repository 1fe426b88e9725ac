"""The objectives of a recipe that compare outputs after interventions on hidden states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    model_validator,
)

from stlm_kd.models.layer_alignment import ALIGNMENTS
from stlm_kd.recipe.schema.fields import Count, Flag, Part, Positive, Share, Text, fault, show
from stlm_kd.recipe.schema.objective import LayerMap, Objective, Schedule, Weight, layer_map, or_schedule
from stlm_kd.recipe.schema.options import added_options, known_name, row_of
from stlm_kd.registry import Registry

if TYPE_CHECKING:
    from stlm_kd.interventions.source import CounterfactualSource, SourceData


Temperature = Annotated[float | Schedule, or_schedule(Positive)]

Alignment: TypeAlias = str | LayerMap
Alignments: TypeAlias = Alignment | dict[str, Alignment]


def sources() -> Registry[Any]:
    """The counterfactual sources."""
    from stlm_kd.interventions import SOURCES

    return SOURCES


class SourceEntry(Part):
    """A counterfactual source with its options, which are further fields."""

    called: ClassVar[str] = "a key of source"
    name: Annotated[Text, BeforeValidator(lambda value: known_name(value, sources()))]

    @property
    def given(self) -> dict[str, Any]:
        """The options that are given."""
        options = added_options(self, SourceEntry)
        return {name: value for name, value in options.items() if name in self.model_fields_set}


_ENTRIES: TypeAdapter[SourceEntry] = TypeAdapter(
    Annotated[SourceEntry, WrapValidator(row_of(SourceEntry, "name", lambda: [(SourceEntry, sources())]))]
)


def _source(value: object, info: ValidationInfo) -> str | SourceEntry:
    """A name, or a mapping with options."""
    if isinstance(value, Mapping | SourceEntry):
        return _ENTRIES.validate_python(value, context=info.context)
    if not isinstance(value, str):
        raise fault(f"{show(value)} found; expected a name, or a mapping of name and options")
    known_name(value, sources())
    return value


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
    options (``pairing``, ``mixup_map`` and ``mixup_noise`` are those of the first sources); ``source_site``:
    the state that replaces a block's output; ``causal_cosine_weight``: weight of the cosine distance of last
    hidden states; ``exclude_last``: exclude the student's last layer.
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
    source: Annotated[str | SourceEntry, PlainValidator(_source)] = "other-example"
    pairing: Literal["batch", "independent"] | None = None
    mixup_map: Literal["same", "residual"] | None = None
    mixup_noise: Literal["normal", "matched", "token-embedding"] | None = None
    source_site: Literal["block-output", "block-input"] = "block-output"
    exact_dropout: Flag = False

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the loss."""
        return {"temperature": self.temperature}

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, given: object) -> object:
        """Store a source's options under keys of the objective where there are some, as they may be given."""
        entry = given.get("source") if isinstance(given, Mapping) else None
        if not isinstance(given, Mapping) or not isinstance(entry, Mapping):
            return given
        try:
            source = _ENTRIES.validate_python(entry)
        except ValidationError:  # reported at the source
            return given
        keys, rest = sources()[source.name].keys, dict(source.given)
        stored = {keys[option]: rest.pop(option) for option in source.given if option in keys}
        if twice := [key for key in stored if given.get(key) is not None]:
            raise fault(f"{twice[0]} is given twice: here and under source; expected it once")
        return {**given, **stored, "source": {"name": source.name, **rest} if rest else source.name}

    @property
    def source_entry(self) -> CounterfactualSource:
        """The source."""
        name = self.source if isinstance(self.source, str) else self.source.name
        found: CounterfactualSource = sources()[name]
        return found

    @property
    def source_options(self) -> dict[str, Any]:
        """The source's options that are set."""
        stored = {option: getattr(self, key) for option, key in self.source_entry.keys.items()}
        given = {} if isinstance(self.source, str) else self.source.given
        return {**given, **{option: value for option, value in stored.items() if value is not None}}

    @property
    def pairs_rows(self) -> bool:
        """Whether rows of an optimizer step are sources of each other."""
        return self.source_entry.pairs_rows(self.source_options)

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


def sources_with_data(objectives: Iterable[Objective]) -> list[tuple[str, SourceData]]:
    """The objectives' sources that read data beside the text: their names and these data."""
    used = {entry.source_entry for entry in objectives if isinstance(entry, Interchange)}
    found = [(one.name, one.data) for one in used if one.data is not None]
    return sorted(found, key=lambda one: one[0])
