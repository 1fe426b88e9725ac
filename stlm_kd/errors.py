"""Every error that a user can cause or meet, with the exit code of the command that ends in it.

::

    StlmKdError                1   something failed
    ├── UsageError             2   the words on the command line
    ├── RecipeError            3   the recipe is wrong, or contradicts what it names
    ├── ModelError             3   a model or tokenizer cannot play the part that it was given
    ├── MissingResourceError   5   a file, a download or a package is not there
    ├── DataError              1   text that cannot be used
    ├── CheckpointError        1   a checkpoint or result folder that cannot be used
    ├── NonFiniteError         1   a loss or gradient became NaN or infinite
    ├── DivergedError          1   the processes of one training hold different weights
    ├── RemoteProcessError     as  another process failed, and says why
    ├── Preempted             75   stopped by SIGTERM, after saving
    └── Interrupted          130   stopped by Ctrl-C, after saving unless it was pressed three times

A message names the place, what was found, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches


class StlmKdError(Exception):
    """Something failed; the message says what, where and what to do."""

    exit_code: int = 1


class UsageError(StlmKdError):
    """The words on the command line are wrong."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class RecipeFault:
    """One fault of a recipe: the dotted place, what is wrong there, and the line where it is known."""

    place: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = self.place
        if self.line is not None:
            where = f"{where} (line {self.line})" if where else f"line {self.line}"
        return f"{where}: {self.message}" if where else self.message


class RecipeError(StlmKdError):
    """A recipe is wrong, or contradicts what it names; holds all faults that were found at once."""

    exit_code = 3

    def __init__(self, origin: str, faults: Sequence[RecipeFault]) -> None:
        self.origin = origin
        self.faults = tuple(faults)
        count = f"{len(self.faults)} fault{'s' if len(self.faults) != 1 else ''}"
        super().__init__("\n".join([f"{origin}: {count}", *(f"  {fault}" for fault in self.faults)]))

    def __reduce__(self) -> tuple[type[RecipeError], tuple[str, tuple[RecipeFault, ...]]]:
        """An error is sent between processes by its arguments, of which this one's message is none."""
        return type(self), (self.origin, self.faults)


class ModelError(StlmKdError):
    """A model or a tokenizer cannot play the part that it was given."""

    exit_code = 3


class MissingResourceError(StlmKdError):
    """A file, a download or a package that is needed is not there."""

    exit_code = 5


class DataError(StlmKdError):
    """Text that cannot be used: empty, malformed or too short."""


class CheckpointError(StlmKdError):
    """A checkpoint or a result folder that cannot be used."""


class NonFiniteError(StlmKdError):
    """A loss or a gradient became NaN or infinite before an optimizer step."""


class DivergedError(StlmKdError):
    """The processes of one training hold different weights."""


class RemoteProcessError(StlmKdError):
    """Another process failed and says why; this one ends with the same exit code and need say nothing."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return "another process failed; its message says why"


class Preempted(StlmKdError):
    """Stopped by SIGTERM after a checkpoint was saved."""

    exit_code = 75


class Interrupted(StlmKdError):
    """Stopped by Ctrl-C; a training's checkpoint was saved, unless the message says otherwise."""

    exit_code = 130


@contextmanager
def error_context(place: str) -> Iterator[None]:
    """Where a model, a file or a text is refused, the message begins with who asked for it.

    >>> with error_context("teachers[1] (novels)"):
    ...     raise ModelError("some/folder: 3 weights are missing")
    Traceback (most recent call last):
    stlm_kd.errors.ModelError: teachers[1] (novels): some/folder: 3 weights are missing
    """
    try:
        yield
    except (ModelError, MissingResourceError, DataError) as error:
        raise type(error)(f"{place}: {error}") from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suffix such as `` (did you mean temperature?)``, or the list of known names where none is near.

    >>> did_you_mean("temprature", ["temperature", "weight"])
    ' (did you mean temperature?)'
    >>> did_you_mean("qqq", ["b", "a"])
    '; known: a, b'
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    if near:
        return f" (did you mean {near[0]}?)"
    return f"; known: {listed(names)}" if names else ""


def listed(names: Iterable[str]) -> str:
    """Names for a message, in quotes where a comma is part of one.

    >>> listed(["student", "teacher a, adapted"])
    "student, 'teacher a, adapted'"
    """
    return ", ".join(repr(name) if "," in name else name for name in names)
