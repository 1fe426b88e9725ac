"""Registries of functions by name: a decorator registers one; its keyword-only arguments are its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, get_type_hints

from stlm_kd.errors import did_you_mean

F = TypeVar("F", bound=Callable[..., Any])
E = TypeVar("E", bound="Extension")
Function = TypeVar("Function", bound=Callable[..., Any])
Fields = ParamSpec("Fields")


@dataclass(frozen=True, eq=False)
class Extension:
    """A registered function; subclasses add what others must know of it.

    Attributes:
        name: Its name in recipes.
        function: Its keyword-only arguments are its options in recipes.
    """

    name: str
    function: Callable[..., Any]

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.function(*args, **options)


class Registry(Generic[F]):
    """Functions, or ``Extension``s of functions, by name.

    Args:
        kind: The noun for one of them in messages ("loss").
        modules: By name, a module that registers it; it is imported when the entry is first used.
    """

    def __init__(self, kind: str, modules: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._modules = dict(modules or {})
        self._rows: dict[str, F] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Register the decorated function under a new name; a ValueError if the name is taken."""

        def add(function: F) -> F:
            origin = getattr(function, "function", function).__module__
            if name in self._rows or self._modules.get(name, origin) != origin:
                raise ValueError(f"{origin}: the {self.kind} {name} is registered by another module already")
            self._rows[name] = function
            return function

        return add

    def __getitem__(self, name: str) -> F:
        if name not in self._rows and name in self._modules:
            import_module(self._modules[name])
        if name not in self._rows:
            raise KeyError(self.unknown(name))
        return self._rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows or name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._rows.keys() | self._modules.keys()))

    def unknown(self, name: str) -> str:
        """Message for an unregistered name, with the nearest registered one."""
        return f"{name} is not a known {self.kind}{did_you_mean(name, self)}"

    def options(self, name: str) -> dict[str, tuple[Any, Any]]:
        """The options of a function; see ``options_of``."""
        entry: Callable[..., Any] = self[name]
        return options_of(entry.function if isinstance(entry, Extension) else entry)


def options_of(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Keyword-only arguments of a function: name → (annotation with its bounds, default).

    The default is ``inspect.Parameter.empty`` for a required option.
    """
    parameters = inspect.signature(function).parameters.values()
    options = [parameter for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    hints = _hints(function, options)
    return {option.name: (hints[option.name], option.default) for option in options}


def first_argument(function: Callable[..., Any]) -> Any:
    """The annotation of a function's first argument, with its bounds."""
    first, *_ = inspect.signature(function).parameters.values()
    return _hints(function, [first])[first.name]


def _hints(function: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> dict[str, Any]:
    # Only of these: the other annotations may name types imported for type checkers only.
    written = {
        entry.name: Any if entry.annotation is entry.empty else entry.annotation for entry in parameters
    }
    holder = SimpleNamespace(__annotations__=written)
    return get_type_hints(holder, inspect.unwrap(function).__globals__, include_extras=True)


def registering(
    registry: Registry[E], kind: Callable[Concatenate[str, Callable[..., Any], Fields], E]
) -> Callable[Concatenate[str, Fields], Callable[[Function], Function]]:
    """A decorator ``register(name, **fields)``, which registers a function as such an extension."""

    def register(name: str, /, *args: Fields.args, **fields: Fields.kwargs) -> Callable[[Function], Function]:
        def add(function: Function) -> Function:
            registry.register(name)(kind(name, function, *args, **fields))
            return function

        return add

    return register


Option = float | int | bool | str | Mapping[str, float] | Mapping[str, Mapping[str, float]]
