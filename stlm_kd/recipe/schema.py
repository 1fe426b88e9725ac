"""The schema of a recipe, one class for each mapping of the YAML file, in the order in which a batch flows.

Values are checked here one part at a time; ``checks.py`` checks the parts against one another. Names and
options of losses, combiners and suites come from their tables, which are asked when a recipe is validated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationInfo,
    WrapValidator,
    model_validator,
)

from stlm_kd.architectures import Task
from stlm_kd.errors import did_you_mean
from stlm_kd.recipe.fields import (
    Count,
    Flag,
    NotNegative,
    Part,
    Positive,
    Real,
    Seed,
    Share,
    Text,
    fault,
    show,
)
from stlm_kd.recipe.options import known_name, row_of
from stlm_kd.registry import Registry

COMBINED = "combined"
"""The teacher of an objective that means all teachers, combined."""

SAMPLE_SIZE = 4_000_000
"""Bytes of generated text where a recipe does not say how many."""

MASKED_SHARE = 0.15
"""Positions that a masked language model has to predict, of all, where a recipe does not say."""

LABELS = "labels"
"""The loss that needs no teacher."""

Layers = Literal["every-other", "first", "last", "spread"]
Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["fp32", "bf16"]
Warmup = Annotated[Real, Field(ge=0, lt=1)]
Beta = Annotated[Real, Field(ge=0, lt=1)]
Control = Literal["no-teacher", "all-data"]
Tracker = Literal["tensorboard", "wandb"]


def added_options(part: Part, base: type[Part]) -> dict[str, Any]:
    """The options that the row of a table adds to its part, with defaults filled in."""
    return {name: getattr(part, name) for name in type(part).model_fields if name not in base.model_fields}


class TokenizerTraining(Part):
    """A tokenizer trained on the recipe's training text."""

    label: ClassVar[str] = "a key of tokenizer"
    train: Literal["bpe"]
    size: Count


def _text_or_training(value: object, info: ValidationInfo) -> object:
    if isinstance(value, Mapping):
        return TokenizerTraining.model_validate(value, context=info.context)
    if isinstance(value, TokenizerTraining) or (isinstance(value, str) and value):
        return value
    raise fault(f"{show(value)} found; expected a folder, a Hub id, or {{train: bpe, size: 8192}}")


def _layers(value: object) -> object:
    if isinstance(value, str) and value in get_args(Layers):
        return value
    if isinstance(value, (list, tuple)) and value and all(type(i) is int and i >= 0 for i in value):
        if list(value) != sorted(set(value)):
            raise fault(f"{list(value)} found; expected different layers in ascending order")
        return tuple(value)
    found = str(list(value)) if isinstance(value, (list, tuple)) else show(value)
    hint = did_you_mean(value, get_args(Layers)) if isinstance(value, str) else ""
    choices = ", ".join(get_args(Layers))
    raise fault(f"{found} found; expected one of {choices}, or a list such as [0, 2, 4]{hint}")


class InitFrom(Part):
    """A student made of some of a teacher's layers; ``model_type``: of another family, where that can be."""

    label: ClassVar[str] = "a key of init_from"
    teacher: Text
    model_type: Text | None = None
    layers: Annotated[Layers | tuple[int, ...], BeforeValidator(_layers)] = "every-other"


def _preset(value: object) -> object:
    from stlm_kd.models.presets import PRESETS

    if isinstance(value, str) and value not in PRESETS:
        raise fault(f"{show(value)} is not a known preset{did_you_mean(value, PRESETS)}")
    return value


def _config_fields(value: object) -> object:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise fault(f"{show(value)} found; expected a mapping such as {{model_type: llama, hidden_size: 64}}")
    if not isinstance(value.get("model_type"), str):
        raise fault("model_type is not given; expected for instance model_type: llama")
    wrong = [key for key, item in value.items() if not isinstance(item, (bool, int, float, str))]
    if wrong:
        raise fault(f"{wrong[0]}: {show(value[wrong[0]])} found; expected a number, text, true or false")
    return dict(value)


class Student(Part):
    """The model to train and its vocabulary; a recipe that only adapts teachers names the tokenizer alone.

    ``new_head``: ``model`` is a body without a head, and gets a fresh one.
    """

    label: ClassVar[str] = "a key of student"
    one_of: ClassVar[tuple[str, ...]] = ("preset", "architecture", "model", "init_from")
    one_of_optional: ClassVar[bool] = True
    tokenizer: Annotated[str | TokenizerTraining, BeforeValidator(_text_or_training)]
    preset: Annotated[Text | None, BeforeValidator(_preset)] = None
    architecture: Annotated[dict[str, Any] | None, BeforeValidator(_config_fields)] = None
    model: Text | None = None
    new_head: Flag = False
    init_from: InitFrom | None = None

    @property
    def has_body(self) -> bool:
        """Whether the recipe says what to train, and not only for which vocabulary."""
        return any(getattr(self, key) is not None for key in self.one_of)


