"""The schema of a recipe: one class for each mapping of the YAML file.

Values are checked one part at a time; ``stlm_kd.recipe.validation`` checks the parts against one another.
Names and options of losses, combiners and suites come from their registries, which are read at validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, WrapValidator, model_validator

from stlm_kd.errors import did_you_mean
from stlm_kd.eval import SUITES
from stlm_kd.models.families import Goal, Task
from stlm_kd.notes import note
from stlm_kd.recipe.locate import built_in_objectives
from stlm_kd.recipe.schema.cache import AnyCache
from stlm_kd.recipe.schema.data import MASKED_SHARE, Data
from stlm_kd.recipe.schema.fields import BelowOne, Flag, Part, PathText, Seed, Text, fault, show, texts_of
from stlm_kd.recipe.schema.interchange import Interchange
from stlm_kd.recipe.schema.objective import LABELS, Feature, MapFeature, Objective, Response, loss_registries
from stlm_kd.recipe.schema.options import added_options, known_name, row_of, with_options
from stlm_kd.recipe.schema.student import Adapt, Student
from stlm_kd.recipe.schema.training import Engine, Train
from stlm_kd.registry import Registry
from stlm_kd.teachers import Placement
from stlm_kd.training.config import Precision

Control = Literal["no-teacher", "all-data", "equal-compute"]
"""The student without teachers: same data and steps, all the data, or the same compute."""
Tracker = Literal["tensorboard", "wandb"]


class Teacher(Part):
    """A teacher: a folder or Hub id, or the model that another recipe trains.

    ``cache``: read its outputs for the training data from disk: ``auto``, a folder, or a mapping.
    ``precision``: of its weights during distillation; bf16 takes half the memory. Null: bf16 on an
    accelerator, fp32 on a CPU. ``placement``: where its weights are, see ``teachers.Placement``.
    ``offload``: deprecated; true means ``placement: offload``. ``translate``: keep the vocabulary of a causal
    language model, and translate its distributions to the student's tokens. ``classes``: for a classifier
    with other class names, the data's name of each class.
    """

    called: ClassVar[str] = "a key of teachers"
    one_of: ClassVar[tuple[str, ...]] = ("model", "recipe")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    model: PathText | None = None
    recipe: Recipe | None = None
    adapt: Adapt | None = None
    translate: Flag = False
    cache: AnyCache = None
    precision: Precision | None = None
    placement: Placement = "replicate"
    offload: Flag | None = None
    classes: Annotated[dict[Text, Text] | None, BeforeValidator(texts_of)] = None

    @property
    def has_model(self) -> bool:
        """Whether the teacher has a model and a tokenizer of its own, given or trained."""
        return self.model is not None or self.recipe is not None

    @property
    def is_only_read(self) -> bool:
        """Whether the teacher exists only as a cache."""
        return self.cache is not None and self.cache.path is not None

    @model_validator(mode="before")
    @classmethod
    def _current_placement(cls, given: object) -> object:
        """Replace ``offload`` of earlier releases by ``placement``."""
        if not isinstance(given, Mapping) or not isinstance(given.get("offload"), bool):
            return given
        found = {key: value for key, value in given.items() if key != "offload"}
        if not given["offload"]:
            return found
        if found.get("placement", "offload") != "offload":
            raise fault(
                f"offload: true and placement: {show(found['placement'])} found; expected one of them"
            )
        note("teachers[].offload: true is replaced by placement: offload, and goes in the next release")
        return {**found, "placement": "offload"}

    @classmethod
    def _may_lack(cls, given: Mapping[str, object]) -> bool:
        cache = given.get("cache")
        in_a_folder = cache.get("path") is not None if isinstance(cache, Mapping) else isinstance(cache, str)
        only_read = in_a_folder and cache != "auto"
        return only_read and all(given.get(key) is None for key in cls.one_of)


def _combiners() -> Registry[Any]:
    from stlm_kd.teachers.combination import COMBINERS

    return COMBINERS


class Combine(Part):
    """The combination of several teachers; the options of ``how`` are further fields.

    ``teacher_dropout``: the probability that a teacher is dropped in an optimizer step and does not run; at
    least one stays.
    """

    called: ClassVar[str] = "a key of combine"
    how: Annotated[Text, BeforeValidator(lambda value: known_name(value, _combiners()))] = "mean"
    teacher_dropout: BelowOne = 0.0

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the combiner."""
        return added_options(self, Combine)


