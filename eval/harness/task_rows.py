"""The rows of lm-eval's tasks: whether they are there, and the cache key of what they are."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import metadata
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from stlm_kd.artifacts.stage_store import Json
from stlm_kd.data.sources.sources import Source, fingerprint, hash_of
from stlm_kd.data.synthetic import BENCHMARK
from stlm_kd.eval.pins import Named, SuiteData, at_revision, benchmark, data_of, require_named
from stlm_kd.eval.suite import Options

if TYPE_CHECKING:
    from stlm_kd.eval.harness.task_data import Origin


def requirements(options: Options) -> Iterator[Callable[[], object]]:
    """The search for the rows of each task; generated ones are always there."""
    if {*options["tasks"]} == {BENCHMARK}:
        return
    from stlm_kd.eval.harness import task_data

    for task in task_data.expand(options["tasks"]):
        yield partial(
            task_data.find_origin, task, options["source"], options["num_fewshot"], options.get("hub")
        )


def check(options: Options) -> dict[str, Origin]:
    """Check that tasks and their rows exist, before loading a model; returns each task's source.

    Raises:
        UsageError: A task that lm-eval does not know.
        MissingResourceError: The rows of a task are missing.
    """
    with quiet():
        from stlm_kd.eval.harness import task_data

        _require_named(options)
        built = task_data.build(
            options["tasks"],
            source=options.get("source", "auto"),
            num_fewshot=options.get("num_fewshot"),
            hub=options.get("hub"),
        )
    return {one.name: one.origin for one in built}


def data(options: Options) -> dict[str, SuiteData]:
    """What each task reads, without reading it; errors as ``check``."""
    with quiet():
        from stlm_kd.eval.harness import task_data

        _require_named(options)
        library = f"lm-eval {metadata.version('lm-eval')}"
        found = {}
        for name in task_data.expand(options["tasks"]):
            origin = task_data.find_origin(
                name, options["source"], options["num_fewshot"], options.get("hub")
            )
            version, paths = (None, set()) if origin == "generated" else task_data.stated(name)
            if origin == "generated":
                of = SuiteData(local=hash_of(_generated(name)))
            elif origin == "local":
                of = data_of(min(paths), task_data.local_files(name))
            else:
                read = [at_revision(path, options.get("hub")) for path in sorted(paths)]
                of = SuiteData({path: benchmark(path) for path in read if task_data.is_on_hub(path)})
            found[name] = replace(of, version=version, library=library)
    return found


def _require_named(options: Options) -> None:
    """Refuse names in ``hub`` of data sets that no task reads."""
    from stlm_kd.eval.harness import task_data

    if options.get("hub"):
        own = (name for name in task_data.expand(options["tasks"]) if name != BENCHMARK)
        read = {path for name in own for path in task_data.stated(name)[1]}
        require_named(read, options["hub"], suite="lm-eval")


def identity(options: Options) -> Json:
    """lm-eval's version, and for each task the source and the version of its rows.

    Raises:
        UsageError, MissingResourceError: See ``check``.
    """
    return {
        "lm-eval": metadata.version("lm-eval"),
        "tasks": {
            name: [origin, _rows_identity(name, origin, options)] for name, origin in check(options).items()
        },
    }


def _rows_identity(name: str, origin: str, options: Options) -> Json:
    from stlm_kd.eval.harness import task_data

    if origin == "builtin":
        (built,) = task_data.build(
            [name],
            source=options["source"],
            num_fewshot=options["num_fewshot"],
            hub=options.get("hub"),
        )
        return {path: _state(path, options.get("hub")) for path in sorted(task_data.data_sets(built))}
    if origin == "generated":
        return _generated(name)
    whole = task_data.whole_of(name) or name
    return [_ours(whole), task_data.local_version(name)]


def _generated(name: str) -> list[Json]:
    """The template and the version of the generator."""
    return [_ours(name, f"{name}_group"), fingerprint(Source(sample="train"))]


_KEYS = {
    "458df0516b154ed6": "593e3569fd47a1473d15460f99c2fd26f5698a0dfd5feb73191606d98113b805",  # blimp
    "46df4539af47e993": "0cef392046c31514738d0993ed9df4bd10306ec88c4c42c6d02e62fc08da9fda",  # hellaswag
    "d870c6ebd4cb9add": "467e50923ab655e6cf155e3401bcf7877144ee323a81666fa52e39154260b1fb",  # arc_easy
    "192bdb543e913804": "a628bb35fb475dad0b7542fc4caf3602e26a3fba280ee9ef81435d1b49f6ff7f",  # winogrande
    "c7e1a8743c00799f": "ffa14a434bd79c6d578aba0f6ee26a893f16801018175fbac957805aa0ace531",  # mmlu
    "4a551c00de85eacf": "9281425fb231da3e381b6cce2eb87af0d88d78ccaaa477cf70d8702aaf25736e",  # the sample
}
"""Keys by the start of the hash, for tasks whose first key also hashed the source code of ``local_rows``.

Scores stored under these keys stay valid until a template or ``LAYOUT`` changes.
"""

_FUNCTION = re.compile(rb"(?<=!function )[\w.]+(?=\.\w+$)", re.MULTILINE)


def _ours(*templates: str) -> str:
    """A hash of a task's templates and of the version of its row format.

    The module of the row functions counts as its first name, ``stlm_kd.eval.rows``: moving it does not change
    the rows, so stored scores stay valid.
    """
    from stlm_kd.eval.harness.local_rows import LAYOUT

    texts = [files("stlm_kd.eval.tasks").joinpath(f"{name}.yaml").read_bytes() for name in templates]
    named = [_FUNCTION.sub(b"stlm_kd.eval.rows", text) for text in texts]
    found = hashlib.sha256(b"\0".join([*named, str(LAYOUT).encode()])).hexdigest()
    return _KEYS.get(found[:16], found)


def _state(path: str, hub: Named) -> str | None:
    """The commit of a data set, or None if it is none of the Hub."""
    from stlm_kd.eval.harness import task_data

    return benchmark(at_revision(path, hub)).commit if task_data.is_on_hub(path) else None


class _WithoutBars(io.TextIOBase):
    """A stream that drops progress bars."""

    def __init__(self, stream: Any) -> None:  # any replacement of sys.stderr
        self._stream = stream
        self._is_shown = False

    def write(self, text: str) -> int:
        if text.strip():  # the end of a line may follow on its own
            self._is_shown = "\r" not in text and "%|" not in text
        if self._is_shown:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences lm-eval: only errors in its log, and no progress bar for each of a hundred tasks."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(_WithoutBars(sys.stderr)):
            yield
    finally:
        logger.setLevel(level)
