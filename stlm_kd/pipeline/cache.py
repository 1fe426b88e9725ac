"""The teacher cache commands: write caches for a recipe, inspect one, verify one against its teacher."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from stlm_kd.artifacts.atomic import write_json
from stlm_kd.artifacts.hashing import hashed_anew
from stlm_kd.artifacts.run_dir import file_name
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distributed import on_main_process
from stlm_kd.errors import CheckpointError, MissingResourceError
from stlm_kd.models.forward import autocast
from stlm_kd.models.outputs import OutputSpec
from stlm_kd.pipeline.builders.models import live_teacher
from stlm_kd.pipeline.checks.validate import check_recipe
from stlm_kd.pipeline.context import RunContext, context_for
from stlm_kd.pipeline.recording import recorded_once
from stlm_kd.pipeline.stage_keys import model_identity
from stlm_kd.pipeline.stages.teacher import cached_teacher, prepare_teacher
from stlm_kd.pipeline.stages.teacher_cache import CacheJob, work_of
from stlm_kd.pipeline.stages.tokenizer import setup_of
from stlm_kd.recipe import Recipe, from_values, named_recipe, values_of
from stlm_kd.sharing.names import expanded, hub_name_or_path
from stlm_kd.teachers.cache.reader import TeacherCache, kept_positions
from stlm_kd.teachers.cache.shards import Array, checksums
from stlm_kd.teachers.cache.writer import columns_of
from stlm_kd.teachers.protocol import TeacherOutput
from stlm_kd.training.processes import current_device

LARGEST_DIFFERENCE = 5e-3
"""Tolerance for a recomputed probability; half precision causes a tenth of it."""

LEAST_AGREEMENT = 0.95  # minimum share of equal top-k ids; equally likely tokens may swap places


@dataclass(frozen=True, slots=True)
class CacheSummary:
    """The facts that ``inspect`` prints; sizes in bytes, entropy in nats."""

    folder: str
    teacher: str
    rows: int
    variants: int
    tokens: int
    bytes: int
    bytes_per_token: float
    shards: int
    kept: str
    temperature: float
    head_covers: float
    entropy: float
    states: Mapping[str, int]
    made_of: Mapping[str, object]

    @property
    def is_merged(self) -> bool:
        """Whether it caches a mixture, which is exact on the tokens in the teachers' top-k."""
        return _is_merged(self.made_of)


def _is_merged(made_of: Mapping[str, object]) -> bool:
    teacher = made_of.get("teacher")
    return isinstance(teacher, dict) and "merged" in teacher


def build_cache(
    recipe: Recipe | str,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    output_dir: str | PathLike[str] = "runs",
    resume: bool = True,
    update: bool = False,
    trust_remote_code: bool = False,
    command: str = "",
) -> dict[str, list[Path]]:
    """Write each teacher's missing caches for the recipe's data; return the folders by teacher.

    Trains and adapts the teachers first where required. A teacher without ``cache`` gets the default.

    Args:
        recipe: A recipe, a file, or a built-in name.
        overrides: Changes ``key.path=value``, for a recipe given by name.
        name: The run's name; default: the recipe's, with ``-cache``.
        output_dir: Contains all runs and their shared stages.
        resume: Whether to resume an unfinished cache.
        update: Whether to follow names on the Hub that have moved since the run's last start.
        trust_remote_code: Whether to run code shipped with a model.
        command: The command line, for the record.

    Raises:
        StlmKdError: As ``distill``.
    """
    recipe, name = named_recipe(recipe, overrides, name)
    output_dir = Path(output_dir)
    given = values_of(recipe)
    teachers = given["teachers"]
    assert isinstance(teachers, list)
    given["teachers"] = [
        {"cache": "auto", **teacher} if isinstance(teacher, dict) else teacher for teacher in teachers
    ]
    full = from_values(given, origin=name)
    run_name = f"{file_name(name)[:58]}-cache"
    with recorded_once(full, name=run_name, output_dir=output_dir, command=command, update=update) as run:
        context = context_for(
            full, output_dir, resume=resume, trust_remote_code=trust_remote_code, run_name=run.name
        )
        setup = setup_of(full, context)
        on_main_process(lambda: check_recipe(setup, origin=name))
        caches = {}
        for teacher in full.teachers:
            if teacher.is_only_read:
                continue
            caches[teacher.name] = cached_teacher(setup, teacher, prepare_teacher(setup, teacher).model)
        found = {
            name: [asdict(inspect_cache(folder)) for folder in folders] for name, folders in caches.items()
        }
        on_main_process(lambda: write_json(run / "results.json", {"caches": found}))
    return caches


