"""Overlap of validation and training data: an error for identical files, a count of shared documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stlm_kd.data.batches import PackedRows
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.data.overlap import Hashes, found_in, identical_file, text_hash
from stlm_kd.errors import DataError, MissingResourceError
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.data import Source
from stlm_kd.recipe.validation.overlap import trainings

HeldOut = list[str] | Examples  # held-out documents, or labelled examples


def refuse_identical_files(recipe: Recipe) -> None:
    """Raise DataError if a validation file equals a training file, unless ``data.allow_overlap``.

    Includes the training files of the teachers' recipes.
    """
    if recipe.data.allow_overlap:
        return
    held = local_files(recipe.data.validation or (), recipe)
    for _, teacher, trained in trainings(recipe):
        training = local_files(trained.data.train, trained)
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


def local_files(entries: Sequence[Source], recipe: Recipe) -> list[Path]:
    """The local files of the given sources."""
    labelled = recipe.language_task is None
    return [
        file
        for entry in entries
        for file in entry.entry.files(entry.value, labelled or entry.chat is not None)
    ]


def text_notes(parts: Sequence[PackedRows], held: Sequence[PackedRows], teacher: str = "") -> tuple[str, ...]:
    """A note on held-out documents that are also training documents (of the named teacher)."""
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
    """A note on held-out examples with the text of a training example (of the named teacher)."""
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
