"""Validation data that are trained on: measured, or refused; and other notes on a recipe's data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from transformers import PreTrainedTokenizerFast

from stlm_kd.data.batches import PackedRows
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.data.overlap import identical_file
from stlm_kd.data.sources.files import expanded
from stlm_kd.data.token_store import ends_inside
from stlm_kd.errors import MissingResourceError
from stlm_kd.notes import note
from stlm_kd.pipeline.builders.examples import all_examples, held_out_examples
from stlm_kd.pipeline.builders.overlap import HeldOut, example_notes, local_files, text_notes
from stlm_kd.pipeline.builders.text import held_out_rows, sources, training_rows
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.stages.tokenizer import student_tokenizer
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.validation.overlap import trainings


def recipe_notes(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, context: RunContext) -> tuple[str, ...]:
    """The notes on all training and validation data of a recipe, and on what its teachers are trained on."""
    others = [(name, trained) for _, name, trained in trainings(recipe) if name]
    if recipe.language_task is None:
        examples = held_out_examples(recipe)
        told = [example_notes(all_examples(trained), examples, name) for name, trained in others]
        return (*example_notes(all_examples(recipe), examples), *chain(*told))
    parts, held = _most_rows(recipe, tokenizer, context), held_out_rows(recipe, tokenizer, context)
    told = []
    for name, trained in others if held else ():
        read = _most_rows(trained, student_tokenizer(trained, context), context)
        told.append(text_notes(read, held, name))
    named = [
        *zip(recipe.data.train, parts, strict=True),
        *zip(recipe.data.validation or (), held, strict=True),
    ]
    ends = [
        line
        for (source,), part in ((sources([entry]), part) for entry, part in named)
        for line in ends_inside(part.store, tokenizer, place=source.described())
    ]
    return (*text_notes(parts, held), *chain(*told), *ends)


def _most_rows(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, context: RunContext
) -> tuple[PackedRows, ...]:
    """The largest share of the training text that the student, a control or an adaptation reads."""
    adaptations = (teacher.adapt for teacher in recipe.teachers if teacher.adapt is not None)
    shares = [adapt.fraction for adapt in adaptations if adapt.fraction is not None]
    largest = 1.0 if "all-data" in recipe.controls else max([recipe.data.fraction, *shares])
    return training_rows(recipe, tokenizer, context, fraction=largest)


def note_trained_on(name: str, recipe: Recipe, files: Sequence[str], held: HeldOut) -> None:
    """Note that a model is scored on data of its own training, as far as files and labelled examples show it.

    Args:
        name: The model, for the note.
        recipe: By which it was trained.
        files: What it is scored on, as paths.
        held: What they hold.
    """
    try:
        training = local_files(recipe.data.train, recipe)
        found = identical_file([expanded(file) for file in files if expanded(file).is_file()], training)
    except (MissingResourceError, OSError):
        return  # training data that are no longer there cannot be compared
    if found is not None:
        note(f"{name}: {found[0]} has the same content as {found[1]}, on which it was trained")
    elif isinstance(held, Examples) and recipe.language_task is None:
        for told in example_notes(all_examples(recipe), held):
            note(f"{name}: {told}")
