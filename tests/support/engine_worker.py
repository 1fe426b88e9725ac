"""One process of a training run, for the tests that kill, signal or join processes.

``python -m tests.support.engine_worker FOLDER JSON``, with ``settings`` of ``TrainingConfig``, ``signals`` as
{step index: [signal, process]} to send to itself when that step's batches are asked for, ``dropout`` and
``micro_batch``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from stlm_kd.data.batch import Batch
from stlm_kd.errors import StlmKdError
from stlm_kd.tracking import open_tracker
from stlm_kd.training import TrainingConfig
from stlm_kd.training.loop import fit
from tests.support.engine_pico import PicoBatches, PicoStep, digest, held_out

RANK = int(os.environ.get("RANK", "0"))


class SignallingBatches(PicoBatches):
    signals: dict[str, list[int]]

    def step(self, index: int) -> Sequence[Batch]:
        number, rank = self.signals.get(str(index), [0, -1])
        if rank == RANK:
            os.kill(os.getpid(), number)
        return super().step(index)


def main() -> int:
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    step = PicoStep(dropout=options.get("dropout", 0.0))
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