def inspect_cache(folder: str | PathLike[str]) -> CacheSummary:
    """Summarise a cache's manifest, after checking the size of every shard.

    Args:
        folder: The cache's folder.

    Raises:
        MissingResourceError: The cache does not exist.
        CheckpointError: It is damaged, or a shard is truncated or missing.
    """
    manifest = TeacherCache.open(Path(folder), every_byte=False).manifest
    layout = manifest.layout
    names = manifest.source.get("names")
    merged = f"{', '.join(map(str, names))} merged" if isinstance(names, list) else None
    kept = "all logits" if layout.logits else f"top-{layout.head} tokens and {layout.draws} tail samples"
    return CacheSummary(
        folder=str(folder),
        teacher=merged or str(manifest.source.get("teacher")),
        rows=manifest.rows,
        variants=manifest.variants,
        tokens=manifest.tokens,
        bytes=manifest.num_bytes,
        bytes_per_token=manifest.num_bytes / max(manifest.tokens, 1),
        shards=len(manifest.shards),
        kept=kept,
        temperature=layout.temperature,
        head_covers=manifest.covered,
        entropy=manifest.entropy,
        states=layout.states,
        made_of=manifest.made_of,
    )


@dataclass(frozen=True, slots=True)
class Verification:
    """The difference between part of a cache and its teacher's recomputed outputs.

    Attributes:
        rows: Recomputed rows.
        tokens: Tokens in these rows.
        difference: The largest absolute difference: of probabilities, of entropies and hidden states relative
            to their largest value, or of logits.
        ids: The share of equal ids; 1 for logits.
        not_finite: Number of NaN or infinite values, which have no difference; values that are minus infinity
            in both are not counted.
    """

    rows: int
    tokens: int
    difference: float
    ids: float
    not_finite: int = 0

    @property
    def agrees(self) -> bool:
        """Whether the difference is within rounding error and every value is finite."""
        close = self.difference <= LARGEST_DIFFERENCE and self.ids >= LEAST_AGREEMENT
        return close and not self.not_finite


def verify_cache(
    folder: str | PathLike[str],
    *,
    rows: int = 16,
    seed: int = 0,
    output_dir: str | PathLike[str] = "runs",
    trust_remote_code: bool = False,
) -> Verification | None:
    """Recompute randomly drawn rows of a cache and compare them with the stored ones.

    None for an intact merged cache, which has no single teacher to compare with.

    Args:
        folder: The cache's folder.
        rows: Number of rows.
        seed: Random seed of the rows.
        output_dir: Contains the stages that a teacher's data may come from.
        trust_remote_code: Whether to run code shipped with a model.

    Raises:
        CheckpointError: The cache is damaged, or belongs to another revision of its teacher.
        MissingResourceError: The cache, its teacher or its data is missing.
    """
    with hashed_anew():
        cache, stages_in = TeacherCache.open(Path(folder)), Path(output_dir).absolute()
    if _is_merged(cache.manifest.made_of):
        return None
    with _original_directory(cache):
        return _verify(cache, _order_of(cache, stages_in, trust_remote_code), rows, seed)


@contextmanager
def _original_directory(cache: TeacherCache) -> Iterator[None]:
    """Change to the folder that relative paths in the cache's recipe start from, if it exists."""
    before, directory = Path.cwd(), cache.manifest.source.get("directory")
    if isinstance(directory, str) and Path(directory).is_dir():
        os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


