"""The models of a recipe and its training step without weights.

Configurations and tokenizers are read; no weights are, and no text.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from transformers import PretrainedConfig, PreTrainedModel

from stlm_kd.distillation.step import DistillationStep, teacher_needs
from stlm_kd.errors import error_context
from stlm_kd.estimate.simulation.stand_ins import CachedStandIn, During, TracedTeacher, supplies_of
from stlm_kd.estimate.simulation.trace import without_storage
from stlm_kd.models.attention_maps import install_maps
from stlm_kd.models.dropout import set_dropout
from stlm_kd.models.load import load_config
from stlm_kd.models.students import check_size
from stlm_kd.models.vocabulary import set_padding
from stlm_kd.pipeline.builders.models import model_from_recipe, teacher_place, teacher_precision
from stlm_kd.pipeline.builders.objective import projections_of, terms_of
from stlm_kd.pipeline.builders.untrained import untrained_model, with_rows
from stlm_kd.pipeline.checks.validate import config_of_layers
from stlm_kd.pipeline.context import RecipeSetup, RunContext
from stlm_kd.pipeline.stages.student import checkpoint_activations, gate_of
from stlm_kd.pipeline.stages.student_job import StudentJob
from stlm_kd.pipeline.stages.teacher_cache import CacheJob, layout_of
from stlm_kd.pipeline.stages.tokenizer import sized_setup
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.cache import Cache
from stlm_kd.recipe.schema.root import Teacher, labels_alone
from stlm_kd.sharing.names import expanded
from stlm_kd.teachers.cache.format import Layout, read_manifest
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.vocabulary.token_bytes import vocabulary_size


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A recipe's models without storage.

    Attributes:
        job: The student's training.
        mode: Makes tensors without storage; one for all of them.
        student: In training mode.
        teachers: By name; without those that are only read from a cache.
    """

    job: StudentJob
    mode: FakeTensorMode
    student: PreTrainedModel
    teachers: Mapping[str, PreTrainedModel]

    @classmethod
    def of(cls, recipe: Recipe, *, trust_remote_code: bool = False) -> Skeleton:
        """The skeleton of a recipe that trains a student.

        Raises:
            MissingResourceError: A configuration or tokenizer is missing.
            ModelError: A model cannot be built, or the student is too large.
        """
        return cls._of(sized_setup(recipe, RunContext(Path(), trust_remote_code=trust_remote_code)))

    @classmethod
    def _of(cls, setup: RecipeSetup) -> Skeleton:
        recipe = setup.recipe
        job = StudentJob.of(setup, "student", recipe.seeds[0], {})
        mode = without_storage()
        with mode:
            student = _student(job).train()
            teachers = {
                teacher.name: _teacher(teacher, setup)
                for teacher in recipe.teachers
                if teacher.model is not None or teacher.recipe is not None
            }
        if recipe.student.dropout is not None:
            set_dropout(student, recipe.student.dropout)
        if recipe.train.gradient_checkpointing:
            checkpoint_activations(student)
        return cls(job, mode, student, teachers)

    def like(self, *, rows: int | None = None, **train: object) -> Skeleton:
        """The same recipe with other values of ``train``, or so many rows in a micro-batch."""
        if rows is not None:
            train["micro_batch"] = rows
        return self._with(train=self.recipe.train.model_copy(update=train))

    def cached(self, is_cached: bool) -> Skeleton:
        """The same with all teachers read from caches (by default options, if it has none), or all live."""
        usual = Cache.model_validate({})
        teachers = (
            one.model_copy(update={"cache": (one.cache or usual) if is_cached else None})
            for one in self.recipe.teachers
        )
        return self._with(teachers=tuple(teachers))

    def alone(self) -> Skeleton:
        """The same on the labels alone: no teacher runs."""
        return self._with(objectives=(labels_alone(),))

    def _with(self, **changes: object) -> Skeleton:
        return self._of(
            RecipeSetup(self.recipe.model_copy(update=changes), self.job.tokenizer, self.job.context)
        )

    @property
    def recipe(self) -> Recipe:
        return self.job.recipe

    @property
    def vocabulary(self) -> int:
        """Number of the student's tokens."""
        return vocabulary_size(self.job.tokenizer)

    @property
    def live(self) -> dict[str, Teacher]:
        """The teachers that run in training, by name."""
        used = self.job.used_teachers - self.job.cached.keys()
        return {teacher.name: teacher for teacher in self.recipe.teachers if teacher.name in used}

    def layout(self, teacher: Teacher) -> Layout:
        """The layout of a cached teacher's outputs."""
        assert teacher.cache is not None
        if teacher.cache.path is not None:
            return read_manifest(expanded(teacher.cache.path)).layout
        return layout_of(CacheJob.of(self.job, teacher, teacher.model or "", self.job.seed))

    def step(
        self, during: During = lambda _: nullcontext(), kind: type[DistillationStep] = DistillationStep
    ) -> DistillationStep:
        """The training step; ``during`` notes when a teacher's weights must be on the device."""
        recipe, names = self.recipe, sorted(self.job.used_teachers)
        configs = {name: model.config for name, model in self.teachers.items()}
        terms = terms_of(recipe, self.student.config, configs)
        needs = teacher_needs(terms, names, classes=recipe.language_task is None)
        teachers: dict[str, Any] = {}
        for name, wanted in needs.items():
            if name in self.job.cached:
                layout = self.layout(self.job.cached[name])
                teachers[name] = CachedStandIn(layout, self.mode)
                continue
            model = self.teachers[name]
            install_maps(model, wanted.maps)
            teachers[name] = TracedTeacher(model, self.vocabulary, name=name, during=during)
        with self.mode:
            projections = projections_of(recipe, terms, self.student.config, configs, seed=0)
            gate = gate_of(recipe, self.student, terms, list(teachers))
        how = recipe.combine
        return kind(
            self.student,
            terms,
            teachers=teachers,
            combination=Combination(how.how, how.options, how.teacher_dropout, self.job.seed),
            projections=projections if teachers else None,
            vocabulary_loss=recipe.engine.vocabulary_loss,
            supplies=supplies_of(recipe, self.vocabulary),
            gate=gate,
        )


