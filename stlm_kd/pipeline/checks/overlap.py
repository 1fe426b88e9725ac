"""Notes on a recipe's data: overlap of validation and training data, special tokens inside the text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from stlm_kd.data.batches import PackedRows
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.data.overlap import identical_file
from stlm_kd.data.token_store import ends_inside
from stlm_kd.errors import MissingResourceError
from stlm_kd.notes import note
from stlm_kd.pipeline.builders.examples import all_examples, held_out_examples
from stlm_kd.pipeline.builders.overlap import HeldOut, example_notes, local_files, text_notes
from stlm_kd.pipeline.builders.sources import sources
from stlm_kd.pipeline.builders.text import held_out_rows, training_rows
from stlm_kd.pipeline.context import RecipeSetup
from stlm_kd.pipeline.stages.tokenizer import setup_of
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.validation.overlap import trainings
from stlm_kd.sharing.names import expanded


def recipe_notes(setup: RecipeSetup) -> tuple[str, ...]:
    """The notes on a recipe's training and validation data, and on the training data of its teachers."""
    recipe, context = setup.recipe, setup.context
    others = [(name, trained) for _, name, trained in trainings(recipe) if name]
    if recipe.language_task is None:
        examples = held_out_examples(recipe)
        notes = [example_notes(all_examples(trained), examples, name) for name, trained in others]
        return (*example_notes(all_examples(recipe), examples), *chain(*notes))
    parts, held = _most_rows(setup), held_out_rows(setup)
    notes = []
    for name, trained in others if held else ():
        notes.append(text_notes(_most_rows(setup_of(trained, context)), held, name))
    named = [
        *zip(recipe.data.train, parts, strict=True),
        *zip(recipe.data.validation or (), held, strict=True),
    ]
    ends = [
        line
        for (source,), part in ((sources([entry]), part) for entry, part in named)
        for line in ends_inside(part.store, setup.tokenizer, place=source.described())
    ]
    return (*text_notes(parts, held), *chain(*notes), *ends)


def _most_rows(setup: RecipeSetup) -> tuple[PackedRows, ...]:
    """The largest fraction of the training text used by the student, a control or an adaptation."""
    recipe = setup.recipe
    adaptations = (teacher.adapt for teacher in recipe.teachers if teacher.adapt is not None)
    shares = [adapt.fraction for adapt in adaptations if adapt.fraction is not None]
    largest = 1.0 if "all-data" in recipe.controls else max([recipe.data.fraction, *shares])
    return training_rows(setup, fraction=largest)


def note_trained_on(name: str, recipe: Recipe, files: Sequence[str], held: HeldOut) -> None:
    """Note that a model is scored on data that its recipe trained it on, by file content and example texts.

    ``held`` is the content of the evaluation files.
    """
    try:
        training = local_files(recipe.data.train, recipe)
        found = identical_file([expanded(file) for file in files if expanded(file).is_file()], training)
    except (MissingResourceError, OSError):
        return  # the training data is gone, so nothing can be compared
    if found is not None:
        note(f"{name}: {found[0]} has the same content as {found[1]}, on which it was trained")
    elif isinstance(held, Examples) and recipe.language_task is None:
        for line in example_notes(all_examples(recipe), held):
            note(f"{name}: {line}")
