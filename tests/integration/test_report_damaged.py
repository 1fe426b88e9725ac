"""A run's files with one field damaged: a report is made, or one error of the project's own says why."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from stlm_kd.artifacts.results import Row, SuiteResult
from stlm_kd.errors import CheckpointError, StlmKdError
from stlm_kd.pipeline.stages.teacher_set import TEACHERS, teachers_of_run
from stlm_kd.reporting.run_page.gather import gather
from stlm_kd.reporting.run_page.page import page
from tests.integration.test_report import ADAPTED, lines, metrics, run_of
from tests.support.compared import LABELS, classified

Path_ = tuple[str | int, ...]
HUGE = 10**400
DELETED = object()
OTHERS = (DELETED, [], math.nan, HUGE)
"""In the place of a field: nothing, a wrong type, no number, and one that no float holds."""


def few(accuracy: float, seed: int) -> SuiteResult:
    """With a mean over examples, and a metric that is none."""
    found = classified(accuracy, seed, labels=LABELS[:4])
    return replace(found, scores=found.scores[:2])


def small_run(folder: Path) -> Path:
    """A run of one student and one teacher, with a field of every kind that a run's files have."""
    rows = [
        Row("s", "student", 12, 9, 7, (1,), ((few(0.8, 1),),), "student", steps=6, flops=10**9),
        Row("t", "teacher", 12, None, None, (), ((few(0.5, 2),),)),
    ]
    run = run_of(folder, rows)
    (run / "recipe.yaml").write_text("task: clm\n")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "versions": {"torch": "2"}}))
    results = json.loads((run / "results.json").read_text())
    for row in results["rows"]:
        del row["estimates"]  # which nothing reads
    (run / "results.json").write_text(json.dumps(results))
    for place in run.glob("students/*/seed-*"):
        if (place.parent.name, place.name) != ("student", "seed-1"):
            for file in place.iterdir():
                file.unlink()
            place.rmdir()
    first, *_, validation = metrics()
    (run / "students" / "student" / "seed-1" / "metrics.jsonl").write_text(lines([first, validation]))
    for file in (run / "making").glob("**/metrics.jsonl"):
        file.write_text(lines([validation]))
    return run


def fields(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Where values stand: in a mapping all, in a list the first."""
    if at:
        yield at
    inner = (
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    )
    for key, found in inner:
        yield from fields(found, (*at, key))


def with_other(value: Any, at: Path_, other: object) -> Any:
    """The value with something else in one place."""
    changed = deepcopy(value)
    holder = changed
    for key in at[:-1]:
        holder = holder[key]
    if other is DELETED:
        del holder[at[-1]]
    else:
        holder[at[-1]] = other
    return changed


def told(run: Path) -> str | None:
    """What the error says of a run's report; None where the report is made, which no field can spoil."""
    try:
        made = page(gather([str(run)]))
    except StlmKdError as error:
        return str(error)
    assert made.endswith("</html>\n")
    return None


def faults(
    run: Path, content: Any, write: Callable[[Any], object], others: Sequence[object] = OTHERS
) -> dict[tuple[Path_, int], str | None]:
    """The message for each wrong value of each field of a file."""
    found = {}
    for at in fields(content):
        for number, other in enumerate(others):
            write(with_other(content, at, other))
            found[at, number] = told(run)
    write(content)
    assert told(run) is None
    return found


@pytest.mark.parametrize(
    "name",
    [
        "results.json",
        "run.json",
        "students/student/seed-1/report.json",
        "making/gpt2/adaptation/report.json",
    ],
)
def test_each_damaged_field_is_one_message_that_names_file_and_field(tmp_path: Path, name: str) -> None:
    run = small_run(tmp_path / "run")
    file = run / name
    content = json.loads(file.read_text())
    found = faults(run, content, lambda value: file.write_text(json.dumps(value)))
    messages = {at: message for (at, _), message in found.items() if message is not None}
    assert len(messages) > len(content) / 2
    for at, message in messages.items():
        assert str(file) in message and "\n" not in message
        assert re.search(rf"\b{re.escape(str(at[0]))}\b", message), (at, message)


def test_each_damaged_field_of_an_adaptations_results_is_one_message(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    file = run / "results.json"
    content = {"adaptations": {"a": asdict(ADAPTED)}, "suites": {}}
    found = faults(run, content, lambda value: file.write_text(json.dumps(value)))
    assert told(run) is None
    assert {at for (at, number), message in found.items() if message and OTHERS[number] == []} >= {
        ("adaptations", "a", name)
        for name in asdict(ADAPTED)
        if name not in ("tokens_by_origin", "objective")
    }


def test_numbers_that_no_curve_can_show_are_left_out_and_counted(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    file = run / "students" / "student" / "seed-1" / "metrics.jsonl"
    content = [json.loads(line) for line in file.read_text().splitlines()]
    found = faults(run, content, lambda value: file.write_text(lines(value)))
    assert set(found.values()) == {None}
    content[0]["losses"]["labels"] = math.inf
    content[0]["grad_norm"] = HUGE
    content[1]["losses"]["labels"] = 1e200
    file.write_text(lines(content))
    assert "s, seed 1: 3 of its numbers are not drawn" in page(gather([str(run)]))


def test_a_list_of_teachers_that_is_damaged_is_one_message(tmp_path: Path) -> None:
    for content in ('{"a": 3}', "[]", "{", '{"a": "\\ud800"}'):
        (tmp_path / TEACHERS).write_text(content)
        with pytest.raises(CheckpointError, match=TEACHERS):
            teachers_of_run(tmp_path)
    (tmp_path / TEACHERS).write_text(json.dumps({"a": "n" * 5000, "b": "\0"}))
    assert teachers_of_run(tmp_path) == {"a": "n" * 5000, "b": "\0"}