def _initialiser(value: object) -> object:
    from stlm_kd.adaptation import INITIALISERS

    return known_name(value, INITIALISERS)


class Adapt(Part):
    """How a teacher gets the student's vocabulary: a new embedding and head, trained with the body frozen.

    ``micro_batch``: as ``effective_batch`` where null. ``patience``: validations without improvement; null
    trains all ``tokens``. ``fraction``: the share of the training text that it sees; as ``data.fraction``
    where null.
    """

    label: ClassVar[str] = "a key of adapt"
    init: Annotated[Text, BeforeValidator(_initialiser)] = "subword-mean"
    tokens: Count = 200_000_000
    learning_rate: Positive = 3e-4
    effective_batch: Count = 32
    micro_batch: Count | None = None
    warmup: Warmup = 0.05
    schedule: Schedule = "cosine"
    validate_every: Count = 100
    patience: Count | None = 3
    fraction: Share | None = None
    precision: Precision = "fp32"
    seed: Seed = 0


class Teacher(Part):
    """A model to learn from: a folder or Hub id, or what another recipe trains."""

    label: ClassVar[str] = "a key of teachers"
    one_of: ClassVar[tuple[str, ...]] = ("model", "recipe")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    model: Text | None = None
    recipe: Recipe | None = None
    adapt: Adapt | None = None


def _combiners() -> Registry[Any]:
    from stlm_kd.combine import COMBINERS

    return COMBINERS


class Combine(Part):
    """How several teachers become one; the options of ``how`` are further fields."""

    label: ClassVar[str] = "a key of combine"
    how: Annotated[Text, BeforeValidator(lambda value: known_name(value, _combiners()))] = "mean"

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the combiner."""
        return added_options(self, Combine)


class Source(Part):
    """Text from a file or folder, the Hub, or the built-in generator.

    A relative ``path`` starts from the current folder, also in recipes that lie elsewhere. Where they are not
    given, ``split`` is ``train`` on the Hub, and ``size`` 4M bytes of generated text.
    """

    label: ClassVar[str] = "a key of a source"
    one_of: ClassVar[tuple[str, ...]] = ("path", "hub", "sample")
    path: Text | None = None
    hub: Text | None = None
    sample: Literal["train", "validation"] | None = None
    name: Text | None = None
    split: Text | None = None
    column: Text = "text"
    revision: Text | None = None
    documents: Literal["article", "line", "blank-line", "file"] = "article"
    size: Count | None = None
    domain: Text = "default"
    weight: Positive = 1.0

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_its_kind(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        split = {"split": "train"} if given.get("hub") is not None else {}
        size = {"size": SAMPLE_SIZE} if given.get("sample") is not None else {}
        return {**split, **size, **given}


def _sources(value: object) -> object:
    """One source or a list; a path alone is a source."""
    if value is None or isinstance(value, Source):
        return value if value is None else (value,)
    if isinstance(value, (list, tuple)) and not value:
        raise fault("an empty list found; expected at least one source")
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    return [{"path": entry} if isinstance(entry, str) else entry for entry in entries]


class Data(Part):
    """The text; ``fraction`` is the share of the training text that the student sees.

    ``masked_share``: of the positions of a step, those that a masked language model has to predict; 0.15
    where it is not given.
    """

    label: ClassVar[str] = "a key of data"
    train: Annotated[tuple[Source, ...], BeforeValidator(_sources)]
    validation: Annotated[tuple[Source, ...] | None, BeforeValidator(_sources)] = None
    fraction: Share = 1.0
    context: Annotated[Count, Field(ge=2)] = 512
    masked_share: Share | None = None


def _losses() -> Registry[Any]:
    from stlm_kd.losses import LOSSES

    return LOSSES


class Objective(Part):
    """One term of the objective; the options of its loss are further fields."""

    label: ClassVar[str] = "a key of objectives"
    loss: Annotated[Text, BeforeValidator(lambda value: known_name(value, _losses()))]
    weight: NotNegative = 1.0
    on: Literal["labels", "attended"] = "labels"
    teacher: Text = COMBINED

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the loss."""
        return added_options(self, Objective)


