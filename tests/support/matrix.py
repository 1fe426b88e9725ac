"""``python -m tests.support.matrix FOLDER``: the whole grid, and a table of it; may be stopped and goes on.

``FOLDER/results.jsonl`` keeps the cells of each program, by the content of its files; none is run twice.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path

from stlm_kd.artifacts.hashing import sha256
from stlm_kd.artifacts.provenance import program
from tests.support.grid import AXES, Cell, all_cells, refusal
from tests.support.grid_worker import is_equal, read

AT_ONCE = 60
"""Cells of a launch, each of which costs the imports."""


def results_of(folder: Path) -> Path:
    """The file of results for this program and this grid."""
    own = sorted(Path(__file__).parent.glob("grid*.py"))
    key = f"{program().source}-{''.join(sha256(path)[-8:] for path in own)}".replace(":", "-")
    return folder / key / "results.jsonl"


def found_in(results: Path) -> dict[Cell, Mapping[str, object]]:
    return {Cell(*(line[name] for name in Cell.__dataclass_fields__)): line for line in read(results)}


def run(results: Path, cells: Sequence[Cell]) -> None:
    """Run cells in processes of their own."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([asdict(cell) for cell in cells], file)
        file.flush()
        subprocess.run(
            [sys.executable, "-m", "tests.support.grid_worker", str(results), file.name], check=True
        )


def table(found: Mapping[Cell, Mapping[str, object]]) -> str:
    """By task and objectives, and by processes and engine: equal cells of those that are there."""
    engines = [Cell(size, zero, 1, "", "", "", "") for size in AXES["processes"] for zero in AXES["zero"]]
    lines = [
        " " * 42 + "".join(f"{one.processes} {one.engine.replace('zero ', 'z')}".rjust(9) for one in engines)
    ]
    for task in AXES["task"]:
        for objectives in AXES["objectives"]:
            line = f"{task}, {objectives}".ljust(42)
            for one in engines:
                cells = [cell for cell in all_cells() if (cell.task, cell.objectives) == (task, objectives)
                         and astuple(cell)[:2] == astuple(one)[:2]]  # fmt: skip
                line += _entry(cells, found).rjust(9)
            lines.append(line)
    return "\n".join(lines)


def _entry(cells: Sequence[Cell], found: Mapping[Cell, Mapping[str, object]]) -> str:
    if all(map(refusal, cells)):
        return "refused"
    there = [cell for cell in cells if cell in found]
    equal = sum(is_equal(dict(found[cell])) for cell in there)
    return f"{equal}/{len(there)}" + ("" if equal == len(there) else " !") if there else "-"


def main() -> int:
    results = results_of(Path(sys.argv[1]))
    refused = {cell: message for cell in all_cells() if (message := refusal(cell))}
    cells = [cell for cell in all_cells() if cell not in refused]
    cells.sort(key=lambda cell: (cell.processes, str(cell.zero)))
    try:
        while left := [cell for cell in cells if cell not in found_in(results)]:
            print(f"{len(left)} of {len(cells)} cells left; results in {results}", flush=True)
            run(results, left[:AT_ONCE])
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
    found = found_in(results)
    print(table(found))
    print(f"refused: {len(refused)} cells")
    for message in sorted(set(refused.values())):
        print(f"  {message}")
    wrong = {cell: line for cell, line in found.items() if not is_equal(dict(line))}
    for cell, line in wrong.items():
        print(f"not equal: {cell}: {line.get('error') or (line['losses'], line['weights'])}")
    return int(bool(wrong) or len(found) < len(cells))


if __name__ == "__main__":
    raise SystemExit(main())
