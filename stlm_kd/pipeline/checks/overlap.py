"""Validation data that are trained on: measured, or refused; and other notes on a recipe's data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from stlm_kd.data.batches import PackedRows
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.data.overlap import Hashes, found_in, identical_file, text_hash
from stlm_kd.data.sources.files import ROWS, TEXTS, expanded, text_files
from stlm_kd.data.token_store import ends_inside
from stlm_kd.errors import DataError, MissingResourceError
from stlm_kd.notes import note
from stlm_kd.pipeline.builders.examples import all_examples, held_out_examples
from stlm_kd.pipeline.builders.text import held_out_rows, sources, student_tokenizer, training_rows
from stlm_kd.pipeline.context import RunContext
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.data import Source
from stlm_kd.recipe.validation.overlap import trainings

HeldOut = list[str] | Examples
"""Held-out documents, or labelled examples."""


def refuse_identical_files(recipe: Recipe) -> None:
    """Refuse a validation file with the content of a training file, unless ``data.allow_overlap`` says so.

    Training files of the recipes that teachers are trained by count as the student's own.

    Raises:
        DataError: There is one; the message names both.
        EnvironmentFault: A file is not there, or cannot be read.
    """
    if recipe.data.allow_overlap:
        return
    held = _files(recipe.data.validation or (), recipe)
    for _, teacher, trained in trainings(recipe):
        training = _files(trained.data.train, trained)
        try:
            found = identical_file(held, training)
        except OSError as error:
            raise MissingResourceError(
                f"{error.filename}: cannot be read ({error.strerror or error})"
            ) from error
        if found is not None:
            of_teacher = f" of teacher {teacher}" if teacher else ""
            raise DataError(
                f"data.validation: {found[0]} has the same content as the training file {found[1]}"
                f"{of_teacher}; expected data that are not trained on; name another file, or set "
                "data.allow_overlap: true"
            )


def _files(entries: Sequence[Source], recipe: Recipe) -> list[Path]:
    kinds = ROWS if recipe.language_task is None else TEXTS
    paths = [expanded(entry.path) for entry in entries if entry.path is not None]
    return [file for path in paths for file in text_files(path, kinds=kinds)]


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


def text_notes(parts: Sequence[PackedRows], held: Sequence[PackedRows], teacher: str = "") -> tuple[str, ...]:
    """How many held-out documents are trained on, if some are; by this teacher, where one is named."""
    if not held:
        return ()
    hashes = np.concatenate([part.store.document_hashes for part in held])
    sizes = np.concatenate([part.store.document_bytes for part in held])
    known = found_in(hashes, [part.store.document_hashes for part in parts])
    if not known.any():
        return ()
    share = float(sizes[known].sum() / sizes.sum())
    whose = f"of teacher {teacher}" if teacher else "too"
    return (
        f"overlap: {int(known.sum()):,} of {len(known):,} validation documents ({share:.1%} of their bytes) "
        f"are training documents {whose}; validation losses and scores on them are optimistic",
    )


def example_notes(examples: Examples, held: Examples | None, teacher: str = "") -> tuple[str, ...]:
    """How many held-out examples have the texts of a training example (of this teacher, if one is named)."""
    if held is None:
        return ()
    known = found_in(_hashes(held), [_hashes(examples)])
    if not known.any():
        return ()
    return (
        f"overlap: {int(known.sum()):,} of {len(known):,} validation examples ({known.mean():.1%}) have the "
        f"text of a training example{f' of teacher {teacher}' if teacher else ''}; scores on them are "
        "optimistic",
    )


def _hashes(examples: Examples) -> Hashes:
    return np.array([text_hash(*texts) for texts in examples.texts], np.uint64)


def note_trained_on(name: str, recipe: Recipe, files: Sequence[str], held: HeldOut) -> None:
    """Note that a model is scored on data of its own training, as far as files and labelled examples show it.

    Args:
        name: The model, for the note.
        recipe: By which it was trained.
        files: What it is scored on, as paths.
        held: What they hold.
    """
    try:
        training = _files(recipe.data.train, recipe)
        found = identical_file([expanded(file) for file in files if expanded(file).is_file()], training)
    except (MissingResourceError, OSError):
        return  # training data that are no longer there cannot be compared
    if found is not None:
        note(f"{name}: {found[0]} has the same content as {found[1]}, on which it was trained")
    elif isinstance(held, Examples) and recipe.language_task is None:
        for told in example_notes(all_examples(recipe), held):
            note(f"{name}: {told}")
