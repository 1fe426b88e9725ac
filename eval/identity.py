"""Cache keys of suite scores, beyond the model and the suite's options."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from importlib.resources import files
from typing import Any

from stlm_kd.errors import DataError, MissingResourceError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Identity = Callable[[Mapping[str, Any]], Json]
"""``identity(options)``: equal if the suite would give a model equal scores."""


def of_lm_eval(options: Mapping[str, Any]) -> Json:
    """lm-eval's version, and for each task the source and the version of its rows.

    Raises:
        UsageError, MissingResourceError: See ``harness.check``.
    """
    from stlm_kd.eval.harness import evaluate

    given = {name: options[name] for name in ("tasks", "source", "num_fewshot")}
    origins = evaluate.check(**given)
    return {
        "lm-eval": metadata.version("lm-eval"),
        "tasks": {name: [origin, _rows_identity(name, origin, given)] for name, origin in origins.items()},
    }


def of_wikitext(options: Mapping[str, Any]) -> Json:
    """The version of WikiText's test text, independent of the options.

    Raises:
        MissingResourceError: The text is missing.
    """
    from stlm_kd.eval.language_modeling import wikitext

    del options
    return wikitext.identity()


def _rows_identity(name: str, origin: str, given: Mapping[str, Any]) -> Json:
    from stlm_kd.data.sources.sources import Source, fingerprint
    from stlm_kd.eval.harness import task_data

    if origin == "builtin":
        (built,) = task_data.build([name], source=given["source"], num_fewshot=given["num_fewshot"])
        return {path: _state(path, config) for path, config in sorted(task_data.data_sets(built).items())}
    if origin == "generated":
        return [
            _ours(name, f"{name}_group"),
            fingerprint(Source(sample="train")),
        ]  # version of the generator
    whole = task_data.whole_of(name) or name
    return [_ours(whole), task_data.local_version(name, os.environ["STLM_KD_DATA"])]


def _ours(*templates: str) -> str:
    """A hash of a task's templates and of the version of its row format."""
    from stlm_kd.eval.harness.local_rows import LAYOUT

    texts = [files("stlm_kd.eval.tasks").joinpath(f"{name}.yaml").read_bytes() for name in templates]
    return hashlib.sha256(b"\0".join([*texts, str(LAYOUT).encode()])).hexdigest()


@cache
def _state(path: str, configuration: str | None) -> str | None:
    """The commit of a data set, or None if the library does not know it."""
    from stlm_kd.data.sources import hub

    try:
        return hub.version(path, name=configuration, revision=None)
    except (MissingResourceError, DataError):
        return None
