"""Registries of functions by name: a decorator registers one; its keyword-only arguments are its options.

A function that its registry cannot use is refused when it is registered, not when a recipe first names it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from importlib import import_module
from traceback import walk_tb
from types import SimpleNamespace
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, get_type_hints

from stlm_kd.errors import ExtensionError, StlmKdError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])
E = TypeVar("E", bound="Extension")
Fields = ParamSpec("Fields")


@dataclass(frozen=True, eq=False)
class Extension:
    """A registered function, whose keyword-only arguments are its options; subclasses add facts about it."""

    name: str
    function: Callable[..., Any]

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.function(*args, **options)

    @property
    def positional(self) -> int | None:
        """How many positional arguments the function takes; None for the number of its registry."""
        return None

    def further_options(self) -> Collection[str]:
        """Options beside those of the function."""
        return ()


class Registry(Generic[F]):
    """Functions, or ``Extension``s of functions, by name.

    ``kind`` is the noun for one of them in messages ("loss"); each takes ``positional`` positional arguments.
    ``modules`` register the entries of their names, and are imported when these are first used. ``shares`` is
    a registry that must not have the same names; ``reserved`` are keys of recipes that no option may have.
    ``fault`` says what is wrong with a result, given the positional arguments; it and a wrong ``item`` of an
    iterator are looked for in what functions from outside this package return.
    """

    def __init__(
        self,
        kind: str,
        positional: int,
        modules: Mapping[str, str] | None = None,
        *,
        has_options: bool = True,
        shares: Registry[Any] | None = None,
        reserved: Collection[str] = (),
        fault: Callable[[Any, tuple[Any, ...]], str | None] = lambda found, arguments: None,
        item: type = object,
    ) -> None:
        self.kind, self.positional, self.has_options = kind, positional, has_options
        self._reserved, self._fault, self._item = reserved, fault, item
        self._modules = dict(modules or {})
        self._rows: dict[str, F] = {}
        self._taken: dict[str, str] = {} if shares is None else shares._taken

    def register(self, name: str) -> Callable[[F], F]:
        """Register the decorated function; ExtensionError for a taken name or another signature."""
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*([.-]\w+)*", name):
            raise ExtensionError(
                f"{getattr(name, '__module__', self.kind)}: {name!r} found as the name of a {self.kind}; "
                'expected letters, digits and single hyphens, as in @register_…("my-name")'
            )

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
            further = entry.further_options() if isinstance(entry, Extension) else ()
            if taken := [key for key in (name, *options, *further) if key in self._reserved]:
                raise ExtensionError(f"{place}: {taken[0]} is a key that recipes have already; rename it")
            is_own = module.partition(".")[0] == __name__.partition(".")[0]
            self._rows[name], self._taken[name] = entry if is_own else self._guarded(entry, place), module
            return entry

        return add

    def _guarded(self, entry: Any, place: str) -> Any:
        """The entry with functions whose errors and wrong results are one message that names them."""
        if not isinstance(entry, Extension):
            return self._guarded_call(entry, place)
        calls: dict[str, Any] = {
            name: _with_place(value, place)
            for name, value in vars(entry).items()
            if inspect.isfunction(value) and name != "function"
        }
        return replace(entry, function=self._guarded_call(entry.function, place), **calls)

    def _guarded_call(self, function: Callable[..., Any], place: str) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            with _errors_of(function, place):
                found = function(*args, **options)
            if isinstance(found, Iterator) and self._item is not object:
                return self._items(found, function, place)
            if wrong := self._fault(found, args):
                raise ExtensionError(f"{place}: {wrong}")
            return found

        return call

    def _items(self, found: Iterator[Any], function: Callable[..., Any], place: str) -> Iterator[Any]:
        with _errors_of(function, place):
            for number, one in enumerate(found, start=1):
                if not isinstance(one, self._item):
                    kinds = f"{type(one).__name__} found, expected {self._item.__name__}"
                    raise ExtensionError(f"{place}: item {number}: {kinds}")
                yield one

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


def _with_place(function: Callable[..., Any], place: str) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        with _errors_of(function, place):
            return function(*args, **options)

    return call


@contextmanager
def _errors_of(function: Callable[..., Any], place: str) -> Iterator[None]:
    """Raise what a function from outside this package raises as an ExtensionError with its line.

    Our own errors and those of the system (files, memory) pass.
    """
    try:
        yield
    except (StlmKdError, OSError, MemoryError):
        raise
    except Exception as error:
        file = inspect.unwrap(function).__code__.co_filename
        lines = [n for frame, n in walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
        where = f", line {lines[-1]}" if lines else ""
        raise ExtensionError(f"{place}{where}: {type(error).__name__}: {error}") from error


def _function(entry: Callable[..., Any]) -> Callable[..., Any]:
    return entry.function if isinstance(entry, Extension) else entry


def options_of(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Keyword-only arguments by name: the annotation with its bounds, and the default, or Parameter.empty."""
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
) -> Callable[Concatenate[str, Fields], Callable[[F], F]]:
    """A decorator ``register(name, **fields)``, documented by the summary and the attributes of ``kind``."""

    def register(name: str, /, *args: Fields.args, **fields: Fields.kwargs) -> Callable[[F], F]:
        def add(function: F) -> F:
            try:
                entry = kind(name, function, *args, **fields)
            except TypeError as error:
                message = str(error).replace(f"{getattr(kind, '__name__', kind)}.__init__() ", "")
                module = getattr(function, "__module__", "")
                raise ExtensionError(f"{module}: {registry.kind} {name}: {message}") from error
            registry.register(name)(entry)
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
