"""The output of the command ``interchange``: a table of all students."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from stlm_kd.artifacts.results import Score, SuiteResult
from stlm_kd.eval.interchange.config import ALL, PairConfig
from stlm_kd.interventions.metrics import RATIOS
from stlm_kd.reporting.format import UNKNOWN, noted_table


@dataclass(frozen=True, slots=True)
class InterchangeScores:
    """Scores of students after the same interventions in them and in their teacher.

    Attributes:
        teacher: The teacher's name as given.
        alignment: Which layers are exchanged.
        pairs: The interventions.
        students: The scores by student name as given.
    """

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
    table = noted_table([f"{facts}; effect: KL(after || before) in nats", *notes])
    table.add_column("student")
    table.add_column("exchanged")
    for title in TITLES.values():
        table.add_column(title, justify="right")
    for name, result in found.students.items():
        scores = {(score.task, score.metric): score for score in result.scores}
        for task in dict.fromkeys(score.task for score in result.scores):
            cells = [_format_score(scores.get((task, metric))) for metric in TITLES]
            table.add_row(Text(name), _exchanged(task, result), *cells)
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


def _format_score(score: Score | None) -> str:
    if score is None:
        return UNKNOWN
    return f"{score.value:.4f}" + ("" if score.stderr is None else f" ± {score.stderr:.4f}")
