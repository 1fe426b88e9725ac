"""One process of a training run, for the tests that kill, signal or join processes.

``python -m tests.support.engine_worker FOLDER JSON``, with ``settings`` of ``TrainingConfig``, ``signals`` as
{step index: [signal, process]} to send to itself when that step's batches are asked for, or [signal, process,
seconds] to send so much later; ``slow`` as {step index, or "validation": seconds of each forward}; ``hangs``,
the name of a checkpoint whose writing does not end; ``epoch_rows``, the rows of a real epoch, six a step,
with their numbers in ``FOLDER/rows-STEP-PROCESS.json``; ``dropout`` and ``micro_batch``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from stlm_kd.data.batch import Batch
from stlm_kd.data.batches import BatchStream, PackedRows
from stlm_kd.errors import StlmKdError
from stlm_kd.tracking import open_tracker
from stlm_kd.training import TrainingConfig, checkpoint
from stlm_kd.training.loop import fit
from tests.support.engine_pico import LENGTH, PicoBatches, PicoOutput, PicoStep, digest, held_out
from tests.support.stores import store_of

RANK = int(os.environ.get("RANK", "0"))


def signal_at(signals: Mapping[str, list[int]], index: int) -> None:
    """Send this process what is for it at the step with this index."""
    number, rank, *later = signals.get(str(index), [0, -1])
    if rank == RANK and later:
        threading.Timer(later[0], os.kill, (os.getpid(), number)).start()
    elif rank == RANK:
        os.kill(os.getpid(), number)


class SignallingBatches(PicoBatches):
    signals: dict[str, list[int]]

    def step(self, index: int) -> Sequence[Batch]:
        signal_at(self.signals, index)
        return super().step(index)


class Epochs(SignallingBatches):
    """Rows of packed text, which end within a step; notes which ones a step has."""

    def __init__(self, folder: Path, rows: int, micro_batch: int) -> None:
        super().__init__()
        bodies = [[3 + (row + at) % 10 for at in range(LENGTH - 2)] for row in range(rows)]
        parts, size = [PackedRows(store_of(bodies), LENGTH)], int(os.environ.get("WORLD_SIZE", "1"))
        split = {"rank": RANK, "world_size": size, "micro_batch": micro_batch}
        self.folder, self.stream = folder, BatchStream(parts, effective_batch=6, seed=1, **split)

    def step(self, index: int) -> Sequence[Batch]:
        super().step(index)
        found = self.stream.step(index)
        numbers = [number for batch in found for number in batch.example_ids.tolist()]
        (self.folder / f"rows-{index}-{RANK}.json").write_text(json.dumps(numbers))
        return found


class SlowStep(PicoStep):
    slow: dict[str, float]

    def begin(self, index: int, steps: int, *, is_logged: bool) -> None:
        super().begin(index, steps, is_logged=is_logged)
        self.index = index

    def forward(self, batch: Batch, denominators: Mapping[str, float]) -> PicoOutput:
        time.sleep(self.slow.get(str(self.index) if self.training else "validation", 0))
        return super().forward(batch, denominators)


def hang_at(name: str) -> None:
    """Let the writing of a checkpoint with this name not end."""
    flush = checkpoint._flush
    checkpoint._flush = lambda path: time.sleep(600) if name in str(path) else flush(path)


def main() -> int:
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    step = SlowStep(dropout=options.get("dropout", 0.0))
    step.slow = options.get("slow", {})
    if "hangs" in options:
        hang_at(options["hangs"])
    if "epoch_rows" in options:
        batches = Epochs(folder, options["epoch_rows"], options["micro_batch"])
    else:
        batches = SignallingBatches(
            rank=RANK,
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            micro_batch=options.get("micro_batch", 2),
        )
    batches.signals = options.get("signals", {})
    tracker = open_tracker(folder)
    tracker.stage("pico")
    try:
        result = fit(
            step,
            batches,
            TrainingConfig(**options["settings"]),
            folder=folder,
            validation=lambda: held_out() if RANK == 0 else [],
            tracker=tracker,
            resume=True,
            fingerprint="pico",
        )
    except StlmKdError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    told = {"digest": digest(step), "result": asdict(result)}
    (folder / f"result-{RANK}.json").write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
