"""The parts of a recipe that say what is trained and for which vocabulary: student, tokenizer, adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, ValidationInfo

from stlm_kd.errors import did_you_mean
from stlm_kd.recipe.schema.fields import (
    KEEPS_PATH,
    BelowOne,
    Count,
    CountOrZero,
    Flag,
    NotNegative,
    Part,
    PathText,
    Positive,
    Rows,
    Seed,
    Share,
    Text,
    fault,
    show,
)
from stlm_kd.recipe.schema.options import known_name
from stlm_kd.recipe.schema.training import TrainingPart
from stlm_kd.training.config import Precision, Schedule

Layers = Literal["every-other", "first", "last", "spread"]


class TokenizerTraining(Part):
    """A tokenizer trained on the recipe's training text.

    ``prefer``: ``teachers`` prefers tokens that the teachers have, so that most of the text is in tokens with
    a row of their own.
    """

    called: ClassVar[str] = "a key of tokenizer"
    train: Literal["bpe"]
    size: Count
    prefer: Literal["teachers"] | None = None


class TokenizerTrim(Part):
    """``size`` of a teacher's own tokens, those most useful on the recipe's training text."""

    called: ClassVar[str] = "a key of tokenizer"
    trim: Text
    size: Count


def _text_or_made(value: object, info: ValidationInfo) -> object:
    if isinstance(value, Mapping):
        kind = TokenizerTrim if "trim" in value else TokenizerTraining
        return kind.model_validate(value, context=info.context)
    if isinstance(value, (TokenizerTraining, TokenizerTrim)) or (isinstance(value, str) and value):
        return value
    raise fault(
        f"{show(value)} found; expected a folder, a Hub id, {{train: bpe, size: 8192}}, or "
        "{trim: TEACHER, size: 8192}"
    )


def _layers(value: object) -> object:
    choices = get_args(Layers)
    if isinstance(value, str) and value in choices:
        return value
    if isinstance(value, (list, tuple)) and value and all(type(i) is int and i >= 0 for i in value):
        if list(value) != sorted(set(value)):
            raise fault(f"{list(value)} found; expected different layers in ascending order")
        return tuple(value)
    found = str(list(value)) if isinstance(value, (list, tuple)) else show(value)
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    raise fault(f"{found} found; expected one of {', '.join(choices)}, or a list such as [0, 2, 4]{hint}")


class InitFrom(Part):
    """A student made of some of a teacher's layers; ``model_type``: of another family, where that can be."""

    called: ClassVar[str] = "a key of init_from"
    teacher: Text
    model_type: Text | None = None
    layers: Annotated[Layers | tuple[int, ...], BeforeValidator(_layers)] = "every-other"


def _preset(value: object) -> object:
    from stlm_kd.models.presets import PRESETS

    return known_name(value, PRESETS, "preset")


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
    ``dropout``: every dropout probability of ``model`` or ``init_from``, in place of those it comes with.
    """

    called: ClassVar[str] = "a key of student"
    one_of: ClassVar[tuple[str, ...]] = ("preset", "architecture", "model", "init_from")
    one_of_optional: ClassVar[bool] = True
    tokenizer: Annotated[str | TokenizerTraining | TokenizerTrim, BeforeValidator(_text_or_made), KEEPS_PATH]
    preset: Annotated[Text | None, BeforeValidator(_preset)] = None
    architecture: Annotated[dict[str, Any] | None, BeforeValidator(_config_fields)] = None
    model: PathText | None = None
    new_head: Flag = False
    init_from: InitFrom | None = None
    dropout: BelowOne | None = None

    @property
    def has_body(self) -> bool:
        """Whether the recipe says what to train, and not only for which vocabulary."""
        return any(getattr(self, key) is not None for key in self.one_of)


def _initialiser(value: object) -> object:
    from stlm_kd.adaptation.initialisers import AUTO, INITIALISERS

    return value if value == AUTO else known_name(value, INITIALISERS)


CROSS_ENTROPY, SELF_DISTILLATION = "cross-entropy", "self-distillation"


def _adapted_on(value: object) -> object:
    known = (CROSS_ENTROPY, SELF_DISTILLATION)
    expected = f"expected {CROSS_ENTROPY}, {SELF_DISTILLATION}, or weights of them above 0"
    given = {value: 1.0} if isinstance(value, str) else value
    if given is None:
        return None
    if not isinstance(given, Mapping) or not given:
        raise fault(f"{show(value)} found; {expected}")
    for name, weight in given.items():
        if name not in known:
            raise fault(f"{show(name)} found; {expected}{did_you_mean(str(name), known)}")
        if type(weight) not in (int, float) or not 0 < weight < float("inf"):
            raise fault(f"{name}: {show(weight)} found; {expected}")
    return {str(name): float(weight) for name, weight in given.items()}


class Adapt(TrainingPart):
    """How a teacher gets the student's vocabulary: a new embedding and head, trained with the body frozen.

    ``init``: how the new rows begin; ``auto``: as the initialiser whose rows, untrained, have the lowest
    loss on a little of the held-out data. ``objective``: what its new rows are trained on; one, or a weight
    for each. ``cross-entropy``: the text; ``self-distillation``: agreement with itself in its own vocabulary
    on how likely spans of the text are that both tokenizers end at the same byte (causal models). If not
    given, ``cross-entropy``; classifiers keep their own probabilities. ``old_rows_learning_rate``: of rows
    that are copies of the teacher's own, those of tokens that both vocabularies have and of special tokens;
    0 leaves them as they are, null is ``learning_rate``. ``norms``: its norms are trained too.
    ``micro_batch``: as ``effective_batch`` where null. ``patience``: validations without improvement, of the
    loss on held-out text, which for one vocabulary falls exactly when bits per byte fall; null trains all
    ``tokens``. With 0 ``tokens`` the initialised rows are kept. ``fraction``: the share of the training text
    that it sees; as ``data.fraction`` where null.
    """

    called: ClassVar[str] = "a key of adapt"
    init: Annotated[Text, BeforeValidator(_initialiser)] = "subword-mean"
    objective: Annotated[dict[str, float] | None, BeforeValidator(_adapted_on)] = None
    norms: Flag = False
    tokens: CountOrZero = 200_000_000
    learning_rate: Positive = 3e-4
    old_rows_learning_rate: NotNegative | None = None
    effective_batch: Rows = 32
    micro_batch: Rows | None = None
    warmup: BelowOne = 0.05
    schedule: Schedule = "cosine"
    validate_every: Count = 100
    patience: Count | None = 3
    fraction: Share | None = None
    precision: Precision = "fp32"
    seed: Seed = 0
