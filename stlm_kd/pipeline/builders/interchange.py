"""Build interchange intervention terms and their sources from a recipe's objectives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from stlm_kd.distillation.terms import INTERCHANGE_LOSSES, Term
from stlm_kd.errors import ModelError, RecipeFault
from stlm_kd.interventions import SourceInputs, WordTokens
from stlm_kd.interventions.spec import Intervention
from stlm_kd.models.layer_alignment import aligned
from stlm_kd.pipeline.builders.data import TrainingData
from stlm_kd.pipeline.builders.numbers import num_layers, number, option
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.interchange import Interchange, sources_with_data
from stlm_kd.recipe.validation.features import unsupported_families
from stlm_kd.teachers import COMBINED
from stlm_kd.vocabulary.token_bytes import read_vocabulary


def interchange_teachers(entry: Interchange, recipe: Recipe) -> list[str]:
    """The names of the teachers whose states are exchanged."""
    return [teacher.name for teacher in recipe.teachers if entry.teacher in (COMBINED, teacher.name)]


def interchange_terms(
    name: str,
    entry: Interchange,
    recipe: Recipe,
    student: PretrainedConfig,
    teachers: Mapping[str, PretrainedConfig],
) -> list[Term]:
    """The loss terms of an objective, which share one intervention.

    Raises:
        ModelError: No layer is aligned in all models; ``interchange_faults`` reports the place.
    """
    intervention = Intervention(
        name=name,
        layers=_layers(entry, recipe, student, teachers),
        layer_schedule=entry.layer_schedule,
        positions=entry.positions,
        fraction=entry.fraction,
        max_tokens=entry.max_tokens,
        source=entry.source_entry.name,
        options=entry.source_options,
        source_site=entry.source_site,
        exact_dropout=entry.exact_dropout,
    )
    template = Term(
        name=name,
        loss=entry.loss,
        weight=number(entry.weight),
        on=entry.on,
        teacher=entry.teacher,
        options={key: option(value) for key, value in entry.options.items()},
        intervention=intervention,
    )
    first = interchange_teachers(entry, recipe)[0]
    return INTERCHANGE_LOSSES[entry.loss](template, first, number(entry.causal_cosine_weight))


def _layers(
    entry: Interchange, recipe: Recipe, student: PretrainedConfig, teachers: Mapping[str, PretrainedConfig]
) -> dict[str, dict[int, tuple[int, ...]]]:
    """By teacher, the student's layers that may be drawn, each with its aligned teacher layers."""
    found = {
        name: layers_of(entry, name, student, teachers[name]) for name in interchange_teachers(entry, recipe)
    }
    if not set.intersection(*(set(layers) for layers in found.values())):
        given = "; ".join(f"{name} with {', '.join(map(str, layers))}" for name, layers in found.items())
        raise ModelError(f"no layer of the student is aligned with every teacher: {given}")
    return found


def layers_of(
    entry: Interchange, name: str, student: PretrainedConfig, teacher: PretrainedConfig
) -> dict[int, tuple[int, ...]]:
    """The student's layers that are aligned with the named teacher, each with the teacher's layers.

    ModelError if a model lacks one of the layers, or none is left.
    """
    own = num_layers(student)
    alignment = aligned(entry.alignment_of(name), own, num_layers(teacher))
    dropped = {own - 1} if entry.exclude_last else set()
    found = {layer: theirs for layer, theirs in alignment.items() if layer not in dropped}
    if not found:
        raise ModelError("exclude_last leaves no layer of the student; use another alignment")
    return found


def interchange_faults(
    place: str,
    entry: Interchange,
    recipe: Recipe,
    student: PretrainedConfig,
    teachers: Mapping[str, PretrainedConfig],
) -> Iterator[RecipeFault]:
    """Recipe faults: unknown model families, and layers that a model does not have."""
    models = [
        ("the student", student.model_type),
        *((f"teacher {name}", teachers[name].model_type) for name in interchange_teachers(entry, recipe)),
    ]
    if unsupported := unsupported_families(entry.loss, models):
        yield RecipeFault(f"{place}.loss", unsupported)
        return
    try:
        _layers(entry, recipe, student, teachers)
    except ModelError as error:
        yield RecipeFault(f"{place}.alignment", str(error))


def supplies_of(
    training_data: TrainingData, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> SourceInputs:
    """The inputs that a training's interventions draw sources from."""
    return SourceInputs(seed, training_data.pool(), WordTokens.of(read_vocabulary(tokenizer)))


def check_sources(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
    """Check that WordNet is installed and the vocabulary has related words, if a source needs them."""
    for _, data in sources_with_data(recipe.objectives):
        data.check(WordTokens.of(read_vocabulary(tokenizer)))
