"""A recipe's labelled examples: sources, class names and fingerprints."""

from __future__ import annotations

from collections.abc import Sequence

from stlm_kd.data.labelled.examples import (
    DEFAULT_LABEL,
    DEFAULT_TEXT,
    Examples,
    LabelledSource,
    draw_fraction,
    fingerprint,
    known_examples,
)
from stlm_kd.errors import DataError
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.data import Source


def labelled_sources(entries: Sequence[Source]) -> tuple[LabelledSource, ...]:
    """The recipe's sources for the data layer."""
    return tuple(
        LabelledSource(
            text=entry.text or DEFAULT_TEXT,
            label=entry.label or DEFAULT_LABEL,
            **{entry.kind: entry.value},
            **entry.options(labelled=True),
        )
        for entry in entries
    )


def all_examples(recipe: Recipe) -> Examples:
    """All training examples, regardless of ``data.fraction``.

    Raises:
        MissingResourceError, DataError: As ``read_examples``; the message names ``data.train``.
    """
    return _read(recipe, recipe.data.train, recipe.data.labels or (), "data.train")


def training_examples(recipe: Recipe, fraction: float, *, seed: int) -> Examples:
    """A fraction of the training examples, drawn per class with the seed.

    Raises:
        MissingResourceError, DataError: As ``all_examples``, or the fraction leaves a class without
            examples.
    """
    found = all_examples(recipe)
    return found if fraction == 1.0 else draw_fraction(found, fraction, seed=seed)


def class_names_of(recipe: Recipe) -> tuple[str, ...]:
    """The class names, given or collected from the training examples; empty for regression."""
    if recipe.task == "regression":
        return ()
    return recipe.data.labels or all_examples(recipe).label_names


def held_out_examples(recipe: Recipe) -> Examples | None:
    """The validation examples, with the classes of the training examples; None without validation.

    Raises:
        MissingResourceError, DataError: As ``read_examples``; the message names ``data.validation``.
    """
    if not recipe.data.validation:
        return None
    labels_of = "" if recipe.data.labels else "data.train"
    return _read(recipe, recipe.data.validation, class_names_of(recipe), "data.validation", labels_of)


def _read(
    recipe: Recipe, entries: Sequence[Source], labels: Sequence[str], place: str, labels_of: str = ""
) -> Examples:
    sources = labelled_sources(entries)
    try:
        prints = tuple(fingerprint(source) for source in sources)
        return known_examples(sources, prints, tuple(labels), recipe.task == "regression", labels_of)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
