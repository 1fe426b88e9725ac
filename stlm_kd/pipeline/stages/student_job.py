"""One model to train: which of a recipe's, with which seed, and everything that decides its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from stlm_kd.artifacts.results import Variant
from stlm_kd.artifacts.stage_store import Json, Key
from stlm_kd.data.sources.files import expanded
from stlm_kd.data.tokenizers import load_tokenizer, tokenizer_identity
from stlm_kd.distillation.terms import COMBINED, Term
from stlm_kd.losses import LABELS
from stlm_kd.models.load import load_config
from stlm_kd.models.presets import PRESETS
from stlm_kd.pipeline.builders.data import TrainingData, build_training_data, data_key, held_out_key
from stlm_kd.pipeline.builders.interchange import wordnet_key
from stlm_kd.pipeline.builders.objective import followed, looked_into, terms_of
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.identity import model_identity
from stlm_kd.pipeline.stages.cache_reading import unbiased_notes
from stlm_kd.pipeline.stages.teacher_cache import CacheOrder, mask_variants
from stlm_kd.recipe import Recipe, plain
from stlm_kd.recipe.schema.interchange import Interchange
from stlm_kd.recipe.schema.objectives import labels_alone
from stlm_kd.recipe.schema.root import Teacher
from stlm_kd.teachers.cache.format import read_manifest
from stlm_kd.teachers.combination import COMBINERS


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

    def key(self) -> Key:
        """Everything that decides the trained weights.

        What the variant does not use is left out: other teachers, objectives or ways to combine leave a
        control's key as it is, and a preset counts by its fields.
        """
        recipe, asked = self.recipe, self.asked
        train = plain(recipe.train)
        for name in ("log_every", "checkpoint_every"):
            train.pop(name, None)
        if self.flops is not None:
            train = {**train, "steps": None, "epochs": None, "flops": self.flops}
        identify = cache(partial(model_identity, trust_remote_code=self.context.trust_remote_code))
        own = followed(recipe) if self.variant == "student" else {LABELS: labels_alone()}
        combined = {entry.teacher for entry in own.values() if entry.loss != LABELS}
        return {
            "task": recipe.task,
            "student": self._body_key(identify),
            "tokenizer": tokenizer_identity(self.tokenizer),
            "teachers": {name: self._teacher_key(name, identify) for name in sorted(asked)},
            "combine": self._combine_key() if len(asked) > 1 and COMBINED in combined else None,
            "objectives": [{"name": name, **plain(entry)} for name, entry in own.items()],
            **wordnet_key(own.values()),
            **({"sources": "paired over the step"} if self.pairs_rows else {}),
            "train": train,
            "steps_from": recipe.data.fraction if train.get("epochs") else None,
            "text": data_key(recipe, self.fraction),
            "validation": held_out_key(recipe),
            "context": recipe.data.context,
            "masked_share": recipe.data.masked_share,
            "seed": self.seed,
            **({} if mask_variants(recipe) is None else {"variants": mask_variants(recipe)}),
        }

    def _combine_key(self) -> Json:
        """How teachers become one, and where that depends on them the domains of the sources."""
        combine = self.recipe.combine
        if "domain" not in COMBINERS.needs(combine.how, combine.options):
            return plain(combine)
        return {**plain(combine), "domains": [source.domain for source in self.recipe.data.train]}

    def _teacher_key(self, name: str, identify: Callable[[str], str]) -> Json:
        """What a teacher is: a model, or what was kept of what it said."""
        cached = self.cached.get(name)
        if cached is None or cached.cache is None:
            (entry,) = (teacher for teacher in self.recipe.teachers if teacher.name == name)
            model = identify(self.teachers[name])
            return model if entry.precision == "fp32" else {"model": model, "precision": entry.precision}
        if cached.cache.path is not None:
            return {"cache": read_manifest(expanded(cached.cache.path)).fingerprint}
        return {"cache": self.order(name).key()}

    def _body_key(self, identify: Callable[[str], str]) -> Json:
        """What the student is made of: some layers of a model, a whole one, or fields of a configuration."""
        wanted = self.recipe.student
        dropout = {} if wanted.dropout is None else {"dropout": wanted.dropout}
        if wanted.init_from is not None:
            source = self.teachers[wanted.init_from.teacher]
            return {**plain(wanted.init_from), "teacher": identify(source), **dropout}
        if wanted.model is not None:
            return {"model": identify(wanted.model), "new_head": wanted.new_head, **dropout}
        return {"fields": dict(self.fields)}
