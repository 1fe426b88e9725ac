"""The specification of one student training: variant, seed and everything that determines the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from stlm_kd.artifacts.results import Variant
from stlm_kd.data.tokenizers import load_tokenizer, tokenizer_identity
from stlm_kd.distillation.terms import Term
from stlm_kd.losses import LABELS
from stlm_kd.models.load import load_config
from stlm_kd.models.presets import PRESETS
from stlm_kd.pipeline.builders.data import TrainingData, build_training_data
from stlm_kd.pipeline.builders.objective import active_objectives, feature_teachers, terms_of
from stlm_kd.pipeline.builders.text import mask_variants
from stlm_kd.pipeline.context import RecipeSetup
from stlm_kd.pipeline.stages.cache_reading import unbiased_notes
from stlm_kd.pipeline.stages.teacher_cache import CacheJob
from stlm_kd.recipe.schema.interchange import Interchange
from stlm_kd.recipe.schema.root import Teacher
from stlm_kd.teachers import COMBINED


def labels_term() -> Term:
    """The cross-entropy term that controls are trained on."""
    return Term(LABELS, LABELS)


@dataclass(frozen=True, slots=True)
class StudentJob(RecipeSetup):
    """One student or control to train.

    Attributes:
        seed: Random seed of initial weights, data order, masks and dropout.
        teachers: By name, the folder of each prepared (if necessary adapted) teacher.
        flops: Compute budget in place of a number of steps; only for ``equal-compute``.
    """

    variant: Variant
    seed: int
    teachers: Mapping[str, str]
    flops: int | None = None

    @classmethod
    def of(
        cls,
        setup: RecipeSetup,
        variant: Variant,
        seed: int,
        teachers: Mapping[str, str],
        flops: int | None = None,
    ) -> StudentJob:
        return cls(setup.recipe, setup.tokenizer, setup.context, variant, seed, teachers, flops)

    def __post_init__(self) -> None:
        assert (self.flops is not None) == (self.variant == "equal-compute")

    @property
    def fraction(self) -> float:
        """The fraction of the training data that is used."""
        return 1.0 if self.variant == "all-data" else self.recipe.data.fraction

    @property
    def used_teachers(self) -> set[str]:
        """The names of the teachers that the objectives use."""
        if self.variant != "student":
            return set()
        named = {entry.teacher for entry in active_objectives(self.recipe).values() if entry.loss != LABELS}
        return {teacher.name for teacher in self.recipe.teachers} if COMBINED in named else named

    def terms(self, student: PretrainedConfig, teachers: Mapping[str, PretrainedConfig]) -> list[Term]:
        """The loss terms: the recipe's objectives, or for a control the labels alone."""
        return [labels_term()] if self.variant != "student" else terms_of(self.recipe, student, teachers)

    def training_data(self, fraction: float) -> TrainingData:
        return build_training_data(
            self,
            fraction=fraction,
            seed=self.seed,
            readers=self.teacher_tokenizers,
            variants=mask_variants(self.recipe),
        )

    @property
    def pairs_rows(self) -> bool:
        """Whether rows of an optimizer step are used as sources for each other in interventions."""
        own = active_objectives(self.recipe).values() if self.variant == "student" else ()
        return any(isinstance(entry, Interchange) and entry.pairs_rows for entry in own)

    @property
    def cached(self) -> dict[str, Teacher]:
        """The cached teachers among those that the objectives use."""
        return {
            t.name: t for t in self.recipe.teachers if t.name in self.used_teachers and t.cache is not None
        }

    def order(self, name: str) -> CacheJob:
        model, teacher = self.teachers[name], self.cached[name]
        return CacheJob.of(self, teacher, model, self.seed)

    def configuration(self, name: str) -> PretrainedConfig:
        return load_config(self.teachers[name], trust_remote_code=self.context.trust_remote_code)

    @property
    def cache_notes(self) -> list[str]:
        """Notes on the bias of losses with cached teachers."""
        if self.recipe.language_task is None:
            return []
        return [note for name in sorted(self.cached) for note in unbiased_notes(self.recipe, name)]

    @property
    def teacher_tokenizers(self) -> dict[str, PreTrainedTokenizerFast]:
        """The tokenizers of teacher classifiers that differ; a used hidden state needs the student's."""
        if self.recipe.language_task is not None:
            return {}
        trust, own = self.context.trust_remote_code, tokenizer_identity(self.tokenizer)
        names = sorted(self.used_teachers - feature_teachers(self.recipe) - self.cached.keys())
        found = {name: load_tokenizer(self.teachers[name], trust_remote_code=trust) for name in names}
        return {name: other for name, other in found.items() if tokenizer_identity(other) != own}

    @property
    def fields(self) -> Mapping[str, int | float | str | bool]:
        """The configuration fields of a student with random initial weights."""
        wanted = self.recipe.student
        fields = PRESETS[wanted.preset] if wanted.preset is not None else wanted.architecture
        assert fields is not None
        return fields
