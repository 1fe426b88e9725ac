"""Cells of the grid in processes that are forked where everything is imported: one launch for each number.

``python -m tests.support.grid_worker RESULTS CELLS``: ``CELLS`` is a JSON file with what ``Cell`` takes. Each
cell adds a line of JSON to ``RESULTS`` when it has ended: its fields, and ``error``, or ``losses`` and
``weights`` as the largest differences from one plain process. A cell that fails ends its launch; those after
it are launched again.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from stlm_kd.training.backends import deepspeed_setup
from tests.support.grid import Cell
from tests.support.processes import free_port

EXACT, ROUNDED = 1e-12, 2e-5
"""How far a cell may be from one process, in float64 and in float32."""


def is_equal(line: dict[str, object]) -> bool:
    """Whether a cell came to what one process comes to; AdamW by its losses."""
    limit = EXACT if line["zero"] is None else ROUNDED
    names = ("losses", "weights") if line["optimizer"] == "sgd" else ("losses",)
    return "error" not in line and all(float(str(line[name])) < limit for name in names)


def partition_all() -> None:
    """Let ZeRO 3 partition small weights too, as it does large ones."""

    def config(*arguments: object) -> dict[str, object]:
        found = made(*arguments)  # type: ignore[arg-type]  # passed on
        zero = found["zero_optimization"]
        assert isinstance(zero, dict)
        return {**found, "zero_optimization": {**zero, "stage3_param_persistence_threshold": 0}}

    made = deepspeed_setup.deepspeed_config
    deepspeed_setup.deepspeed_config = config


def run_cells(results: Path, cells: Sequence[Cell]) -> None:
    """In one of the processes of a launch."""
    from stlm_kd.distributed import end_processes, process_rank, wait_for_all
    from tests.support.grid_steps import apart, expected, trained

    for cell in cells:
        line = asdict(cell)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=results.parent) as folder:
            place = results.parent / "checkpoints" if cell.processes > 1 else Path(folder)
            try:
                found = trained(cell, place)
            except Exception:
                line["error"] = traceback.format_exc()
            else:
                if process_rank() == 0:
                    line["losses"], line["weights"] = apart(found, expected(cell))
        if process_rank() == 0 or "error" in line:
            _add(results, {**line, "seconds": round(time.monotonic() - began, 2)})
        if "error" in line:
            os._exit(1)
        if cell.processes > 1:
            wait_for_all()
    end_processes()


def launch(results: Path, cells: Sequence[Cell]) -> bool:
    """Fork the processes of a launch; whether all of them ended well."""
    size, port = cells[0].processes, str(free_port())
    children = []
    for rank in range(size):
        if (child := os.fork()) == 0:
            shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            if size > 1:
                os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
            run_cells(results, cells)
            sys.stderr.flush()
            os._exit(0)
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children] == [0] * size


def run_all(results: Path, cells: Iterable[Cell]) -> None:
    """Run the cells, the launches one after another; each cell leaves a line."""
    by_size = sorted(cells, key=lambda cell: cell.processes)
    for _, group in groupby(by_size, key=lambda cell: cell.processes):
        left = [*group]
        while left and not launch(results, left):
            lines = read(results)
            done = {Cell(*(line[name] for name in asdict(left[0]))) for line in lines}
            left = [cell for cell in left if cell not in done]
            if left and not (lines and "error" in lines[-1]):  # killed, or ended by the watchdog
                _add(results, {**asdict(left.pop(0)), "error": "its processes ended"})


def read(results: Path) -> list[dict[str, object]]:
    """The lines that are whole."""
    if not results.exists():
        return []
    lines = results.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _add(results: Path, line: dict[str, object]) -> None:
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")


def main() -> int:
    results, cells = Path(sys.argv[1]), [Cell(**cell) for cell in json.loads(Path(sys.argv[2]).read_text())]
    from tests.support.nursery import import_everything

    os.environ.setdefault("STLM_KD_PROCESS_TIMEOUT", "2")
    import_everything()
    import tests.support.grid_steps  # noqa: F401

    partition_all()
    run_all(results, cells)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
