"""How a run's teachers came about, kept in its own folder: what their trainings and adaptations reported."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from stlm_kd.disk import written_whole
from stlm_kd.run.teaching import ReadyTeacher

TRAINING, ADAPTATION = "training", "adaptation"
KEPT = ("report.json", "metrics.jsonl")


def making_folder(run: Path) -> Path:
    """Where it lies: a folder for each teacher, and in it one for its training and one for its adaptation."""
    return run / "making"


def keep_making(teachers: Iterable[ReadyTeacher], run: Path) -> None:
    """Copy the reports and metrics of the stages, which may be deleted or lie elsewhere one day."""
    for teacher in teachers:
        for kind, stage in ((TRAINING, teacher.training), (ADAPTATION, teacher.adaptation)):
            if stage is None:
                continue
            with written_whole(making_folder(run) / teacher.name / kind) as unfinished:
                unfinished.mkdir(parents=True)
                for name in KEPT:
                    if (stage / name).is_file():
                        shutil.copy2(stage / name, unfinished / name)
