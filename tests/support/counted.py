"""``--import tests.support.counted``: each process of a command notes what it does for its set-up.

It appends lines ``WHAT NUMBER`` to ``$STLM_KD_TEST_COUNTS/RANK``: bytes that were hashed, texts that were
tokenised, models and new heads that were checked, parts of benchmarks that were read, rows that teachers
ran; and a checksum of what it has in the end.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from stlm_kd.artifacts import hashing
from stlm_kd.data.labelled import encoding
from stlm_kd.eval.fine_tuning.base import FineTuneTask
from stlm_kd.models.heads import classifiers
from stlm_kd.pipeline.builders import data, models
from stlm_kd.pipeline.stages import fine_tune
from stlm_kd.teachers import precomputed
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.precomputed import PrecomputedTeacher

PLACE = "STLM_KD_TEST_COUNTS"


def note(what: str, number: int) -> None:
    with (Path(os.environ[PLACE]) / os.environ.get("RANK", "0")).open("a") as file:
        file.write(f"{what} {number}\n")


def read(folder: Path) -> list[Counter[str]]:
    """The sums by rank."""
    found = []
    for path in sorted(folder.iterdir()):
        found.append(Counter[str]())
        for line in path.read_text().splitlines():
            what, number = line.split()
            found[-1][what] += int(number)
    return found


def counting(owner: Any, name: str, what: str, number: Callable[..., int]) -> None:
    """Note a number after each call of a function."""
    function = getattr(owner, name)

    @wraps(function)
    def counted(*arguments: Any, **options: Any) -> Any:
        found = function(*arguments, **options)
        note(what, number(*arguments))
        return found

    setattr(owner, name, counted)


def known(teacher: PrecomputedTeacher, *_: object) -> int:
    tensors = [
        part.contiguous().view(-1).view(precomputed.torch.uint8)
        for part in precomputed._parts(teacher._known)
    ]
    return zlib.crc32(b"".join(part.numpy().tobytes() for part in tensors))


if PLACE in os.environ:
    counting(hashing, "_digest", "hashed", lambda path, *_: path.stat().st_size)
    counting(encoding, "encodings", "tokenised", lambda texts, *_: len(texts))
    counting(models, "check_forward", "checked", lambda *_: 1)
    counting(models, "check_classifier", "checked", lambda *_: 1)
    counting(classifiers, "check_classifier", "heads", lambda *_: 1)
    counting(FineTuneTask, "read", "parts", lambda *_: 1)
    counting(LiveTeacher, "__call__", "rows", lambda _, batch, *__: len(batch.example_ids))
    counting(PrecomputedTeacher, "__init__", "known", known)
    for place in data, fine_tune:
        counting(place, "example_stream", "read", lambda rows, *_: zlib.crc32(rows.own.tokens.tobytes()))