def _verify(cache: TeacherCache, order: CacheJob, rows: int, seed: int) -> Verification:
    folder = cache.folder
    work = replace(work_of(order, training_data := order.training_data()), items_per_shard=1)
    if work.items != cache.manifest.items or training_data.num_rows != cache.manifest.rows:
        raise CheckpointError(f"{folder}: of {cache.manifest.rows} rows, but the data has {work.rows} now")
    device = current_device()
    live = live_teacher(order.model, order, training_data, name=order.teacher.name)

    def outputs(batch: AnyBatch, needs: OutputSpec) -> TeacherOutput:
        return live(batch.to(device), needs)

    chosen = np.random.default_rng(seed).permutation(work.items)[:rows].tolist()
    found = []
    with autocast(device, order.recipe.train.precision), torch.no_grad(), live.whole_head():
        for item in chosen:
            ((items, batch),) = work.batches(item)
            stored = cache.items(items)
            if checksums(batch) != stored.checks.tolist():
                raise CheckpointError(
                    f"{folder}: item {item} was computed from other text than the current data"
                )
            made = columns_of(outputs, batch, kept_positions(batch, work.layout), items, work)
            found.append(_compared(stored.columns, made))
    return Verification(
        rows=len(chosen),
        tokens=sum(entry.tokens for entry in found),
        difference=max(entry.difference for entry in found),
        ids=float(np.average([entry.ids for entry in found], weights=[max(e.tokens, 1) for e in found])),
        not_finite=sum(entry.not_finite for entry in found),
    )


def _compared(stored: Mapping[str, Array], made: Mapping[str, Array]) -> Verification:
    if "logits" in stored:
        sides = [side["logits"].astype(np.float64) for side in (stored, made)]
        ruled_out = np.isneginf(sides[0]) & np.isneginf(sides[1])
        apart, not_finite = _apart(*(np.where(ruled_out, 0.0, side) for side in sides))
        return Verification(1, len(made["logits"]), apart, 1.0, not_finite)
    found = []
    for name in ("log_probs", "tail", "label_log_probs"):
        found.append(_apart(*(np.exp(side[name].astype(np.float64)) for side in (stored, made))))
    for name in made:
        if name == "entropy" or name.startswith("state."):
            here, there = (side[name].astype(np.float64) for side in (stored, made))
            largest = np.abs(there[np.isfinite(there)]).max(initial=1e-6)
            found.append(_apart(here / largest, there / largest))
    same = float((stored["ids"] == made["ids"]).mean()) if made["ids"].size else 1.0
    apart, not_finite = max(one for one, _ in found), sum(count for _, count in found)
    return Verification(1, len(made["tail"]), apart, same, not_finite)


def _apart(stored: Array, made: Array) -> tuple[float, int]:
    """The largest difference of finite values, and the number of non-finite ones."""
    finite = np.isfinite(stored) & np.isfinite(made)
    differences = np.abs(stored[finite] - made[finite])
    return float(differences.max(initial=0.0)), int((~finite).sum())


def _order_of(cache: TeacherCache, output_dir: Path, trust_remote_code: bool) -> CacheJob:
    source, folder = cache.manifest.source, cache.folder
    values, name, model, seed = (source.get(key) for key in ("recipe", "teacher", "model", "seed"))
    if not isinstance(values, dict) or not isinstance(model, str) or type(seed) is not int:
        raise CheckpointError(
            f"{folder}: its manifest names no recipe and teacher to compare it with; rebuild the cache"
        )
    recipe = from_values(values, origin=f"{folder}: recipe", is_stored=True)
    teacher = next((entry for entry in recipe.teachers if entry.name == name), None)
    if teacher is None:
        raise CheckpointError(f"{folder}: damaged, its recipe has no teacher {name!r}; rebuild the cache")
    context = RunContext(output_dir, trust_remote_code=trust_remote_code)
    identity = cache.manifest.made_of.get("teacher")
    if hub_name_or_path(model) is None and not expanded(model).is_dir():
        raise MissingResourceError(
            f"{folder}: its teacher is missing: {expanded(model).absolute()}; restore it"
        )
    if model_identity(model, trust_remote_code=trust_remote_code) != identity:
        raise CheckpointError(f"{folder}: {model} is another revision than the cached teacher")
    return CacheJob.of(setup_of(recipe, context), teacher, model, seed)