class Train(Part):
    """How the student is trained. Steps are optimizer steps; null turns a thing off.

    ``micro_batch``: as ``effective_batch`` where null. ``validate_every`` null: at the end only.
    ``checkpoint_every`` null: every tenth of the steps; besides, one is written with each improvement where
    the best is kept, when stopped, and at the end. ``warmup``: a share of the steps. ``keep``, if not given:
    ``best`` where there is validation text and ``validate_every``, else ``last``.
    """

    label: ClassVar[str] = "a key of train"
    one_of: ClassVar[tuple[str, ...]] = ("steps", "epochs")
    one_of_optional: ClassVar[bool] = True
    steps: Count | None = None
    epochs: Count | None = None
    effective_batch: Count = 32
    micro_batch: Count | None = None
    learning_rate: Positive = 5e-4
    schedule: Schedule = "cosine"
    warmup: Warmup = 0.05
    weight_decay: NotNegative = 0.1
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: Positive = 1e-8
    clip: Positive | None = 1.0
    precision: Precision = "fp32"
    gradient_checkpointing: Flag = False
    validate_every: Count | None = None
    keep: Literal["best", "last"] = "last"
    patience: Count | None = None
    checkpoint_every: Count | None = None
    log_every: Count = 10


def _stage(value: object) -> object:
    if type(value) is not int:  # True passes for 1 otherwise
        raise fault(f"{show(value)} found; expected one of 0, 1, 2")
    return value


class DeepSpeed(Part):
    """DeepSpeed's ZeRO: what is divided among processes: nothing, the optimizer, its gradients too."""

    label: ClassVar[str] = "a key of deepspeed"
    zero: Annotated[Literal[0, 1, 2], BeforeValidator(_stage)] = 2


class Engine(Part):
    """What runs the trainings; it changes their speed and memory, not their results."""

    label: ClassVar[str] = "a key of engine"
    deepspeed: DeepSpeed | None = None


def _suites() -> Registry[Any]:
    from stlm_kd.eval import SUITES

    return SUITES


class Suite(Part):
    """An evaluation; the options of the suite are further fields."""

    label: ClassVar[str] = "a key of eval"
    suite: Annotated[Text, BeforeValidator(lambda value: known_name(value, _suites()))]

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the suite."""
        return added_options(self, Suite)


def _suite(value: object) -> object:
    return {"suite": value} if isinstance(value, str) else value


AnyCombine = Annotated[SerializeAsAny[Combine], WrapValidator(row_of(Combine, "how", _combiners))]
AnyObjective = Annotated[SerializeAsAny[Objective], WrapValidator(row_of(Objective, "loss", _losses))]
AnySuite = Annotated[
    SerializeAsAny[Suite], WrapValidator(row_of(Suite, "suite", _suites)), BeforeValidator(_suite)
]


def _seeds(value: object) -> object:
    if isinstance(value, (list, tuple)) and not value:
        raise fault("an empty list found; expected at least one seed")
    return value


class Recipe(Part):
    """What one command does, from teachers to evaluation. A recipe without a student's body only adapts."""

    label: ClassVar[str] = "a key of a recipe"
    task: Task
    student: Student
    teachers: tuple[Teacher, ...] = ()
    combine: AnyCombine = Field(default_factory=lambda: Combine(how="mean"), validate_default=True)
    data: Data
    objectives: tuple[AnyObjective, ...] = ()
    train: Train = Train()
    engine: Engine = Engine()
    eval: tuple[AnySuite, ...] = ()
    controls: tuple[Control, ...] = ()
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_seeds)] = (1,)
    tracking: tuple[Tracker, ...] = ("tensorboard",)

    @property
    def adapts_only(self) -> bool:
        """Whether it says how to adapt teachers and nothing about a student's training."""
        return not self.student.has_body and not self.objectives

    @model_validator(mode="before")
    @classmethod
    def _mask_the_usual_share(cls, given: object) -> object:
        if not isinstance(given, dict) or given.get("task") != "mlm":
            return given
        data = given.get("data")
        if not isinstance(data, Mapping) or data.get("masked_share") is not None:
            return given
        return {**given, "data": {**data, "masked_share": MASKED_SHARE}}

    @model_validator(mode="before")
    @classmethod
    def _keep_the_best_where_it_is_known(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        train, data = given.get("train"), given.get("data")
        if not isinstance(train, Mapping) or not isinstance(data, Mapping) or "keep" in train:
            return given
        if not train.get("validate_every") or not data.get("validation"):
            return given
        return {**given, "train": {**train, "keep": "best"}}


Teacher.model_rebuild()
