"""Registries of functions by name: a decorator registers one; its keyword-only arguments are its options.

A function that its registry cannot use is refused when it is registered, not when a recipe first names it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, get_type_hints

from stlm_kd.errors import ExtensionError, did_you_mean

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

    @property
    def positional(self) -> int | None:
        """How many positional arguments the function takes; None for the number of its registry."""
        return None


class Registry(Generic[F]):
    """Functions, or ``Extension``s of functions, by name.

    Args:
        kind: The noun for one of them in messages ("loss").
        positional: How many positional arguments each function takes.
        modules: By name, a module that registers it; it is imported when the entry is first used.
        has_options: Whether recipes can give options.
        shares: A registry that must not have the same names.
    """

    def __init__(
        self,
        kind: str,
        positional: int,
        modules: Mapping[str, str] | None = None,
        *,
        has_options: bool = True,
        shares: Registry[Any] | None = None,
    ) -> None:
        self.kind, self.positional, self.has_options = kind, positional, has_options
        self._modules = dict(modules or {})
        self._rows: dict[str, F] = {}
        self._taken: dict[str, str] = {} if shares is None else shares._taken

    def register(self, name: str) -> Callable[[F], F]:
        """Register the decorated function under a new name.

        Raises:
            ExtensionError: The name is taken, or the function does not have the signature of its kind.
        """

        def add(entry: F) -> F:
            function, module = _function(entry), _function(entry).__module__
            owner = self._taken.get(name, self._modules.get(name, module))
            again = name in self._taken and module != "__main__"  # a notebook's cell may run again
            if owner != module or again:
                raise ExtensionError(
                    f"{module}: {self.kind} {name}: {owner} registers this name already; use another name"
                )
            expected = entry.positional if isinstance(entry, Extension) else None
            place = f"{module}: {self.kind} {name}"
            options = _check(function, place, self.positional if expected is None else expected)
            if options and not self.has_options:
                raise ExtensionError(f"{place}: option {options[0]} found; recipes give it no options")
            self._rows[name], self._taken[name] = entry, module
            return entry

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
        return options_of(_function(self[name]))


def _function(entry: Callable[..., Any]) -> Callable[..., Any]:
    return entry.function if isinstance(entry, Extension) else entry


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


def _check(function: Callable[..., Any], place: str, positional: int) -> list[str]:
    """The options of a function; refuses a signature that cannot be called or read from a recipe."""
    parameters = list(inspect.signature(function).parameters.values())
    shown = f"{getattr(function, '__name__', function)}{inspect.signature(function)}"
    if several := [p for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]:
        raise ExtensionError(f"{place}: {several[0]} found in {shown}; expected each argument by its name")
    found = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    if not sum(p.default is p.empty for p in found) <= positional <= len(found):
        raise ExtensionError(
            f"{place}: {len(found)} positional arguments found in {shown}; expected {positional}, and "
            "options after a * (keyword-only)"
        )
    untyped = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.annotation is p.empty]
    if untyped:
        raise ExtensionError(
            f"{place}: the option {untyped[0]} has no type; annotate it, such as {untyped[0]}: float = 1.0"
        )
    try:
        return list(options_of(function))
    except Exception as error:  # an annotation is any expression
        raise ExtensionError(
            f"{place}: the type of an option cannot be found ({type(error).__name__}: {error}); import it at "
            "the top of the module, not for type checkers only"
        ) from error


def registering(
    registry: Registry[E], kind: Callable[Concatenate[str, Callable[..., Any], Fields], E], summary: str
) -> Callable[Concatenate[str, Fields], Callable[[Function], Function]]:
    """A decorator ``register(name, **fields)``, which registers a function as such an extension.

    Its documentation is the summary, with the fields from the attributes of ``kind``.
    """

    def register(name: str, /, *args: Fields.args, **fields: Fields.kwargs) -> Callable[[Function], Function]:
        def add(function: Function) -> Function:
            registry.register(name)(kind(name, function, *args, **fields))
            return function

        return add

    _document(register, kind, summary)
    return register


def _document(register: Callable[..., Any], kind: Callable[..., Any], summary: str) -> None:
    name, _, *fields = inspect.signature(kind).parameters.values()
    named = [name.replace(kind=name.POSITIONAL_ONLY), *(f.replace(kind=f.KEYWORD_ONLY) for f in fields)]
    register.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]  # of any function
    head, _, example = inspect.cleandoc(summary).partition("\n>>>")
    attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    raises = "Raises:\n    ExtensionError: The name is taken, or the function has another signature."
    arguments = f"Args:\n    name: Its name in recipes, a new one.\n{attributes}"
    parts = [head.rstrip(), arguments.rstrip(), raises, *([f">>>{example}"] if example else [])]
    register.__doc__ = "\n\n".join(parts)
    register.__module__ = kind.__module__


Option = float | int | bool | str | Mapping[str, float] | Mapping[str, Mapping[str, float]]
