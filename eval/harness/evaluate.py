"""Runs lm-eval on a model and a tokenizer in memory, with our log-likelihoods and tie handling."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stlm_kd.artifacts.results import UNIFORM, ExampleScore, Json, Score, SuiteResult
from stlm_kd.eval.harness.choices import BY_CHANCE, Choice, degenerate_choices, ties_share_the_point
from stlm_kd.eval.runner import require_task
from stlm_kd.models.forward import evaluating

if TYPE_CHECKING:
    from stlm_kd.eval.harness.task_data import Origin

# Parts of lm-eval's report that describe the machine and the time of the run, not the scores.
_LEFT_OUT = ("samples", "pretty_env_info", "git_hash", "upper_git_hash", "date")

# Bootstrap samples for metrics without a closed-form standard error.
_BOOTSTRAPS = 1000


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tasks: Sequence[str],
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 16,
    precision: str = "fp32",
    source: str = "auto",
) -> SuiteResult:
    """Scores of lm-eval's tasks with standard errors; the options are those of the suite ``lm-eval``.

    Does not change the model, the tokenizer or any random state.

    Raises:
        ModelError: A masked language model, a tokenizer without start or end token, or log-probabilities that
            are not finite.
        UsageError: A task that lm-eval does not know.
        MissingResourceError: The rows of a task are missing.
    """
    require_task(model, "clm", suite="lm-eval")
    with _quiet():
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        from stlm_kd.eval.harness import task_data
        from stlm_kd.eval.harness.adapter import DocumentLM

        built = task_data.build(tasks, source=source, num_fewshot=num_fewshot)
        with evaluating(model), _random_states_kept(), _without_environment_info(), ExitStack() as reduced:
            wrapped = DocumentLM(model, tokenizer, batch_size=batch_size, precision=precision)
            leaves = {task.task_name: task for one in built for task in task_data.leaves(one.item)}
            chosen = reduced.enter_context(ties_share_the_point(leaves))
            output: Mapping[str, Any] = simple_evaluate(
                model=wrapped,
                tasks=[one.item for one in built],
                task_manager=TaskManager(include_defaults=False),
                num_fewshot=num_fewshot,
                batch_size=batch_size,
                limit=limit,
                bootstrap_iters=_BOOTSTRAPS,
            )
    origins = {one.name: one.origin for one in built}
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = output["samples"]
    scores = [score for name in origins for score in _scores(output, samples, chosen, name, part_of=None)]
    if wrapped.predicts_uniformly:
        scores = [replace(score, degenerate=UNIFORM) for score in scores]
    return SuiteResult(
        "lm-eval",
        tuple(scores),
        tuple(_examples(samples, output["higher_is_better"])),
        tuple(_notes(origins, limit)),
        _report(output, samples, origins),
    )


def check(*, tasks: Sequence[str], source: str = "auto", num_fewshot: int | None = None) -> dict[str, Origin]:
    """Check that tasks and their rows exist, before loading a model; returns each task's source.

    Raises:
        UsageError: A task that lm-eval does not know.
        MissingResourceError: The rows of a task are missing.
    """
    with _quiet():
        from stlm_kd.eval.harness import task_data

        built = task_data.build(tasks, source=source, num_fewshot=num_fewshot)
    return {one.name: one.origin for one in built}


def _scores(
    output: Mapping[str, Any],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    chosen: Mapping[str, Sequence[Choice]],
    task: str,
    *,
    part_of: str | None,
) -> Iterator[Score]:
    """The scores of a task, followed by those of its parts."""
    parts: Mapping[str, Sequence[str]] = output["group_subtasks"]
    leaves = _leaves(task, parts)
    found = [each for leaf in leaves for each in chosen.get(leaf, ())]
    sizes = Counter(each.choices for each in found)
    examples = sum(len(samples[leaf]) for leaf in leaves)
    chance = math.fsum(n / size for size, n in sizes.items()) / len(found) if found else None
    metrics: Mapping[str, Any] = output["results"][task]
    for key, value in metrics.items():
        metric, _, name_of_filter = key.partition(",")
        if name_of_filter and not metric.endswith("_stderr"):
            yield Score(
                task=task,
                metric=metric,
                value=float(value),
                stderr=_finite(metrics.get(f"{metric}_stderr,{name_of_filter}")),
                examples=examples,
                higher_is_better=output["higher_is_better"].get(task, {}).get(metric) is not False,
                choices=sizes.most_common(1)[0][0] if found else None,
                chance=chance if metric in BY_CHANCE else None,
                part_of=part_of,
                degenerate=degenerate_choices(found),
            )
    for part in parts.get(task, ()):
        if part != task:
            yield from _scores(output, samples, chosen, part, part_of=task)


def _leaves(task: str, parts: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks of a group, or the task itself."""
    members = [part for part in parts.get(task, ()) if part != task]
    return [leaf for part in members for leaf in _leaves(part, parts)] if members else [task]


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _examples(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], metrics: Mapping[str, Mapping[str, object]]
) -> Iterator[ExampleScore]:
    for task, rows in samples.items():
        for row in rows:
            for metric in metrics[task]:
                if isinstance(row.get(metric), (int, float)):
                    yield ExampleScore(task, str(row["doc_id"]), metric, float(row[metric]))


