"""One model to train: which of a recipe's, with which seed, and everything that decides its weights."""

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
from stlm_kd.pipeline.builders.objective import followed, looked_into, terms_of
from stlm_kd.pipeline.builders.text import mask_variants
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.stages.cache_reading import unbiased_notes
from stlm_kd.pipeline.stages.teacher_cache import CacheOrder
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.interchange import Interchange
from stlm_kd.recipe.schema.root import Teacher
from stlm_kd.teachers import COMBINED


def labels_term() -> Term:
    """What a control is trained on."""
    return Term(LABELS, LABELS)


@dataclass(frozen=True, slots=True)
class StudentJob:
    """What to train.

    Attributes:
        recipe: The recipe.
        variant: Which of its students.
        seed: Of initial weights, order of the data, masks and dropout.
        teachers: By name, the folder of each teacher that is ready to teach (adapted where need be).
        tokenizer: The student's.
        context: Where shared results lie.
        flops: What the training may compute, in place of a number of steps; None but for ``equal-compute``.
    """

    recipe: Recipe
    variant: Variant
    seed: int
    teachers: Mapping[str, str]
    tokenizer: PreTrainedTokenizerFast
    context: RunContext
    flops: int | None = None

    def __post_init__(self) -> None:
        assert (self.flops is not None) == (self.variant == "equal-compute")

    @property
    def fraction(self) -> float:
        """The share of the training text that is read."""
        return 1.0 if self.variant == "all-data" else self.recipe.data.fraction

    @property
    def asked(self) -> set[str]:
        """The names of the teachers that the objectives ask."""
        if self.variant != "student":
            return set()
        named = {entry.teacher for entry in followed(self.recipe).values() if entry.loss != LABELS}
        return {teacher.name for teacher in self.recipe.teachers} if COMBINED in named else named

    def terms(self, student: PretrainedConfig, teachers: Mapping[str, PretrainedConfig]) -> list[Term]:
        """What is trained on: the recipe's objectives, or in a control the labels alone."""
        return [labels_term()] if self.variant != "student" else terms_of(self.recipe, student, teachers)

    def training_data(self, fraction: float) -> TrainingData:
        """What is read, of this share of the training text."""
        return build_training_data(
            self.recipe,
            self.tokenizer,
            self.context,
            fraction=fraction,
            seed=self.seed,
            readers=self._readers(),
            variants=mask_variants(self.recipe),
        )

    @property
    def pairs_rows(self) -> bool:
        """Whether rows of an optimizer step are sources of each other in interventions."""
        own = followed(self.recipe).values() if self.variant == "student" else ()
        return any(isinstance(entry, Interchange) and entry.pairs_rows for entry in own)

    @property
    def cached(self) -> dict[str, Teacher]:
        """Those of the teachers that are asked which are read from a cache."""
        return {t.name: t for t in self.recipe.teachers if t.name in self.asked and t.cache is not None}

    def order(self, name: str) -> CacheOrder:
        """The cache of a teacher that is read from one."""
        model, teacher = self.teachers[name], self.cached[name]
        return CacheOrder(self.recipe, teacher, model, self.tokenizer, self.context, self.seed)

    def configuration(self, name: str) -> PretrainedConfig:
        """Of a teacher that is read from a cache."""
        return load_config(self.teachers[name], trust_remote_code=self.context.trust_remote_code)

    @property
    def cache_notes(self) -> list[str]:
        """What a user should know of the teachers that are read from caches."""
        if self.recipe.language_task is None:
            return []
        return [note for name in sorted(self.cached) for note in unbiased_notes(self.recipe, name)]

    def _readers(self) -> dict[str, PreTrainedTokenizerFast]:
        """Of the classifiers that are asked, the tokenizers that read otherwise than the student's.

        One that is looked into reads as the student, position by position, and has its vocabulary.
        """
        if self.recipe.language_task is not None:
            return {}
        trust, own = self.context.trust_remote_code, tokenizer_identity(self.tokenizer)
        names = sorted(self.asked - looked_into(self.recipe) - self.cached.keys())
        found = {name: load_tokenizer(self.teachers[name], trust_remote_code=trust) for name in names}
        return {name: other for name, other in found.items() if tokenizer_identity(other) != own}

    @property
    def fields(self) -> Mapping[str, int | float | str | bool]:
        """The student's configuration, where it is built from nothing."""
        wanted = self.recipe.student
        fields = PRESETS[wanted.preset] if wanted.preset is not None else wanted.architecture
        assert fields is not None
        return fields
