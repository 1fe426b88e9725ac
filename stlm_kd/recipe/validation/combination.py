"""Conflicts of ``combine`` with the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stlm_kd.recipe.schema.objective import LABELS
from stlm_kd.recipe.schema.root import Recipe
from stlm_kd.recipe.validation.conflict import Conflict, Place, known_names
from stlm_kd.teachers import COMBINED

_COMBINE: Place = ("combine",)
_HOW: Place = ("combine", "how")
_TEACHERS: Place = ("teachers",)


def combination_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Conflicts of the combination with the teachers, the objectives, the data or the task."""
    combine = recipe.combine
    place = _HOW if combine.how != "mean" else (*_COMBINE, "teacher_dropout")
    given = combine.how if combine.how != "mean" else "teacher_dropout"
    if combine.how != "mean" or combine.teacher_dropout:
        if len(recipe.teachers) < 2:
            found = "1 teacher" if recipe.teachers else "no teacher"
            yield (place, _TEACHERS), f"{given} with {found}; expected at least two, or no combine"
        asks = [entry for entry in recipe.objectives if entry.loss != LABELS]
        if asks and all(entry.teacher != COMBINED for entry in asks):
            message = f"{given} given, but every objective names one teacher, so nothing is combined"
            yield (place, ("objectives",)), message
    if combine.teacher_dropout and combine.how == "random" and combine.options.get("per") == "batch":
        message = "given, but random selects one teacher per batch, so none can be dropped; remove it"
        yield ((*_COMBINE, "teacher_dropout"), _HOW), message
    if combine.how == "learned" and recipe.language_task is None:
        message = f"learned reads the input of a vocabulary head, and a {recipe.task} model has none"
        yield (_HOW, ("task",)), f"{message}; use another way, such as label-likelihood"
    if combine.how == "weighted":
        yield from _weights(combine.options["weights"], (*_COMBINE, "weights"), recipe)
    elif combine.how == "domains":
        yield from _domains(combine.options["weights"], recipe)
    elif combine.how == "annealed":
        yield from _annealed(combine.options, recipe)


def _weights(weights: Mapping[str, float], place: Place, recipe: Recipe) -> Iterator[Conflict]:
    """Check that each teacher has one weight."""
    names = [teacher.name for teacher in recipe.teachers]
    for name in weights:
        if name not in names:
            message = f"not a teacher of this recipe{known_names(name, names)}"
            yield ((*place, name), _TEACHERS), message
    missing = [name for name in names if name not in weights]
    if missing:
        yield (place, _TEACHERS), f"no weight for {', '.join(missing)}; expected one each"
    if weights and not any(weights.values()):
        yield (place,), "all are 0; expected at least one above 0"


def _domains(weights: Mapping[str, Mapping[str, float]], recipe: Recipe) -> Iterator[Conflict]:
    """Check that each domain of the training text has weights."""
    place: Place = (*_COMBINE, "weights")
    train: Place = ("data", "train")
    if recipe.language_task is None:
        yield (_HOW, ("task",)), f"domains given, but the examples of a {recipe.task} have no domain"
        return
    known = list(dict.fromkeys(source.domain for source in recipe.data.train))
    for domain, own in weights.items():
        if domain not in known:
            message = f"no domain of data.train{known_names(domain, known)}"
            yield ((*place, domain), train), message
        yield from _weights(own, (*place, domain), recipe)
    missing = [domain for domain in known if domain not in weights]
    if missing:
        yield (place, train), f"no weights for domain {', '.join(missing)}; expected weights for each"


def _annealed(options: Mapping[str, object], recipe: Recipe) -> Iterator[Conflict]:
    """Check the two teachers and the transition between them."""
    names = [teacher.name for teacher in recipe.teachers]
    ends = [str(options[key]) for key in ("first", "last")]
    unknown = {key: name for key, name in zip(("first", "last"), ends, strict=True) if name not in names}
    for key, name in unknown.items():
        yield (
            ((*_COMBINE, key), _TEACHERS),
            f"{name} is not a teacher of this recipe{known_names(name, names)}",
        )
    others = [name for name in names if name not in ends]
    if ends[0] == ends[1]:
        yield ((*_COMBINE, "last"), (*_COMBINE, "first")), f"{ends[0]} is also the first teacher"
    elif others and not unknown:
        message = f"from {ends[0]} to {ends[1]}, and never uses {', '.join(others)}; remove unused teachers"
        yield (_HOW, _TEACHERS), message
    begin, end = options["begin"], options["end"]
    assert isinstance(begin, float) and isinstance(end, float)
    if begin >= end:
        yield (
            ((*_COMBINE, "end"), (*_COMBINE, "begin")),
            f"{end:g} found; expected more than {begin:g}",
        )