def _notes(origins: Mapping[str, str], limit: int | None) -> Iterator[str]:
    local = [name for name, origin in origins.items() if origin == "local"]
    if local:
        yield f"{', '.join(local)}: rows from local files, with the prompts and metrics of lm-eval"
    if "generated" in origins.values():
        yield "sample_minimal_pairs is synthetic: generated by the grammar of the sample text"
    if limit is not None:
        yield f"only the first {limit} examples of each task: a trial, not a score to report"


def _report(
    output: Mapping[str, Any], samples: Mapping[str, Sequence[Mapping[str, Any]]], origins: Mapping[str, str]
) -> dict[str, Json]:
    """lm-eval's report without rows, with two added fields.

    ``sources``: the origin of each task's rows; ``requests``: for each task, a hash of all request texts.
    Examples are identified by their index, so the hash tells results on different rows apart.
    """
    kept = {key: value for key, value in output.items() if key not in _LEFT_OUT}
    kept["configs"] = {task: _without_places(config) for task, config in output["configs"].items()}
    report: dict[str, Json] = json.loads(json.dumps(kept, default=_name))
    report["sources"] = dict(origins)
    parts: Mapping[str, Sequence[str]] = output["group_subtasks"]
    report["requests"] = {
        task: _hash_of_requests([samples[leaf] for leaf in _leaves(task, parts)])
        for task in output["results"]
    }
    return report


def _hash_of_requests(tasks: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """SHA-256 (hex)."""
    rows = [
        sorted((row["doc_id"], json.dumps(row["arguments"], default=_name)) for row in of) for of in tasks
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """A task's configuration without its temporary file and the code that read the rows."""
    metadata = {key: value for key, value in config.get("metadata", {}).items() if key != "config_source"}
    return {key: value for key, value in config.items() if key != "custom_dataset"} | {"metadata": metadata}


def _name(value: object) -> str:
    """The name of a function or type; its repr contains an address that differs between runs."""
    return str(getattr(value, "__qualname__", value))


class _WithoutBars(io.TextIOBase):
    """A stream that drops progress bars."""

    def __init__(self, stream: Any) -> None:  # any replacement of sys.stderr
        self._stream = stream

    def write(self, text: str) -> int:
        if "\r" not in text and "%|" not in text and text.strip():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    """Restores the global random states, from which lm-eval and its libraries draw."""
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def _without_environment_info() -> contextlib.AbstractContextManager[object]:
    """Skips lm-eval's slow queries of git, shell and driver, whose output is discarded here."""
    return mock.patch.multiple(
        "lm_eval.evaluator",
        get_git_commit_hash=lambda: None,
        add_env_info=lambda storage: None,
        create=True,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences lm-eval: only errors in its log, and no progress bar for each of a hundred tasks."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(_WithoutBars(sys.stderr)):
            yield
    finally:
        logger.setLevel(level)
