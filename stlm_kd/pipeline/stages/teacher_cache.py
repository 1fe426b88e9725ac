"""Teacher caches as stages."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from stlm_kd.activity import doing
from stlm_kd.artifacts.stage_store import Json
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.data.tokenizers import load_tokenizer, tokenizer_identity
from stlm_kd.distributed import (
    largest_of_all,
    launched_processes,
    on_main_process,
    process_rank,
    wait_for_all,
)
from stlm_kd.errors import error_context, printable
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.forward import autocast
from stlm_kd.models.load import load_config
from stlm_kd.models.outputs import OutputSpec
from stlm_kd.pipeline.builders.data import PackedText, TrainingData, batch_sizes, build_training_data
from stlm_kd.pipeline.builders.examples import class_names_of
from stlm_kd.pipeline.builders.flops import pass_cost
from stlm_kd.pipeline.builders.models import empty_model, live_teacher, placement_here, teacher_place
from stlm_kd.pipeline.builders.numbers import width
from stlm_kd.pipeline.builders.objective import feature_teachers
from stlm_kd.pipeline.builders.text import mask_variants
from stlm_kd.pipeline.builders.translating import translation_of
from stlm_kd.pipeline.context import RecipeSetup
from stlm_kd.pipeline.jobs import PrefixedLines
from stlm_kd.pipeline.stage_keys import cache_key
from stlm_kd.recipe import values_of
from stlm_kd.recipe.schema.cache import Cache, positions_of, temperature_of
from stlm_kd.recipe.schema.root import Teacher
from stlm_kd.teachers.cache.format import Layout
from stlm_kd.teachers.cache.writer import (
    Work,
    cached_outputs,
    complete,
    estimated_bytes,
    require_space,
    shard_items,
    unwritten,
    write,
)
from stlm_kd.teachers.protocol import TeacherOutput
from stlm_kd.tracking.console import CacheProgress
from stlm_kd.training.processes import current_device
from stlm_kd.vocabulary.token_bytes import vocabulary_size


@dataclass(frozen=True, slots=True)
class CacheJob(RecipeSetup):
    """The cache of a prepared teacher (folder or Hub id); the student's seed draws the examples."""

    teacher: Teacher
    model: str
    seed: int

    @classmethod
    def of(cls, setup: RecipeSetup, teacher: Teacher, model: str, seed: int) -> CacheJob:
        return cls(setup.recipe, setup.tokenizer, setup.context, teacher, model, seed)

    @property
    def options(self) -> Cache:
        assert self.teacher.cache is not None
        return self.teacher.cache

    def ensure(self) -> Path:
        """The cache's folder; builds the cache if it is missing. All processes must call this."""
        return self.context.stages.make(
            "cache", cache_key(self), self._build, what=f"teacher {self.teacher.name}, outputs", together=True
        )

    @property
    def exists(self) -> bool:
        return self.context.stages.has("cache", cache_key(self))

    def _build(self, folder: Path) -> None:
        training_data = self.training_data()
        work = work_of(self, training_data)
        missing = on_main_process(lambda: _begin(self, work, training_data, folder))
        own = missing[process_rank() :: launched_processes()]
        together = placement_here(self.teacher, launched_processes()) == "shard"
        if own or (missing and together):
            _write(self, work, training_data, folder, own)
        wait_for_all()
        source: dict[str, Json] = {
            "recipe": values_of(self.recipe),
            "teacher": self.teacher.name,
            "model": self.model,
            "seed": self.seed,
            "directory": str(Path.cwd()),
        }
        flops = _flops(self, work, training_data)
        on_main_process(
            lambda: complete(folder, work, made_of=cache_key(self), source=source, flops=flops).items
        )

    def training_data(self) -> TrainingData:
        """The training data, also encoded with the teacher's tokenizer if it differs."""
        readers = {}
        if self.recipe.language_task is None and self.teacher.name not in feature_teachers(self.recipe):
            own = load_tokenizer(self.model, trust_remote_code=self.context.trust_remote_code)
            if tokenizer_identity(own) != tokenizer_identity(self.tokenizer):
                readers = {self.teacher.name: own}
        return build_training_data(
            self, fraction=None, seed=self.seed, readers=readers, variants=mask_variants(self.recipe)
        )


def _begin(order: CacheJob, work: Work, training_data: TrainingData, folder: Path) -> list[int]:
    """The missing shards; prints their size and raises an error if the disk is too small."""
    missing = unwritten(folder, work)
    share = len(missing) / work.num_shards
    tokens = kept_tokens(order, training_data)
    size = estimated_bytes(work.layout, tokens, work.items)
    name = order.teacher.name
    _say(
        order,
        f"cache of teacher {name}: about {tokens:,} tokens, {size / 1e6:,.1f} MB in {work.num_shards} "
        f"shard{'s' if work.num_shards > 1 else ''}, {len(missing)} to write",
    )
    require_space(folder, int(size * share), why=f"the cache of teacher {name}")
    return missing


