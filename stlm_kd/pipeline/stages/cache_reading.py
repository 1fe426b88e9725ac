"""Open teacher caches for training: a stage, or a folder named in the recipe after validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from stlm_kd.distributed import on_main_process
from stlm_kd.errors import CheckpointError
from stlm_kd.losses import SPARSE_LOSSES
from stlm_kd.pipeline.stage_keys import cached_rows_key, model_identity
from stlm_kd.pipeline.stages.teacher_cache import CacheJob
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.cache import responses_of
from stlm_kd.sharing.names import expanded
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.cache.format import WORDS, Manifest
from stlm_kd.teachers.cache.reader import TeacherCache


def cache_faults(order: CacheJob, manifest: Manifest) -> Iterator[str]:
    """The differences between a given cache and the one that the recipe needs, in words."""
    expected = cached_rows_key(order)
    named = order.teacher.model
    if named is not None and expanded(named).is_dir() and any(expanded(named).glob("*.safetensors")):
        trust = order.context.trust_remote_code
        expected["teacher"] = model_identity(order.model, trust_remote_code=trust)
    found: Mapping[str, object] = manifest.made_of
    if found.get("positions") == "attended":  # includes the positions with a label
        expected["positions"] = "attended"
    for name, wanted in expected.items():
        if found.get(name) != wanted:
            values = f": {_truncated(found.get(name))} in the cache, {_truncated(wanted)} in the recipe"
            yield f"{WORDS[name]} differ{'' if name in ('variants', 'positions') else 's'}{values}"


def _truncated(value: object) -> str:
    text = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 20 else f"{text[:8]}…{text[-4:]}"


def opened(order: CacheJob) -> TeacherCache:
    """Open the cache for a training: a stage, or the named folder; CheckpointError if it does not match."""
    path = order.options.path
    if path is None:
        return TeacherCache.open(order.ensure(), every_byte=False)  # the stage's files were just verified
    folder = expanded(path)
    on_main_process(lambda: bool(_open_checked(order, folder)))
    return TeacherCache.open(folder, every_byte=False)


def _open_checked(order: CacheJob, folder: Path) -> TeacherCache:
    cache = TeacherCache.open(folder)
    if found := list(cache_faults(order, cache.manifest)):
        raise CheckpointError(f"{folder}: not a cache for this recipe: {'; '.join(found)}; make one with it")
    return cache


def unbiased_notes(recipe: Recipe, teacher: str) -> list[str]:
    """Notes on which losses are unbiased with a cached teacher, and which are biased."""
    entries = responses_of(recipe, teacher)
    losses = sorted({entry.loss for entry in entries})
    mixed = len(recipe.teachers) > 1 and any(entry.teacher == COMBINED for entry in entries)
    exact = [loss for loss in losses if loss in SPARSE_LOSSES]
    other = [loss for loss in losses if loss not in SPARSE_LOSSES]
    notes = []
    if exact:
        note = f"teacher {teacher} is read from its cache: {', '.join(exact)} is unbiased with it"
        mean = "; for combined teachers its gradient is, and its value is the mean of the teachers' losses"
        notes.append(note + mean if mixed else note)
    if other:
        notes.append(
            f"warning: teacher {teacher} is read from its cache, with which {', '.join(other)} is biased: "
            "the tail is spread evenly over the tokens or classes outside the head"
        )
    return notes
