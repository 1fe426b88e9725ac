"""The program that made a lock: how to get it, and whether a wheel is it."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from packaging.version import InvalidVersion, Version

from stlm_kd.artifacts.provenance import UNKNOWN, Program, program_in
from stlm_kd.artifacts.record import PACKAGES
from stlm_kd.errors import MissingResourceError, RecipeError, RecipeFault, UsageError
from stlm_kd.recipe.lock import LOCK_FILE, Lock

_COMMIT = re.compile(r"git:([0-9a-f]{40})")


@dataclass(frozen=True, slots=True)
class LockedProgram:
    """The program that made a lock.

    Attributes:
        program: What the lock states of it.
        commands: Shell commands that get its wheel; none if no release can have it.
        same: What a wheel was found to have in common with it: all bytes, or the program's files; None if no
            wheel was given.
        environment: A new environment in which the wheel runs; None if none was asked for.
    """

    program: Program
    commands: tuple[str, ...]
    same: Literal["wheel", "source"] | None = None
    environment: Path | None = None


def program_of(
    lock: Lock,
    *,
    wheel: str | PathLike[str] | None = None,
    environment: str | PathLike[str] | None = None,
) -> LockedProgram:
    """The program that made a lock, compared with a wheel, and installed from it on request.

    Args:
        lock: The lock.
        wheel: A wheel of stlm-kd to compare; None: only say how to get one.
        environment: A new folder for a virtual environment with the wheel and the versions of packages that
            the lock states, in which ``stlm-kd --version`` is run. Only if the wheel is the lock's. This runs
            the wheel's code, and downloads what it depends on.

    Raises:
        MissingResourceError: The wheel cannot be read, or not be installed.
        RecipeError: The wheel is another program than the lock's, or the lock does not say enough.
        UsageError: The environment exists, or no wheel is given for it.
    """
    stated = _stated(lock)
    commands = _commands(stated)
    if wheel is None:
        if environment is not None:
            raise UsageError(f"{environment}: a wheel is installed there, and none is given")
        return LockedProgram(stated, commands)
    same = _compared(stated, Path(wheel))
    if environment is None:
        return LockedProgram(stated, commands, same)
    return LockedProgram(stated, commands, same, _installed(Path(wheel), Path(environment), lock))


def _stated(lock: Lock) -> Program:
    """What a lock states, which may be a stranger's."""
    made = lock.made
    version = _version(made.by.removeprefix("stlm-kd ")) or UNKNOWN
    return Program(version, made.code, made.wheel, made.source)


def _version(text: str) -> str | None:
    try:
        return Version(text).public
    except InvalidVersion:
        return None


def _commands(stated: Program) -> tuple[str, ...]:
    """By building its commit, or from an index; a checkout with changes can be had nowhere."""
    if stated.code is not None:
        clean = _COMMIT.fullmatch(stated.code)
        return (f"git checkout {clean[1]} && make release ALLOW_DIRTY=1",) if clean is not None else ()
    return (f"pip download --no-deps stlm-kd=={stated.version}",) if stated.version != UNKNOWN else ()


def _compared(stated: Program, wheel: Path) -> Literal["wheel", "source"]:
    try:
        found = program_in(wheel)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise MissingResourceError(f"{wheel}: cannot be read as a wheel ({error})") from error
    if stated.wheel is not None and stated.wheel == found.wheel:
        return "wheel"
    if stated.source is not None and stated.source == found.source:
        return "source"
    pairs = (("wheel", stated.wheel, found.wheel), ("source", stated.source, found.source))
    faults = [
        RecipeFault(f"made.{name}", f"{other} found in {wheel}; locked: {one}")
        for name, one, other in pairs
        if one is not None
    ]
    unknown = RecipeFault("made", "states neither a wheel nor its source; no wheel can be compared with it")
    raise RecipeError(LOCK_FILE, faults or [unknown])


def _installed(wheel: Path, environment: Path, lock: Lock) -> Path:
    """The environment with the wheel, after its program said its version."""
    if environment.exists():
        raise UsageError(f"{environment}: exists; choose a new folder for the environment")
    versions = {name: _version(lock.packages.get(name, "")) for name in PACKAGES if name != "stlm-kd"}
    known = "".join(f"{name}=={version}\n" for name, version in versions.items() if version is not None)
    _run([sys.executable, "-m", "venv", str(environment)])
    constraints = environment / "constraints.txt"
    constraints.write_text(known)
    python = [str(environment / "bin" / "python"), "-m"]
    _run([*python, "pip", "install", "--quiet", "--constraint", str(constraints), str(wheel.resolve())])
    _run([*python, "stlm_kd", "--version"])
    return environment


def _run(words: list[str]) -> None:
    ended = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ["no message"]
        raise MissingResourceError(f"{' '.join(words[:4])} failed: {lines[-1]}")
