"""Runs lm-eval on a model and a tokenizer in memory, with our log-likelihoods and tie handling."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Gt

from stlm_kd.artifacts.results import UNIFORM, ExampleScore, Json, Score, SuiteResult, text_hash
from stlm_kd.data.sources.sources import hash_of
from stlm_kd.eval.harness import task_rows
from stlm_kd.eval.harness.choices import BY_CHANCE, Choice, degenerate_choices, ties_share_the_point
from stlm_kd.eval.harness.task_rows import quiet
from stlm_kd.eval.runner import Precision, random_states_kept, require_task
from stlm_kd.eval.suite import register_suite
from stlm_kd.models.forward import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SUITE = "lm-eval"

Output: TypeAlias = Mapping[str, Any]
"""What lm-eval returns, which is untyped."""

# Parts of lm-eval's report that describe the machine and the time of the run, not the scores.
_LEFT_OUT = ("samples", "pretty_env_info", "git_hash", "upper_git_hash", "date")

# Bootstrap samples for metrics without a closed-form standard error.
_BOOTSTRAPS = 1000


@register_suite(
    SUITE,
    tasks=["clm"],
    reads_held_out=lambda options: False,
    identity=task_rows.identity,
    data=task_rows.data,
    requirements=task_rows.requirements,
    own_check=task_rows.check,
)
def lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    /,
    *,
    tasks: tuple[str, ...] = ("stlm",),
    limit: Annotated[int, Gt(0)] | None = None,
    num_fewshot: Annotated[int, Ge(0)] | None = None,
    batch_size: Annotated[int, Gt(0)] = 16,
    precision: Precision = "fp32",
    source: Literal["auto", "local", "builtin"] = "auto",
    hub: str | tuple[str, ...] | None = None,
) -> SuiteResult:
    """Scores of lm-evaluation-harness tasks with standard errors.

    Does not change the model, the tokenizer or any random state.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        documents: Unused: the tasks have their own text.
        tasks: Names of tasks or groups; ``stlm`` is BLiMP, HellaSwag, ARC-Easy, WinoGrande and MMLU,
            ``sample_minimal_pairs`` needs no download.
        limit: Maximum examples of each task, for a trial.
        num_fewshot: Examples in the prompt; default: each task's own (0 for those of ``stlm``).
        batch_size: Requests per forward pass.
        precision: ``bf16`` runs the model under autocast.
        source: ``builtin`` reads the Hub or its cache, ``local`` the files in ``STLM_KD_DATA``, and ``auto``
            the first of these that is available.
        hub: Data sets of the tasks at other revisions, such as ``nyu-mll/blimp@main``; these are read from
            the Hub alone.

    Raises:
        ModelError: A masked language model, a tokenizer without start or end token, or log-probabilities that
            are not finite.
        UsageError: A task that lm-eval does not know.
        MissingResourceError: The rows of a task are neither on the Hub, in its cache nor in local files.
    """
    del documents
    require_task(model, "clm", suite=SUITE)
    with quiet():
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        from stlm_kd.eval.harness import task_data
        from stlm_kd.eval.harness.adapter import DocumentLM

        built = task_data.build(tasks, source=source, num_fewshot=num_fewshot, hub=hub)
        with evaluating(model), random_states_kept(), _without_environment_info(), ExitStack() as reduced:
            wrapped = DocumentLM(model, tokenizer, batch_size=batch_size, precision=precision)
            leaves = {task.task_name: task for one in built for task in task_data.leaves(one.item)}
            chosen = reduced.enter_context(ties_share_the_point(leaves))
            output: Output = simple_evaluate(
                model=wrapped,
                tasks=[one.item for one in built],
                task_manager=TaskManager(include_defaults=False),
                num_fewshot=num_fewshot,
                batch_size=batch_size,
                limit=limit,
                bootstrap_iters=_BOOTSTRAPS,
            )
    origins = {one.name: one.origin for one in built}
    scores = [score for name in origins for score in _scores(output, chosen, name, part_of=None)]
    if wrapped.predicts_uniformly:
        scores = [replace(score, degenerate=UNIFORM) for score in scores]
    return SuiteResult(
        SUITE,
        tuple(scores),
        tuple(_examples(output)),
        tuple(_notes(origins, limit)),
        _report(output, origins),
        texts={
            task: {str(row["doc_id"]): text_hash(json.loads(_arguments(row))) for row in rows}
            for task, rows in output["samples"].items()
        },
    )


def _scores(
    output: Output, chosen: Mapping[str, Sequence[Choice]], task: str, *, part_of: str | None
) -> Iterator[Score]:
    """The scores of a task, followed by those of its parts."""
    parts: Mapping[str, Sequence[str]] = output["group_subtasks"]
    leaves = _leaves(task, parts)
    found = [each for leaf in leaves for each in chosen.get(leaf, ())]
    sizes = Counter(each.choices for each in found)
    examples = sum(len(output["samples"][leaf]) for leaf in leaves)
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
            yield from _scores(output, chosen, part, part_of=task)


def _leaves(task: str, parts: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks of a group, or the task itself."""
    members = [part for part in parts.get(task, ()) if part != task]
    return [leaf for part in members for leaf in _leaves(part, parts)] if members else [task]


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _examples(output: Output) -> Iterator[ExampleScore]:
    for task, rows in output["samples"].items():
        for row in rows:
            for metric in output["higher_is_better"][task]:
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


def _report(output: Output, origins: Mapping[str, str]) -> dict[str, Json]:
    """lm-eval's report without rows, with two added fields.

    ``sources``: the origin of each task's rows; ``requests``: for each task, a hash of all request texts.
    Examples are identified by their index, so the hash tells results on different rows apart.
    """
    kept = {key: value for key, value in output.items() if key not in _LEFT_OUT}
    kept["config"] = {**output["config"], "model": Path(str(output["config"]["model"])).name}  # no place
    kept["configs"] = {task: _without_places(config) for task, config in output["configs"].items()}
    report: dict[str, Json] = json.loads(json.dumps(kept, default=_name))
    report["sources"] = dict(origins)
    parts: Mapping[str, Sequence[str]] = output["group_subtasks"]
    report["requests"] = {
        task: _hash_of_requests([output["samples"][leaf] for leaf in _leaves(task, parts)])
        for task in output["results"]
    }
    return report


def _hash_of_requests(tasks: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    return hash_of([sorted((row["doc_id"], _arguments(row)) for row in of) for of in tasks])


def _arguments(row: Mapping[str, Any]) -> str:
    """The texts of an example's requests, as JSON."""
    return json.dumps(row["arguments"], default=_name)


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """A task's configuration without its temporary file and the code that read the rows."""
    metadata = {key: value for key, value in config.get("metadata", {}).items() if key != "config_source"}
    return {key: value for key, value in config.items() if key != "custom_dataset"} | {"metadata": metadata}


def _name(value: object) -> str:
    """The name of a function or type; its repr contains an address that differs between runs."""
    return str(getattr(value, "__qualname__", value))


def _without_environment_info() -> AbstractContextManager[object]:
    """Skips lm-eval's slow queries of git, shell and driver, whose output is discarded here."""
    from unittest import mock  # slow import; checking recipes does not need it

    return mock.patch.multiple(
        "lm_eval.evaluator", get_git_commit_hash=lambda: None, add_env_info=lambda storage: None, create=True
    )
