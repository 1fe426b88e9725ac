"""Conflicts of ``combine`` with the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stlm_kd.recipe.schema.objective import LABELS
from stlm_kd.recipe.schema.root import Recipe
from stlm_kd.recipe.validation.conflict import Conflict, Place, known_names, not_a_teacher
from stlm_kd.teachers import COMBINED

_HOW: Place = ("combine", "how")
_TEACHERS: Place = ("teachers",)


def combination_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Conflicts of the combination with the teachers, the objectives, the data or the task."""
    combine = recipe.combine
    dropout: Place = ("combine", "teacher_dropout")
    if combine.how != "mean" or combine.teacher_dropout:
        place, given = (_HOW, combine.how) if combine.how != "mean" else (dropout, "teacher_dropout")
        if len(recipe.teachers) < 2:
            found = "1 teacher" if recipe.teachers else "no teacher"
            yield (place, _TEACHERS), f"{given} with {found}; expected at least two, or no combine"
        asks = [entry for entry in recipe.objectives if entry.loss != LABELS]
        if asks and all(entry.teacher != COMBINED for entry in asks):
            message = f"{given} given, but every objective names one teacher, so nothing is combined"
            yield (place, ("objectives",)), message
    if combine.teacher_dropout and combine.how == "random" and combine.options.get("per") == "batch":
        message = "given, but random selects one teacher per batch, so none can be dropped; remove it"
        yield (dropout, _HOW), message
    if combine.how == "learned" and recipe.language_task is None:
        message = f"learned reads the input of a vocabulary head, and a {recipe.task} model has none"
        yield (_HOW, ("task",)), f"{message}; use another way, such as label-likelihood"
    if combine.how == "weighted":
        yield from _weights(combine.options["weights"], ("combine", "weights"), recipe)
    elif combine.how == "domains":
        yield from _domains(combine.options["weights"], recipe)
    elif combine.how == "annealed":
        yield from _annealed(combine.options, recipe)


def _weights(weights: Mapping[str, float], place: Place, recipe: Recipe) -> Iterator[Conflict]:
    """Check that each teacher has one weight."""
    names = [teacher.name for teacher in recipe.teachers]
    for name in weights:
        if name not in names:
            yield ((*place, name), _TEACHERS), f"not a teacher of this recipe{known_names(name, names)}"
    missing = [name for name in names if name not in weights]
    if missing:
        yield (place, _TEACHERS), f"no weight for {', '.join(missing)}; expected one each"
    if weights and not any(weights.values()):
        yield (place,), "all are 0; expected at least one above 0"


def _domains(weights: Mapping[str, Mapping[str, float]], recipe: Recipe) -> Iterator[Conflict]:
    """Check that each domain of the training text has weights."""
    place: Place = ("combine", "weights")
    train: Place = ("data", "train")
    if recipe.language_task is None:
        yield (_HOW, ("task",)), f"domains given, but the examples of a {recipe.task} have no domain"
        return
    known = list(dict.fromkeys(source.domain for source in recipe.data.train))
    for domain, own in weights.items():
        if domain not in known:
            yield ((*place, domain), train), f"no domain of data.train{known_names(domain, known)}"
        yield from _weights(own, (*place, domain), recipe)
    missing = [domain for domain in known if domain not in weights]
    if missing:
        yield (place, train), f"no weights for domain {', '.join(missing)}; expected weights for each"


def _annealed(options: Mapping[str, Any], recipe: Recipe) -> Iterator[Conflict]:
    """Check the two teachers and the transition between them."""
    names = [teacher.name for teacher in recipe.teachers]
    first, last, begin, end = (options[key] for key in ("first", "last", "begin", "end"))
    unknown = {key: name for key, name in (("first", first), ("last", last)) if name not in names}
    for key, name in unknown.items():
        yield (("combine", key), _TEACHERS), not_a_teacher(name, names)
    others = [name for name in names if name not in (first, last)]
    if first == last:
        yield (("combine", "last"), ("combine", "first")), f"{first} is also the first teacher"
    elif others and not unknown:
        message = f"from {first} to {last}, and never uses {', '.join(others)}; remove unused teachers"
        yield (_HOW, _TEACHERS), message
    if begin >= end:
        yield (("combine", "end"), ("combine", "begin")), f"{end:g} found; expected more than {begin:g}"
