"""Options of a loss, a combiner or a suite: a part built from its function's keyword-only arguments."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, TypeAlias, TypeVar, Union, get_args, get_origin

from pydantic import PydanticSchemaGenerationError, Strict, ValidationError, ValidationInfo, create_model
from pydantic_core import InitErrorDetails

from stlm_kd.errors import ExtensionError, did_you_mean
from stlm_kd.recipe.schema.fields import Part, fault, show
from stlm_kd.registry import Registry

Chosen = TypeVar("Chosen", bound=Part)
Handler: TypeAlias = Callable[[object], Any]
_CLASSES: dict[tuple[type[Part], str, object], type[Part]] = {}

Rows: TypeAlias = Sequence[tuple[type[Chosen], Registry[Any]]]
"""Registries, each with the part whose fields all its entries share."""


def row_of(
    base: type[Chosen], key: str, tables: Callable[[], Rows[Chosen]]
) -> Callable[[object, Handler, ValidationInfo], Chosen]:
    """A wrap validator: the part of the registry entry that ``given[key]`` names, with its options.

    An unknown name is validated with the options of the nearest one, so option faults are reported too. All
    parts of the tables, which are called at validation, have the class ``base``.
    """

    def validate(given: object, handler: Handler, info: ValidationInfo) -> Chosen:
        rows = tables()
        if isinstance(given, base):
            return given
        name = _value_near(given, key)
        if name is None:
            return handler(given)  # type: ignore[no-any-return]  # pydantic's handler has no type
        known = {row: (part, table) for part, table in rows for row in table}
        near = [name] if name in known else get_close_matches(name, list(known), n=1)
        if not near:
            unknown = InitErrorDetails(
                type=fault(_unknown(name, rows[0][1], rows[0][1].kind)), loc=(key,), input=name
            )
            raise ValidationError.from_exception_data(base.__name__, [unknown])
        part, table = known[near[0]]
        return with_options(part, near[0], table).model_validate(given, context=info.context)

    return validate


def added_options(part: Part, *bases: type[Part]) -> dict[str, Any]:
    """The options that a registry entry adds to its part, with defaults."""
    fixed = {name for base in bases for name in base.model_fields}
    return {name: getattr(part, name) for name in type(part).model_fields if name not in fixed}


def with_options(base: type[Chosen], name: str, table: Registry[Any]) -> type[Chosen]:
    """``base`` with a field for each option of the registry entry."""
    identity = (base, name, table[name])
    if identity not in _CLASSES:
        options = table.options(name)
        if taken := sorted(set(options) & set(base.model_fields)):
            raise ExtensionError(
                f"{table.kind} {name}: option {taken[0]} found; every {table.kind} has this key"
            )
        fields: dict[str, Any] = {
            option: (
                base.of_option(strict(annotation)),
                ... if default is inspect.Parameter.empty else default,
            )
            for option, (annotation, default) in options.items()
        }
        try:
            made = create_model(f"{base.__name__}[{name}]", __base__=base, **fields)
        except PydanticSchemaGenerationError as error:
            types = ", ".join(f"{option}: {annotation}" for option, (annotation, _) in options.items())
            raise ExtensionError(
                f"{table.kind} {name}: options {types} found; expected numbers, texts, booleans, and lists "
                "and mappings of them"
            ) from error
        made.called = f"an option of {name}"
        _CLASSES[identity] = made
    return _CLASSES[identity]  # type: ignore[return-value]  # the key says which base


def known_name(value: object, names: Collection[str] | Registry[Any], kind: str = "") -> object:
    """The same name, if it is one of these; ``kind`` is the noun for it, by default the registry's.

    Raises:
        PydanticCustomError: Unknown name; the message has the nearest.
    """
    if isinstance(value, str) and value not in names:
        raise fault(_unknown(value, names, kind or getattr(names, "kind", "")))
    return value


def strict(annotation: Any) -> Any:
    """The same type in strict mode: numbers are not converted from text or booleans.

    >>> strict(dict[str, float])
    dict[str, typing.Annotated[float, Strict(strict=True)]]
    """
    if annotation in (int, float, bool):
        return Annotated[annotation, Strict()]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[(strict(arguments[0]), *annotation.__metadata__)]
    if origin is None or any(isinstance(a, (str, list, int)) for a in arguments):
        return annotation
    inner = tuple(a if a is Ellipsis or a is type(None) else strict(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return Union[inner]  # noqa: UP007 (of a tuple, which | does not take)
    return origin[inner]


def _unknown(name: str, names: Iterable[str], kind: str) -> str:
    return f"{show(name)} is not a known {kind}{did_you_mean(name, names)}"


def _value_near(given: object, key: str) -> str | None:
    """The text under the key, or under a misspelling of it."""
    if not isinstance(given, Mapping):
        return None
    near = [key] if key in given else get_close_matches(key, [str(k) for k in given], n=1)
    value = given.get(near[0]) if near else None
    return value if isinstance(value, str) else None
