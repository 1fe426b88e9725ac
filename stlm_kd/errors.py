"""All errors that a user may see, with the exit code of the command.

::

    StlmKdError                1   something failed
    ├── UsageError             2   invalid command line
    ├── RecipeError            3   invalid recipe, or contradiction to a model or file that it names
    ├── ModelError             3   unsuitable model or tokenizer
    ├── ExtensionError         3   a registered function that cannot be used
    ├── MissingResourceError   5   missing file, download or package
    ├── DataError              1   unusable data
    ├── CheckpointError        1   unusable checkpoint or result folder
    ├── NonFiniteError         1   NaN or infinite loss or gradient
    ├── DivergedError          1   different weights in the processes of a training
    ├── RemoteProcessError     as  another process failed and reports the reason
    ├── AbsentProcessError     as  a process on another node failed before it met this one
    ├── Preempted             75   stopped by SIGTERM, after saving if there was time
    └── Interrupted          130   stopped by Ctrl-C, after saving unless it was pressed three times

A message names the place, what was found, what was expected and what to do.

>>> issubclass(ModelError, StlmKdError), ModelError.exit_code
(True, 3)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from traceback import walk_tb

from stlm_kd.held_output import stderr_held


def printable(text: object, *, keep: str = "\n", most: int | None = None) -> str:
    """Text for a terminal or a file: escaped is all that does not print but ``keep``.

    So names from elsewhere cannot steer a terminal. Beyond ``most`` characters it is shortened.

    >>> printable("a\\x1b[2J\\u202e±\\nb")
    'a\\\\x1b[2J\\\\u202e±\\nb'
    """
    letters = (sign if sign.isprintable() or sign in keep else ascii(sign)[1:-1] for sign in str(text))
    found = "".join(letters)
    return found if most is None or len(found) <= most else f"{found[: most - 3]}..."


def inline_markdown(text: object) -> str:
    """Text as one piece of a line of Markdown: no markup, table cell, HTML or further line begins in it.

    >>> inline_markdown("a | [b](c)\\n# <d>")
    'a \\\\| \\\\[b\\\\](c) \\\\# \\\\<d\\\\>'
    """
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def one_line(text: object) -> str:
    """Text from elsewhere as part of a message: on one line, without control characters, not too long."""
    return printable(text, keep="", most=200)


class StlmKdError(Exception):
    """Base class; the message says what failed, where, and what to do."""

    exit_code: int = 1


class UsageError(StlmKdError):
    """Usage error on the command line."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class RecipeFault:
    """A fault of a recipe: dotted place, message, and line if known."""

    place: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where, message = one_line(self.place), printable(self.message, most=1000)
        if self.line is not None:
            where = f"{where} (line {self.line})" if where else f"line {self.line}"
        return f"{where}: {message}" if where else message


class RecipeError(StlmKdError):
    """An invalid recipe, or one that contradicts a model or file that it names; contains all faults found."""

    exit_code = 3

    def __init__(self, origin: str, faults: Sequence[RecipeFault]) -> None:
        self.origin = origin
        self.faults = tuple(faults)
        count = f"{len(self.faults)} fault{'s' if len(self.faults) != 1 else ''}"
        super().__init__(
            "\n".join([f"{origin}: {count}", *(f"  {fault}" for fault in first_of(self.faults))])
        )

    def __reduce__(self) -> tuple[type[RecipeError], tuple[str, tuple[RecipeFault, ...]]]:
        """Pickle by constructor arguments, since the message is not one."""
        return type(self), (self.origin, self.faults)


class ModelError(StlmKdError):
    """A model or tokenizer is unsuitable for its role."""

    exit_code = 3


class ExtensionError(StlmKdError):
    """A module registers a name that is taken, or a function that its registry cannot use."""

    exit_code = 3


class MissingResourceError(StlmKdError):
    """A required file, download or package is missing."""

    exit_code = 5


class UnreachableError(MissingResourceError):
    """The main process cannot be reached, so that no other process tells of it."""


class DataError(StlmKdError):
    """Unusable data: empty, malformed or too short."""


class CheckpointError(StlmKdError):
    """An unusable checkpoint or result folder."""


class NonFiniteError(StlmKdError):
    """A NaN or infinite loss or gradient before an optimizer step."""


class DivergedError(StlmKdError):
    """The weights of a training differ between its processes."""


class RemoteProcessError(StlmKdError):
    """Another process failed and reports the reason; this one ends silently with the same exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return "another process failed; its message says why"


class AbsentProcessError(StlmKdError):
    """A process on another node failed before it met this one, which ends with its reason and exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Preempted(StlmKdError):
    """Stopped by SIGTERM; a training's checkpoint was saved, unless the message says otherwise."""

    exit_code = 75