def _student(job: StudentJob) -> PreTrainedModel:
    recipe, wanted = job.recipe, job.recipe.student
    if wanted.model is None and wanted.init_from is None:
        return model_from_recipe(job.fields, recipe, job.tokenizer, seed=0)
    config = student_config(recipe, job)
    model = untrained_model(config, job)
    if recipe.language_task is None:
        set_padding(model, job.tokenizer)
    check_size(model)
    return model


def student_config(recipe: Recipe, setup: RecipeSetup) -> PretrainedConfig:
    """The configuration of a recipe's student."""
    wanted, trust = recipe.student, setup.context.trust_remote_code
    if wanted.model is not None:
        with error_context("student.model"):
            return _configuration(wanted.model, trust)
    if wanted.init_from is not None:
        (source,) = (entry for entry in recipe.teachers if entry.name == wanted.init_from.teacher)
        return config_of_layers(_teacher_config(source, setup), wanted.init_from)
    job = StudentJob.of(setup, "student", 0, {})
    config: PretrainedConfig = model_from_recipe(job.fields, recipe, setup.tokenizer, seed=0).config
    return config


def _teacher_config(teacher: Teacher, setup: RecipeSetup) -> PretrainedConfig:
    """A teacher's configuration with the vocabulary that it has in training."""
    if teacher.recipe is not None:
        config = student_config(teacher.recipe, sized_setup(teacher.recipe, setup.context))
    else:
        assert teacher.model is not None
        config = _configuration(teacher.model, setup.context.trust_remote_code)
    return config if teacher.adapt is None else with_rows(config, vocabulary_size(setup.tokenizer))


def _configuration(name: str, trust_remote_code: bool) -> PretrainedConfig:
    with (
        unset_fake_temporarily()
    ):  # some families are recognised by the values of their weights, where there are any
        return load_config(name, trust_remote_code=trust_remote_code)


def _teacher(teacher: Teacher, setup: RecipeSetup) -> PreTrainedModel:
    dtype = torch.bfloat16 if teacher_precision(teacher) == "bf16" else torch.float32
    with error_context(teacher_place(setup.recipe, teacher.name)):
        model = untrained_model(_teacher_config(teacher, setup), setup, dtype=dtype)
        if setup.recipe.language_task is None:
            set_padding(model, setup.tokenizer)
    return model