AnyCombine = Annotated[
    SerializeAsAny[Combine], WrapValidator(row_of(Combine, "how", lambda: [(Combine, _combiners())]))
]


def _objective_tables() -> list[tuple[type[Objective], Registry[Any]]]:
    """Each registry of losses, with the class of its objectives, which has their further fields."""
    return list(zip((Response, Feature, MapFeature, Interchange), loss_registries(), strict=True))


AnyObjective = Annotated[
    SerializeAsAny[Objective], WrapValidator(row_of(Objective, "loss", _objective_tables))
]


def labels_alone() -> Objective:
    """The only objective of a student without teachers."""
    return with_options(Response, LABELS, loss_registries()[0]).model_validate({"loss": LABELS})


class Suite(Part):
    """An evaluation; the options of the suite are further fields."""

    called: ClassVar[str] = "a key of eval"
    suite: Annotated[Text, BeforeValidator(lambda value: known_name(value, SUITES))]

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the suite."""
        return added_options(self, Suite)


SHORT: Mapping[str, Mapping[str, Any]] = {"stlm": {"suite": "lm-eval", "tasks": ["stlm"]}}
"""Aliases of suites with preset options: the super-tiny-LM study's benchmarks."""


def spelled_out(value: object) -> object:
    """A suite by its name or as a mapping, with aliases expanded.

    >>> spelled_out({"suite": "stlm", "limit": 5})
    {'suite': 'lm-eval', 'limit': 5, 'tasks': ['stlm']}
    """
    given = {"suite": value} if isinstance(value, str) else value
    name = given.get("suite") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or not isinstance(name, str) or name not in SHORT:
        return given
    meant = SHORT[name]
    twice = sorted(meant.keys() & given.keys() - {"suite"})
    if twice:
        raise fault(f"{name} sets {twice[0]} already; use {meant['suite']} with your own")
    return {**given, **meant}


AnySuite = Annotated[
    SerializeAsAny[Suite],
    WrapValidator(row_of(Suite, "suite", lambda: [(Suite, SUITES)])),
    BeforeValidator(spelled_out),
]


def _objectives(value: object) -> object:
    if isinstance(value, str):  # a known name was already replaced by its list
        names = [entry.name for entry in built_in_objectives()]
        hint = did_you_mean(value, names)
        raise fault(f"{show(value)} is not a known list of objectives{hint}; known: {', '.join(names)}")
    return value


def _seeds(value: object) -> object:
    if isinstance(value, (list, tuple)) and not value:
        raise fault("an empty list found; expected at least one seed")
    return value


class Recipe(Part):
    """A recipe, from teachers to evaluation. Without a student's body it only adapts teachers."""

    called: ClassVar[str] = "a key of a recipe"
    task: Goal
    student: Student
    teachers: tuple[Teacher, ...] = ()
    combine: AnyCombine = Field(default={"how": "mean"}, validate_default=True)
    data: Data
    objectives: Annotated[tuple[AnyObjective, ...], BeforeValidator(_objectives)] = ()
    train: Train = Train()
    engine: Engine = Engine()
    eval: tuple[AnySuite, ...] = ()
    controls: tuple[Control, ...] = ()
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_seeds)] = (1,)
    tracking: tuple[Tracker, ...] = ("tensorboard",)

    @property
    def language_task(self) -> Task | None:
        """The task of its language models; None if its models are classifiers or regressors."""
        return self.task if self.task in ("clm", "mlm") else None

    @property
    def adapts_only(self) -> bool:
        """Whether the recipe only adapts teachers and trains no student."""
        return not self.student.has_body and not self.objectives

    @model_validator(mode="before")
    @classmethod
    def _defaults_by_other_parts(cls, given: object) -> object:
        """Mask the usual share for a masked language model; keep the best where validations find it."""
        if not isinstance(given, dict) or not isinstance(data := given.get("data"), Mapping):
            return given
        found = dict(given)
        if given.get("task") == "mlm" and data.get("masked_share") is None:
            found["data"] = {**data, "masked_share": MASKED_SHARE}
        train = given.get("train")
        if isinstance(train, Mapping) and train.get("validate_every") and data.get("validation"):
            found["train"] = {"keep": "best", **train}
        return found


Teacher.model_rebuild()