def _write(order: CacheJob, work: Work, training_data: TrainingData, folder: Path, shards: list[int]) -> None:
    recipe, device = order.recipe, current_device()
    live = live_teacher(order.model, order, training_data, name=order.teacher.name)

    def outputs(batch: AnyBatch, needs: OutputSpec) -> TeacherOutput:
        if live.is_sharded:
            largest_of_all([1])  # this process is not done
        return live(batch.to(device), needs)

    tokens = kept_tokens(order, training_data) * len(shards) // work.num_shards
    progress = CacheProgress(order.teacher.name, tokens, say=lambda line: _say(order, line))
    with (
        error_context(teacher_place(recipe, order.teacher.name)),
        autocast(device, recipe.train.precision),
        doing(f"caching teacher {order.teacher.name}"),
        live.whole_head(),
    ):
        write(folder, work, outputs, shards, done=progress.done)
        if live.is_sharded:
            _, filler = next(work.batches(0))
            while largest_of_all([0])[0]:  # as often as the process with the most batches
                live(filler.to(device), cached_outputs(work.layout))


def _flops(order: CacheJob, work: Work, training_data: TrainingData) -> int | None:
    """The teacher's FLOPs on all rows; None for an unknown family."""
    model = empty_model(order.model, trust_remote_code=order.context.trust_remote_code)
    if model.config.model_type not in ARCHITECTURES:
        return None
    recipe = order.recipe
    text = recipe.language_task is not None
    length = recipe.data.context if text else max(1, round(training_data.row_tokens))
    if order.teacher.translate:
        assert isinstance(training_data, PackedText), "refused with the recipe"
        own = load_tokenizer(order.model, trust_remote_code=order.context.trust_remote_code)
        place = teacher_place(recipe, order.teacher.name)
        translation = translation_of(own, order.tokenizer, training_data, place=place)
        length = max(1, round(length * translation.nodes_per_token))
    cost = pass_cost(model, length)
    masked = recipe.data.masked_share if work.layout.positions == "labels" else None
    return work.items * (cost.body + round(cost.head * (masked or 1.0)))


def _say(order: CacheJob, line: str) -> None:
    if process_rank() == 0:
        name = order.context.quiet_name
        print(printable(line), file=PrefixedLines(name) if name else sys.stderr, flush=True)


def cache_jobs(setup: RecipeSetup, teacher: Teacher, model: str) -> list[CacheJob]:
    """A prepared teacher's caches: one for each seed if each draws different examples, else one."""
    recipe = setup.recipe
    draws_examples = recipe.language_task is None and recipe.data.fraction < 1
    seeds = recipe.seeds if draws_examples else recipe.seeds[:1]
    return [CacheJob.of(setup, teacher, model, seed) for seed in seeds]


def work_of(order: CacheJob, training_data: TrainingData) -> Work:
    """The work plan of the cache writer."""
    layout = layout_of(order)
    variants = mask_variants(order.recipe) or 1
    name = hashlib.sha256(str(cache_key(order)["teacher"]).encode()).digest()
    return Work(
        layout=layout,
        rows=training_data.num_rows,
        variants=variants,
        items_per_shard=shard_items(
            layout, kept_tokens(order, training_data), training_data.num_rows * variants
        ),
        seed=int.from_bytes(name[:8], "little"),
        micro_batch=batch_sizes(order.recipe.train.config).micro,
        batch=training_data.rows,
    )


def kept_tokens(order: CacheJob, training_data: TrainingData) -> int:
    """An estimate of the number of cached tokens, hardly ever too low."""
    recipe = order.recipe
    if recipe.language_task is None:
        return training_data.num_rows
    masked = recipe.data.masked_share or 1.0
    share = masked if positions_of(recipe, order.teacher.name) == "labels" else 1.0
    return int(training_data.num_tokens * share * (mask_variants(recipe) or 1)) + training_data.num_rows


def layout_of(order: CacheJob) -> Layout:
    """The layout of a cached token or example."""
    recipe, options = order.recipe, order.options
    if recipe.language_task is None:
        return Layout(max(len(class_names_of(recipe)), 1), 0, 0, logits=True)
    vocabulary = vocabulary_size(order.tokenizer)
    head = min(options.top, vocabulary)
    states: dict[str, int] = {}
    if options.states:
        config = load_config(order.model, trust_remote_code=order.context.trust_remote_code)
        states = {str(site): width(config) for site in options.states}
    return Layout(
        vocabulary,
        head,
        options.draws if head < vocabulary else 0,
        temperature_of(recipe, order.teacher.name, options),
        positions_of(recipe, order.teacher.name),
        states=states,
    )
