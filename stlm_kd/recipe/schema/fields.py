"""Strict field types of recipes, and a base class that reports every fault of a part."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    Strict,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from typing_extensions import Self

from stlm_kd.errors import did_you_mean

UNKNOWN_KEY = "unknown_key"
"""The type of a fault that leaves the rest of its part valid."""

LENIENT = "lenient"
"""Validation context in which unknown keys are ignored, to find further faults."""

_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9}
_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMmBb])")


def fault(message: str) -> PydanticCustomError:
    """A fault at the location of the validator that raises it."""
    return PydanticCustomError("fault", message)


def parse_count(value: object) -> object:
    """Parse a count such as ``200M``, ``8k``, ``1.5B``, ``1e6`` into an integer; other values are unchanged.

    >>> parse_count("1.5B"), parse_count("8k"), parse_count(1e6)
    (1500000000, 8000, 1000000)
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    match = _COUNT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    number = float(match[1]) * _SUFFIXES[match[2].lower()]
    return int(number) if math.isfinite(number) and number.is_integer() else value


def texts_of(value: object) -> object:
    """Convert integer names in a list or a mapping to text.

    >>> texts_of([0, "a"]), texts_of({0: "a"})
    (['0', 'a'], {'0': 'a'})
    """
    if isinstance(value, Mapping):
        return {_text(key): _text(entry) for key, entry in value.items()}
    return [_text(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _text(entry: object) -> object:
    return str(entry) if type(entry) is int else entry


Count = Annotated[int, BeforeValidator(parse_count), Strict(), Field(ge=1, le=10**15)]
CountOrZero = Annotated[int, BeforeValidator(parse_count), Strict(), Field(ge=0, le=10**15)]
Rows = Annotated[int, BeforeValidator(parse_count), Strict(), Field(ge=1, le=10**6)]
"""Rows that a step or a forward pass holds at once."""
Seed = Annotated[int, Strict(), Field(ge=0, lt=2**32)]
Real = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Positive = Annotated[float, Strict(), Field(allow_inf_nan=False, gt=0)]
NotNegative = Annotated[float, Strict(), Field(allow_inf_nan=False, ge=0)]
Share = Annotated[float, Strict(), Field(gt=0, le=1)]
BelowOne = Annotated[float, Strict(), Field(allow_inf_nan=False, ge=0, lt=1)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Field(min_length=1)]


class RecipePath(str):
    """The absolute path of a relative one in a recipe, which hashes and texts have as ``written``."""

    __slots__ = ("written",)
    written: str

    @classmethod
    def at(cls, path: str, written: str) -> RecipePath:
        """The path that is written so."""
        found = cls(path)
        found.written = written
        return found


def _keep_path(value: object, validate: Callable[[object], object]) -> object:
    """A located path stays one, of which pydantic would make a plain text; blank names nothing."""
    found = validate(value)
    written = value.written if isinstance(value, RecipePath) else value
    if isinstance(written, str) and not written.strip():
        raise fault(f"{written!r} found; expected text that is not blank")
    return value if isinstance(value, RecipePath) else found


KEEPS_PATH = WrapValidator(_keep_path)
PathText = Annotated[Text, KEEPS_PATH]


class Part(BaseModel):
    """A mapping of a recipe: frozen, without unknown keys, with readable faults and the nearest names.

    ``called`` is its name in messages; ``one_of`` are keys of which exactly one is given, or at most one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    called: ClassVar[str] = "a recipe"
    one_of: ClassVar[tuple[str, ...]] = ()
    one_of_optional: ClassVar[bool] = False

    @model_validator(mode="wrap")
    @classmethod
    def _every_fault(
        cls, given: object, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        """Validate with misspelt keys corrected, so their values are checked too; report all faults."""
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise fault(f"{show(given)} found; expected a mapping: {', '.join(cls.model_fields)}")
        repaired, misspelt, found = _repair(given, cls)
        if info.context and info.context.get(LENIENT):
            found = []
        part = None
        try:
            part = handler(repaired)
        except ValidationError as error:
            found += [_readable_fault(line, misspelt) for line in error.errors(include_url=False)]
        found += [] if cls._may_lack(repaired) else _exclusive(repaired, cls)
        if part is None or found:
            raise ValidationError.from_exception_data(cls.__name__, found)
        return part

    @classmethod
    def of_option(cls, annotation: Any) -> Any:
        """The field type of an option with this annotation."""
        return annotation

    @classmethod
    def _may_lack(cls, given: Mapping[str, object]) -> bool:
        return not cls.one_of or (cls.one_of_optional and all(given.get(key) is None for key in cls.one_of))


def show(value: object) -> str:
    """A value formatted for messages, truncated."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return repr(_truncated(value))
    if isinstance(value, Mapping):
        return f"a mapping ({_truncated(', '.join(map(str, value)))})"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return _truncated(str(value))


def _truncated(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"


def _repair(
    given: Mapping[Any, Any], cls: type[Part]
) -> tuple[dict[str, Any], dict[str, str], list[InitErrorDetails]]:
    """Known keys, misspelt ones corrected; how these were written; and a fault for each unknown key."""
    known = list(cls.model_fields)
    repaired = {key: value for key, value in given.items() if key in known}
    misspelt = {}
    faults = []
    for key, value in given.items():
        if key in known:
            continue
        near = get_close_matches(str(key), known, n=1)
        if near and near[0] not in repaired:
            repaired[near[0]] = value
            misspelt[near[0]] = str(key)
        error = PydanticCustomError(UNKNOWN_KEY, f"not {cls.called}{did_you_mean(str(key), known)}")
        faults.append(InitErrorDetails(type=error, loc=(str(key),), input=value))
    return repaired, misspelt, faults


def _exclusive(repaired: Mapping[str, object], cls: type[Part]) -> list[InitErrorDetails]:
    names = [key for key in cls.one_of if repaired.get(key) is not None]
    if len(names) == 1:
        return []
    found = " and ".join(names) if names else "none"
    message = f"{found} given; expected exactly one of {', '.join(cls.one_of)}"
    return [InitErrorDetails(type=fault(message), loc=(), input=None)]


def _readable_fault(line: Any, misspelt: Mapping[str, str]) -> InitErrorDetails:
    """One line of a validation error as a readable fault; nested parts' faults are readable already."""
    loc = tuple(line["loc"])
    if loc and loc[0] in misspelt:
        loc = (misspelt[loc[0]], *loc[1:])
    kind, found = line["type"], line["input"]
    if kind in ("fault", UNKNOWN_KEY):
        error = PydanticCustomError(kind, line["msg"])
    elif kind == "missing":
        error = fault("not given, and there is no default")
    else:
        error = fault(f"{show(found)} found; {_expected(kind, line.get('ctx', {}), found)}")
    return InitErrorDetails(type=error, loc=loc, input=found)


_EXPECTED = {
    "int_type": "expected an integer",
    "int_from_float": "expected an integer",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "string_too_short": "expected text that is not empty",
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "dict_type": "expected a mapping",
    "mapping_type": "expected a mapping",
    "too_long": "expected fewer entries",
    "too_short": "expected more entries",
    "string_pattern_mismatch": "expected letters, digits, dots, dashes and underscores, at most 64",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def _expected(kind: str, ctx: Mapping[str, Any], found: object) -> str:
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"expected {words} {ctx[key]:g}"
    if kind == "literal_error":
        choices = [text or number for text, number in re.findall(r"'([^']*)'|(\d+)", ctx["expected"])]
        near = get_close_matches(str(found), choices, n=1)
        return f"expected one of {', '.join(choices)}" + (f" (did you mean {near[0]}?)" if near else "")
    return _EXPECTED.get(kind, f"expected another kind of value ({kind})")
