"""Caches as a training reads them: the stage that is made, or the folder that a recipe names, compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from stlm_kd.data.sources.files import expanded
from stlm_kd.distributed import on_main_process
from stlm_kd.errors import CheckpointError
from stlm_kd.losses import SPARSE_LOSSES
from stlm_kd.pipeline.stage_keys import cached_rows_key, model_identity
from stlm_kd.pipeline.stages.teacher_cache import CacheOrder
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.cache import responses_of
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.cache.format import WORDS, Manifest
from stlm_kd.teachers.cache.reader import TeacherCache


def differences(order: CacheOrder, manifest: Manifest, *, with_teacher: bool) -> Iterator[str]:
    """In which points a cache that was given is not what the recipe asks for, in words.

    Args:
        order: The recipe's.
        manifest: Of the cache.
        with_teacher: Whether the teacher's model is there, to be compared too.
    """
    expected = cached_rows_key(order)
    if with_teacher:
        trust = order.context.trust_remote_code
        expected["teacher"] = model_identity(order.model, trust_remote_code=trust)
    found: Mapping[str, object] = manifest.made_of
    if found.get("positions") == "attended":  # those with a label are among them
        expected["positions"] = "attended"
    for name, wanted in expected.items():
        if found.get(name) != wanted:
            values = f": {_truncated(found.get(name))} in the cache, {_truncated(wanted)} in the recipe"
            yield f"{WORDS[name]} differ{'' if name in ('variants', 'positions') else 's'}{values}"


def _truncated(value: object) -> str:
    text = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 20 else f"{text[:8]}…{text[-4:]}"


def opened(order: CacheOrder) -> TeacherCache:
    """The cache that a training reads: made as a stage, or the one that the recipe names.

    Raises:
        CheckpointError: The named one is damaged, or of something else.
    """
    path = order.options.path
    if path is None:
        return TeacherCache.open(order.made(), every_byte=False)  # a stage's files were compared just now
    folder = expanded(path)
    on_main_process(lambda: bool(_compared(order, folder)))
    return TeacherCache.open(folder, every_byte=False)


def _compared(order: CacheOrder, folder: Path) -> TeacherCache:
    cache = TeacherCache.open(folder)
    if found := list(cache_faults(order, cache.manifest)):
        raise CheckpointError(f"{folder}: not a cache for this recipe: {'; '.join(found)}; make one with it")
    return cache


def cache_faults(order: CacheOrder, manifest: Manifest) -> list[str]:
    """Why a cache that was given does not serve; empty where it does."""
    named = order.teacher.model
    there = named is not None and expanded(named).is_dir() and any(expanded(named).glob("*.safetensors"))
    return list(differences(order, manifest, with_teacher=there))


def unbiased_notes(recipe: Recipe, teacher: str) -> list[str]:
    """Which losses a cache serves without bias, and which only nearly."""
    entries = responses_of(recipe, teacher)
    losses = sorted({entry.loss for entry in entries})
    mixed = len(recipe.teachers) > 1 and any(entry.teacher == COMBINED for entry in entries)
    exact = [loss for loss in losses if loss in SPARSE_LOSSES]
    other = [loss for loss in losses if loss not in SPARSE_LOSSES]
    notes = []
    if exact:
        told = f"teacher {teacher} is read from its cache: {', '.join(exact)} is unbiased with it"
        if mixed:
            told += "; of the combined teachers its gradient is, its value is the mean of each teacher's own"
        notes.append(told)
    if other:
        notes.append(
            f"warning: teacher {teacher} is read from its cache, with which {', '.join(other)} is biased: "
            "the tail is spread evenly over the outcomes outside the head"
        )
    return notes
