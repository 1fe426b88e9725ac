"""The output of the command ``interchange``: a table of all students."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.comparison.results_table import alone
from stlm_kd.eval.interchange.config import ALL, PairConfig
from stlm_kd.interventions.metrics import RATIOS
from stlm_kd.reporting.format import UNKNOWN, cell, noted_table, numbers, words


@dataclass(frozen=True, slots=True)
class InterchangeScores:
    """Scores of students, by name as given, after the same interventions in them and in their teacher."""

    teacher: str
    alignment: str
    pairs: PairConfig
    students: Mapping[str, SuiteResult]

    def to_json(self) -> dict[str, Any]:
        """All results, ready for ``json.dumps``."""
        return {
            "teacher": self.teacher,
            "alignment": self.alignment,
            **asdict(self.pairs),
            "students": {name: result.to_json() for name, result in self.students.items()},
        }


def interchange_table(found: InterchangeScores) -> Table:
    """A table with a row per student and layer, and notes below."""
    names_of_note: dict[str, list[str]] = {}
    for name, result in found.students.items():
        for note in result.notes:
            names_of_note.setdefault(note, []).append(name)
    notes = [f"{', '.join(names)}: {note}" for note, names in names_of_note.items()]
    rows = next(iter(found.students.values())).score(ALL, "agreement").examples
    facts = f"teacher {found.teacher}; {rows} rows; ±: standard error over rows"
    lines = [f"{facts}; effect: KL(after || before) in nats", *notes]
    table = noted_table(lines, *words("student", "exchanged"), *numbers(*TITLES.values()))
    for name, result in found.students.items():
        scores = {(score.task, score.metric): score for score in result.scores}
        for task in dict.fromkeys(score.task for score in result.scores):
            cells = [str(alone(scores.get((task, metric))) or UNKNOWN) for metric in TITLES]
            table.add_row(cell(name), _exchanged(task, result), *cells)
    return table


TITLES = {
    "interchange_accuracy": "interchange accuracy ↑",
    "agreement": "agreement ↑",
    "base_agreement": "without intervention ↑",
    "teacher_changes": "teacher's top-1 changes",
    "teacher_effect": "teacher's effect",
    "student_effect": "student's effect",
}
assert TITLES.keys() == RATIOS.keys()


def _exchanged(task: str, result: SuiteResult) -> str:
    alignment = result.report["alignment"]
    assert isinstance(alignment, Mapping)
    layers = alignment.get(task.removeprefix("layer "))
    return f"{task} ↔ {', '.join(map(str, layers))}" if isinstance(layers, list) else task
