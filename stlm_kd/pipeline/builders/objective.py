"""Build loss terms from a recipe's objectives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from transformers import PretrainedConfig

from stlm_kd.distillation.hidden_terms import Projections, TermProjections
from stlm_kd.distillation.terms import Term
from stlm_kd.errors import ModelError, RecipeFault
from stlm_kd.losses import LABELS, STATE_LOSSES
from stlm_kd.models.capabilities import Path
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.layer_alignment import Site, layer_pairs, site_pairs
from stlm_kd.pipeline.builders.interchange import interchange_faults, interchange_teachers, interchange_terms
from stlm_kd.pipeline.builders.numbers import num_layers, number, option, width
from stlm_kd.recipe import Recipe, term_names
from stlm_kd.recipe.schema.interchange import Interchange
from stlm_kd.recipe.schema.objective import Feature, MapFeature, Objective, Response
from stlm_kd.recipe.validation.features import site_choices, unsupported_families, widths_differ
from stlm_kd.schedules import Ramp, Steps, is_ever_above_zero
from stlm_kd.teachers import COMBINED


def terms_of(
    recipe: Recipe, student: PretrainedConfig, teachers: Mapping[str, PretrainedConfig]
) -> list[Term]:
    """The loss terms of the recipe's objectives, for a student and teachers of these configurations.

    Raises:
        ModelError: A model lacks one of the sites; ``feature_faults`` reports the place.
    """
    return [
        term
        for name, entry in active_objectives(recipe).items()
        for term in (
            interchange_terms(name, entry, recipe, student, teachers)
            if isinstance(entry, Interchange)
            else [_term(name, entry, recipe, student, teachers)]
        )
    ]


def _term(
    name: str,
    entry: Objective,
    recipe: Recipe,
    student: PretrainedConfig,
    teachers: Mapping[str, PretrainedConfig],
) -> Term:
    assert isinstance(entry, (Response, Feature, MapFeature))
    pairs: tuple[tuple[Site, Site], ...] = ()
    teacher = None if entry.loss == LABELS else entry.teacher
    if isinstance(entry, (Feature, MapFeature)):
        teacher = teacher_of(entry, recipe)
        pairs = pairs_of(entry, student, teachers[teacher])
    return Term(
        name=name,
        loss=entry.loss,
        weight=weight_of(entry),
        on=entry.on,
        teacher=teacher,
        options={key: option(value) for key, value in entry.options.items()},
        pairs=pairs,
    )


def active_objectives(recipe: Recipe) -> dict[str, Objective]:
    """The objectives whose weight is positive at some step, by name; names also seed random draws."""
    named = zip(term_names(recipe), recipe.objectives, strict=True)
    return {name: entry for name, entry in named if is_active(entry)}


def feature_teachers(recipe: Recipe) -> set[str]:
    """The teachers whose hidden states or attention maps an objective uses."""
    found: set[str] = set()
    for entry in active_objectives(recipe).values():
        if isinstance(entry, (Feature, MapFeature)):
            found.add(teacher_of(entry, recipe))
        elif isinstance(entry, Interchange):
            found.update(interchange_teachers(entry, recipe))
    return found


def paths_into(recipe: Recipe, teacher: str | None) -> set[Path]:
    """The internals of a teacher, or of the student (None), that the objectives use."""
    found: set[Path] = set()
    for entry in active_objectives(recipe).values():
        used: list[str] = []
        if isinstance(entry, (Feature, MapFeature)):
            used = [teacher_of(entry, recipe)]
        elif isinstance(entry, Interchange):
            used = interchange_teachers(entry, recipe)
        if used and (teacher is None or teacher in used):
            found |= {"blocks", "maps"} if isinstance(entry, MapFeature) else {"blocks"}
    return found


def teacher_of(entry: Feature | MapFeature, recipe: Recipe) -> str:
    """The name of the teacher whose hidden states or attention maps are compared."""
    if entry.teacher != COMBINED:
        return entry.teacher
    (teacher,) = recipe.teachers
    return teacher.name


def pairs_of(
    entry: Feature | MapFeature, student: PretrainedConfig, teacher: PretrainedConfig
) -> tuple[tuple[Site, Site], ...]:
    """The pairs of sites that an objective compares.

    Raises:
        ModelError: A model lacks one of the sites.
    """
    choose = layer_pairs if isinstance(entry, MapFeature) else site_pairs
    return tuple(choose(site_choices(entry), num_layers(student), num_layers(teacher)))


def projections_of(
    recipe: Recipe,
    terms: list[Term],
    student: PretrainedConfig,
    teachers: Mapping[str, PretrainedConfig],
    *,
    seed: int,
) -> Projections:
    """The projections of all hidden-state terms."""
    entries = active_objectives(recipe)
    made = {}
    for term in terms:
        if term.loss not in STATE_LOSSES:
            continue
        assert term.teacher is not None
        entry = entries.get(term.name)
        made[term.name] = TermProjections(
            term.pairs,
            width(student),
            width(teachers[term.teacher]),
            how=entry.projection if isinstance(entry, Feature) else "auto",
            term=term.name,
            seed=seed,
        )
    return Projections(made)


def feature_faults(
    recipe: Recipe, student: PretrainedConfig, teachers: Mapping[str, PretrainedConfig]
) -> Iterator[RecipeFault]:
    """Recipe faults: missing sites, unknown model families, different widths without a projection."""
    for index, entry in enumerate(recipe.objectives):
        if isinstance(entry, Interchange):
            yield from interchange_faults(f"objectives[{index}]", entry, recipe, student, teachers)
        if not isinstance(entry, (Feature, MapFeature)):
            continue
        place, name = f"objectives[{index}]", teacher_of(entry, recipe)
        models = (("the student", student.model_type), (f"teacher {name}", teachers[name].model_type))
        if unsupported := unsupported_families(entry.loss, models):
            yield RecipeFault(f"{place}.loss", unsupported)
            continue
        own, other = (ARCHITECTURES[config.model_type].task for config in (student, teachers[name]))
        if isinstance(entry, MapFeature) and own != other:
            message = (
                f"{entry.loss} compares attention maps, but of the student ({student.model_type}) and "
                f"teacher {name} ({teachers[name].model_type}) one attends causally and the other in both "
                "directions"
            )
            yield RecipeFault(f"{place}.loss", message)
        try:
            pairs_of(entry, student, teachers[name])
        except ModelError as error:
            yield RecipeFault(f"{place}.sites", str(error))
        own_width, other_width = width(student), width(teachers[name])
        if isinstance(entry, Feature) and entry.projection == "none" and own_width != other_width:
            yield RecipeFault(f"{place}.projection", widths_differ(name, own_width, other_width))


def weight_of(entry: Objective) -> float | Ramp | Steps:
    """An objective's weight, constant or scheduled."""
    return number(entry.weight)


def is_active(entry: Objective) -> bool:
    """Whether an objective's weight is positive at some step."""
    weights = [entry.weight]
    if isinstance(entry, Interchange):
        weights.append(entry.causal_cosine_weight)
    return any(is_ever_above_zero(number(weight)) for weight in weights)