class Interrupted(StlmKdError):
    """Stopped by Ctrl-C; a training's checkpoint was saved, unless the message says otherwise."""

    exit_code = 130


@contextmanager
def error_context(place: str) -> Iterator[None]:
    """Prefix error messages about a model, a file or data with the place that refers to it.

    >>> with error_context("teachers[1] (novels)"):
    ...     raise ModelError("some/folder: 3 weights are missing")
    Traceback (most recent call last):
    stlm_kd.errors.ModelError: teachers[1] (novels): some/folder: 3 weights are missing
    """
    try:
        yield
    except (ModelError, MissingResourceError, DataError) as error:
        raise type(error)(f"{place}: {error}") from error


@contextmanager
def foreign_errors(
    as_ours: Callable[[BaseException], StlmKdError], *, is_quiet: bool = False
) -> Iterator[None]:
    """The guard of a boundary: whatever a library raises within it becomes one error of ours.

    Panics of libraries in Rust, which are no ``Exception``, are included. Errors of ours and missing memory
    pass unchanged, and so do signs of a mistake of ours: a failed assertion or an unknown name in a function
    of this package.

    ``as_ours`` makes the error, with place, found, expected and cure, of what was raised, which stays its
    cause. ``is_quiet`` is for blocks that do not yield: what libraries write to stderr, such as warnings and
    panics, is then shown only at their end, and never beside the message.

    >>> with foreign_errors(lambda error: DataError(f"rows.txt:3: {first_line(error)}; correct it")):
    ...     int("x")
    Traceback (most recent call last):
    stlm_kd.errors.DataError: rows.txt:3: invalid literal for int() with base 10: 'x'; correct it
    """
    holding: AbstractContextManager[list[BaseException]] = stderr_held() if is_quiet else nullcontext([])
    with holding as explained:
        try:
            yield
        except BaseException as error:
            is_foreign = isinstance(error, Exception) or type(error).__name__ == "PanicException"
            is_mistake = isinstance(error, (AssertionError, NameError)) and _raised_here(error)
            if not is_foreign or is_mistake or isinstance(error, StlmKdError) or is_out_of_memory(error):
                raise
            explained.append(error)
            raise as_ours(error) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, or torch on the CPU or a GPU, found no memory."""
    is_said = re.search(r"(?i)out of memory|can(?:'t|not) allocate", str(error)) is not None
    return isinstance(error, MemoryError) or (isinstance(error, (OSError, RuntimeError)) and is_said)


def _raised_here(error: BaseException) -> bool:
    """Whether the function that raised an error is one of this package."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] == __name__.partition(".")[0]


def first_line(error: BaseException, *, most: int = 300) -> str:
    """The first line of an error's message, of at most ``most`` characters; its type if that says nothing."""
    lines = str(error).strip().splitlines()
    if lines and not isinstance(error, KeyError):
        return printable(lines[0], most=most)
    return printable(": ".join([type(error).__name__, *lines[:1]]), most=most)


def first_of(lines: Iterable[object], *, most: int = 20) -> list[str]:
    """At most ``most`` of the lines of a message, and how many more there are.

    >>> first_of("abc", most=2)
    ['a', 'b', 'and 1 more']
    """
    found = [*map(str, lines)]
    more = len(found) - most
    return found if more <= 0 else [*found[:most], f"and {more:,} more"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suffix such as `` (did you mean temperature?)``, or the list of known names if none is similar.

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


def one_of(choices: Sequence[str]) -> str:
    """At least one choice as part of a message.

    >>> one_of(["a", "b", "c"]), one_of(["a"])
    ('a, b or c', 'a')
    """
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def listed(names: Iterable[str]) -> str:
    """Join names for a message, quoting those that contain a comma.

    >>> listed(["student", "teacher a, adapted"])
    "student, 'teacher a, adapted'"
    """
    return ", ".join(repr(name) if "," in name else name for name in names)


@contextmanager
def memory_as_error() -> Iterator[None]:
    """Turn a failed allocation, of Python or of PyTorch on any device, into MissingResourceError.

    >>> with memory_as_error():  # doctest: +ELLIPSIS
    ...     bytearray(2**62)
    Traceback (most recent call last):
    stlm_kd.errors.MissingResourceError: out of memory (MemoryError); use smaller batches ...
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MissingResourceError(
            f"out of memory ({first_line(error, most=200)}); use smaller batches (train.micro_batch), "
            "shorter texts, smaller models or fewer --jobs, or free some memory, and repeat the command: "
            "finished results are intact"
        ) from error
