"""Writes the attribution pages of a run's teachers and students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stlm_kd.artifacts.atomic import write_text
from stlm_kd.artifacts.results import Row, SuiteResult
from stlm_kd.artifacts.run_dir import file_name
from stlm_kd.eval.agreement.suite import SUITE, explained_in, teachers_in
from stlm_kd.reporting.attribution_page import attribution_page

PAGE = "attributions"


def write_explanations(rows: Sequence[Row], folder: Path) -> None:
    """Write a page for each teacher and suite with explanations, of the first seeds of all students."""
    students = {_called(row): row.scores[0] for row in rows if row.variant is not None}
    explained = [
        (result.label, teacher)
        for result in next(iter(students.values()), ())
        if result.suite == SUITE
        for teacher in teachers_in(result)
    ]
    for label, teacher in explained:
        words = [PAGE] if len(explained) == 1 else [PAGE, teacher, label]
        page = _page(students, label, teacher)
        write_text(folder / f"{file_name(' '.join(filter(None, words)))}.html", page)


def _called(row: Row) -> str:
    return row.name if len(row.seeds) == 1 else f"{row.name}, seed {row.seeds[0]}"


def _page(students: Mapping[str, Sequence[SuiteResult]], label: str, teacher: str) -> str:
    found = [
        explained_in(result, teacher, student=name)
        for name, results in students.items()
        for result in results
        if (result.suite, result.label) == (SUITE, label)
    ]
    (first, texts), *_ = found
    answers = [first.teacher, *(one.student for one, _ in found)]
    return attribution_page(answers, [one.compared for one, _ in found], texts)
