"""From a recipe's objectives to the terms that the models of a training can compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from transformers import PretrainedConfig

from stlm_kd.alignment import Site, layer_pairs, site_pairs
from stlm_kd.architectures import ARCHITECTURES
from stlm_kd.errors import Fault, ModelError
from stlm_kd.features import Projections, TermProjections
from stlm_kd.losses import LABELS
from stlm_kd.recipe import Recipe, term_names
from stlm_kd.recipe.objectives import Feature, MapFeature, Objective, Response, Schedule
from stlm_kd.schedules import Ramp, Steps
from stlm_kd.terms import COMBINED, Option, Term


def terms_of(
    recipe: Recipe, student: PretrainedConfig, teachers: Mapping[str, PretrainedConfig]
) -> list[Term]:
    """The recipe's objectives for a student and teachers of these configurations.

    Raises:
        ModelError: A site that one of them does not have; see ``feature_faults``, which names the place.
    """
    named = zip(term_names(recipe), recipe.objectives, strict=True)
    return [_term(name, entry, recipe, student, teachers) for name, entry in named]


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
        options={key: _option(value) for key, value in entry.options.items()},
        pairs=pairs,
    )


def teacher_of(entry: Feature | MapFeature, recipe: Recipe) -> str:
    """The name of the one teacher whose states or maps are compared."""
    if entry.teacher != COMBINED:
        return entry.teacher
    (teacher,) = recipe.teachers
    return teacher.name


def pairs_of(
    entry: Feature | MapFeature, student: PretrainedConfig, teacher: PretrainedConfig
) -> tuple[tuple[Site, Site], ...]:
    """The sites that an objective compares.

    Raises:
        ModelError: One of the models does not have them.
    """
    sites = tuple(
        {int(key): layers for key, layers in site.items()} if isinstance(site, dict) else site
        for site in entry.sites
    )
    choose = layer_pairs if isinstance(entry, MapFeature) else site_pairs
    return tuple(choose(sites, num_layers(student), num_layers(teacher)))


def num_layers(config: PretrainedConfig) -> int:
    """Blocks of a model."""
    return int(config.get_text_config().num_hidden_layers)


def width(config: PretrainedConfig) -> int:
    """Numbers in each of a model's hidden states."""
    return int(config.get_text_config().hidden_size)


def projections_of(
    recipe: Recipe,
    terms: list[Term],
    student: PretrainedConfig,
    teachers: Mapping[str, PretrainedConfig],
    *,
    seed: int,
) -> Projections:
    """The projections of all terms on states."""
    made = {}
    for term, entry in zip(terms, recipe.objectives, strict=True):
        if isinstance(entry, Feature):
            assert term.teacher is not None
            made[term.name] = TermProjections(
                term.pairs,
                width(student),
                width(teachers[term.teacher]),
                how=entry.projection,
                term=term.name,
                seed=seed,
            )
    return Projections(made)


def feature_faults(
    recipe: Recipe, student: PretrainedConfig, teachers: Mapping[str, PretrainedConfig]
) -> Iterator[Fault]:
    """Sites that a model does not have, families whose parts are not known, widths without a projection."""
    for index, entry in enumerate(recipe.objectives):
        if not isinstance(entry, (Feature, MapFeature)):
            continue
        place, name = f"objectives[{index}]", teacher_of(entry, recipe)
        unknown = [
            f"{who} is a {config.model_type}"
            for who, config in (("the student", student), (f"teacher {name}", teachers[name]))
            if config.model_type not in ARCHITECTURES
        ]
        if unknown:
            known = ", ".join(ARCHITECTURES)
            message = f"{entry.loss} looks into models, and {' and '.join(unknown)}; it knows {known}"
            yield Fault(f"{place}.loss", message)
            continue
        try:
            pairs_of(entry, student, teachers[name])
        except ModelError as error:
            yield Fault(f"{place}.sites", str(error))
        if (
            isinstance(entry, Feature)
            and entry.projection == "none"
            and width(student) != width(teachers[name])
        ):
            message = (
                f"none, but the student's states have {width(student)} numbers and those of teacher {name} "
                f"{width(teachers[name])}; use auto or linear"
            )
            yield Fault(f"{place}.projection", message)


def weight_of(entry: Objective) -> float | Ramp | Steps:
    """How much an objective weighs, and when."""
    return _number(entry.weight)


def _number(value: float | Schedule) -> float | Ramp | Steps:
    if not isinstance(value, Schedule):
        return value
    if value.schedule == "step-wise":
        return Steps(tuple(zip((0.0, *(value.at or ())), value.values, strict=True)))
    assert value.between is not None
    first, last = value.values
    return Ramp(value.schedule, first, last, *value.between)


def _option(value: object) -> Option | Ramp | Steps:
    return _number(value) if isinstance(value, Schedule) else cast(Option, value)
