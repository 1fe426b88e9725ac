"""Modules of users that register losses, data sources, suites and the like.

An installed package names its module in the entry-point group ``stlm_kd``; a command takes any module with
``--import``; Python code imports its own. A recipe cannot name one: loading it runs no code of its author.
Stages are keyed by names and options, not by an extension's code: give a changed function another name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from stlm_kd.errors import ExtensionError, MissingResourceError

GROUP = "stlm_kd"
VARIABLE = "STLM_KD_IMPORT"
"""The environment variable with the modules of ``--import``, for worker processes; separated by commas."""


def import_modules(names: Sequence[str]) -> None:
    """Import modules, also from the current folder, here and in the processes that this one starts.

    MissingResourceError if one cannot be imported; ExtensionError if it registers a taken name or an unusable
    function.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    os.environ[VARIABLE] = ",".join(names)
    for name in names:
        _import(name, f"--import {name}")


@cache
def load_extensions() -> None:
    """Import modules of installed packages and the parent's ``--import``; errors as ``import_modules``."""
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist is not None else "an unknown package"
        _import(point.module, f"the extension {point.name} of {package}")
    for name in filter(None, os.environ.get(VARIABLE, "").split(",")):
        _import(name, f"{VARIABLE}={name}")


def _import(name: str, place: str) -> None:
    try:
        import_module(name)
    except ExtensionError as error:
        raise ExtensionError(f"{place}: {error}") from error
    except Exception as error:
        raise MissingResourceError(
            f"{place}: its module cannot be imported ({type(error).__name__}: {error}); fix or remove it"
        ) from error
