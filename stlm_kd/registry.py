"""Named tables of functions: one decorator adds a row, and its keyword-only arguments are its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Generic, TypeVar, get_type_hints

from stlm_kd.errors import did_you_mean

F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[F]):
    """A table of functions by name. ``kind`` is what one row is called in messages ("loss")."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._rows: dict[str, F] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Add the decorated function under a name that is not yet taken."""

        def add(function: F) -> F:
            assert name not in self._rows, f"{self.kind} {name} registered twice"
            self._rows[name] = function
            return function

        return add

    def __getitem__(self, name: str) -> F:
        if name not in self._rows:
            raise KeyError(self.unknown(name))
        return self._rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._rows))

    def unknown(self, name: str) -> str:
        """The message for a name that is not in the table, with the nearest one that is."""
        return f"{name} is not a known {self.kind}{did_you_mean(name, self._rows)}"

    def options(self, name: str) -> dict[str, tuple[Any, Any]]:
        """The keyword-only arguments of a row: name → (annotation with its bounds, default).

        The default is ``inspect.Parameter.empty`` where the option must be given.
        """
        function = self._rows[name]
        options = [
            parameter
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        # Of the options alone: what else a function takes is known by name to type checkers only.
        written = SimpleNamespace(__annotations__={option.name: option.annotation for option in options})
        hints = get_type_hints(written, inspect.unwrap(function).__globals__, include_extras=True)
        return {option.name: (hints[option.name], option.default) for option in options}


Option = float | int | bool | str | Mapping[str, float] | Mapping[str, Mapping[str, float]]
