"""The guard of a boundary turns what libraries raise into one message, and hides no mistake of ours."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from types import FunctionType

import pytest

from stlm_kd.errors import DataError, ModelError, RecipeError, RecipeFault, first_line, foreign_errors


class PanicException(BaseException):
    """As pyo3 names it."""


def of_this_package(work: FunctionType) -> FunctionType:
    """The same function as if a module of ours had it."""
    return FunctionType(work.__code__, {**work.__globals__, "__name__": "stlm_kd.models.load"})


def fail() -> None:
    assert "a" == "b", "wrong"


def misspell() -> None:
    _ = misspelt  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        KeyError("bad"),
        RecursionError("bad"),
        PanicException("bad"),
        OSError("bad"),
    ],
)
def test_whatever_a_library_raises_becomes_one_message_with_its_cause(error: BaseException) -> None:
    with pytest.raises(ModelError) as caught, foreign_errors(lambda e: ModelError(f"x: {first_line(e)}")):
        raise error
    assert caught.value.__cause__ is error
    assert str(caught.value).startswith("x: ") and "bad" in str(caught.value)


@pytest.mark.parametrize(
    "error", [DataError("ours"), KeyboardInterrupt(), SystemExit(3), GeneratorExit(), MemoryError()]
)
def test_errors_of_ours_missing_memory_and_requests_to_stop_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, foreign_errors(lambda e: ModelError("foreign")):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("mistake", [fail, misspell])
def test_a_mistake_of_ours_is_not_taken_for_a_fault_of_the_input(mistake: FunctionType) -> None:
    with pytest.raises((AssertionError, NameError)), foreign_errors(lambda e: ModelError("foreign")):
        of_this_package(mistake)()
    with pytest.raises(ModelError, match="foreign"), foreign_errors(lambda e: ModelError("foreign")):
        mistake()  # of another package


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is held")
@pytest.mark.parametrize("raised", [ValueError, MemoryError, None])
def test_what_a_library_says_beside_an_error_is_a_note_of_it_and_else_is_shown(
    raised: type[Exception] | None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library says a line and a warning; what Python code prints is shown in any case, and at once."""
    seen: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: seen.append(message))
    own = os.fdopen(os.dup(2), "w", buffering=1)
    for name in ("stderr", "__stderr__"):
        monkeypatch.setattr(sys, name, own)
    error = raised("bad") if raised else None
    guard = foreign_errors(lambda error: ModelError("x: bad"), is_quiet=True)
    with suppress(ModelError, MemoryError), guard:
        os.write(2, b"panicked\n")
        with suppress(ModelError), foreign_errors(lambda error: ModelError("y"), is_quiet=True):
            os.write(2, b"inner\n")
            raise KeyError
        warnings.showwarning("odd", UserWarning, "x.py", 1)
        print("own", file=sys.stderr)
        if error is not None:
            raise error
    is_shown = raised is not ValueError
    assert capfd.readouterr().err == "own\n" + is_shown * "panicked\n"
    assert seen == is_shown * ["odd"]
    assert getattr(error, "__notes__", []) == [] if is_shown else ["panicked\n\nodd"]
    assert sys.stderr is own
    own.close()


def test_a_recipe_shows_twenty_faults_and_holds_all() -> None:
    error = RecipeError("r.yaml", [RecipeFault(f"a[{i}]", "\x1b[2J" + "long " * 999, i) for i in range(30)])
    lines = str(error).splitlines()
    assert lines[0] == "r.yaml: 30 faults"
    assert len(lines) == 22 and lines[-1].strip() == "and 10 more"
    assert max(map(len, lines)) < 1100 and all(line.isprintable() for line in lines)
    assert len(error.faults) == 30
