"""Validation data that are trained on: measured, or refused; and other notes on a recipe's data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from stlm_kd.data.batches import PackedRows
from stlm_kd.data.files import ROWS, TEXTS, expanded, text_files
from stlm_kd.data.labelled import Examples
from stlm_kd.data.overlap import Hashes, found_in, identical_file, text_hash
from stlm_kd.data.tokens import ends_inside
from stlm_kd.errors import DataError, EnvironmentFault
from stlm_kd.notes import note
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.data import Source
from stlm_kd.run.examples import all_examples, held_out_examples
from stlm_kd.run.text import held_out_rows, sources, training_rows
from stlm_kd.run.workshop import Workshop

HeldOut = list[str] | Examples
"""Held-out documents, or labelled examples."""


def refuse_identical_files(recipe: Recipe) -> None:
    """Refuse a validation file with the content of a training file, unless ``data.allow_overlap`` says so.

    Raises:
        DataError: There is one; the message names both.
        EnvironmentFault: A file is not there, or cannot be read.
    """
    if recipe.data.allow_overlap:
        return
    held = _files(recipe.data.validation or (), recipe)
    training = _files(recipe.data.train, recipe)
    try:
        found = identical_file(held, training)
    except OSError as error:
        raise EnvironmentFault(f"{error.filename}: cannot be read ({error.strerror or error})") from error
    if found is not None:
        raise DataError(
            f"data.validation: {found[0]} has the same content as the training file {found[1]}; expected "
            "data that are not trained on; name another file, or set data.allow_overlap: true"
        )


def _files(entries: Sequence[Source], recipe: Recipe) -> list[Path]:
    kinds = ROWS if recipe.language_task is None else TEXTS
    paths = [expanded(entry.path) for entry in entries if entry.path is not None]
    return [file for path in paths for file in text_files(path, kinds=kinds)]


def recipe_notes(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, workshop: Workshop) -> tuple[str, ...]:
    """The notes on all training and validation data of a recipe."""
    if recipe.language_task is None:
        return example_notes(all_examples(recipe), held_out_examples(recipe))
    parts, held = training_rows(recipe, tokenizer, workshop), held_out_rows(recipe, tokenizer, workshop)
    named = [
        *zip(recipe.data.train, parts, strict=True),
        *zip(recipe.data.validation or (), held, strict=True),
    ]
    ends = [
        line
        for (source,), part in ((sources([entry]), part) for entry, part in named)
        for line in ends_inside(part.store, tokenizer, place=source.described())
    ]
    return (*text_notes(parts, held), *ends)


def text_notes(parts: Sequence[PackedRows], held: Sequence[PackedRows]) -> tuple[str, ...]:
    """How many held-out documents are trained on, if some are."""
    if not held:
        return ()
    hashes = np.concatenate([part.store.document_hashes for part in held])
    sizes = np.concatenate([part.store.document_bytes for part in held])
    known = found_in(hashes, [part.store.document_hashes for part in parts])
    if not known.any():
        return ()
    share = float(sizes[known].sum() / sizes.sum())
    return (
        f"overlap: {int(known.sum()):,} of {len(known):,} validation documents ({share:.1%} of their bytes) "
        "are training documents too; validation losses and scores on them are optimistic",
    )


def example_notes(examples: Examples, held: Examples | None) -> tuple[str, ...]:
    """How many held-out examples have the texts of a training example."""
    if held is None:
        return ()
    known = found_in(_hashes(held), [_hashes(examples)])
    if not known.any():
        return ()
    return (
        f"overlap: {int(known.sum()):,} of {len(known):,} validation examples ({known.mean():.1%}) have the "
        "text of a training example; scores on them are optimistic",
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
    except (EnvironmentFault, OSError):
        return  # training data that are no longer there cannot be compared
    if found is not None:
        note(f"{name}: {found[0]} has the same content as {found[1]}, on which it was trained")
    elif isinstance(held, Examples) and recipe.language_task is None:
        for told in example_notes(all_examples(recipe), held):
            note(f"{name}: {told}")
