"""What checking reused files costs: the share of a run, and 10 GB that were checked before.

The run's share is the time within ``first_change`` and ``known_hash``, wherever they are called, of the whole
command in this process, its imports included. The 10 GB are sparse files of one stage, opened by a process
that has not seen them; they are hashed once before, which earlier commands pay.

    python benchmarks/program/reused_files.py sample-two-teachers train.steps=20
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
FILES, FILE_BYTES = 40, 250_000_000

from stlm_kd.artifacts import hashing, stage_store  # noqa: E402  # timed, too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", nargs="?", default="sample-two-teachers")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)  # for this program's own child
    options = parser.parse_args()
    if options.open is not None:
        print(opened(options.open))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ[hashing.CACHE] = f"{folder}/cache"
        first, again = ten_gigabytes(Path(folder))
        size = FILES * FILE_BYTES / 1e9
        print(f"{size:.0f} GB: hashed in {first:.1f} s; checked again in {again:.3f} s (≤ 1)")
        for name in ("made", "found again"):
            checks, whole = run(options.recipe, options.overrides, Path(folder) / "runs")
            share = f"{checks:.2f} s of {whole:.1f} s: {checks / whole:.2%} (≤ 1 %)"
            print(f"{options.recipe}, {name}: checks take {share}")


def ten_gigabytes(folder: Path) -> tuple[float, float]:
    """Seconds to check a large stage in a new process: when nothing is known of it, and again."""

    def build(target: Path) -> None:
        (target / "report.json").write_text("{}")
        for number in range(FILES):
            with (target / f"{number}.safetensors").open("wb") as file:
                file.truncate(FILE_BYTES)

    stage = stage_store.Stages(folder / "stages").make("model", {"large": True}, build)
    time.sleep(2.5)  # younger files may still change within the resolution of their times
    command = [sys.executable, __file__, "--open", str(stage)]
    first, again = (float(subprocess.check_output(command, text=True)) for _ in range(2))
    return first, again


def opened(stage: Path) -> float:
    """Seconds to check a stage."""
    began = time.perf_counter()
    record = stage_store.StageRecord.of(stage)
    assert record is not None and stage_store.change_of(stage, record.files) is None
    return time.perf_counter() - began


def run(recipe: str, overrides: list[str], output_dir: Path) -> tuple[float, float]:
    """Seconds within the checks, and of the whole command."""
    spent, depth = [0.0], [0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            began, depth[0] = time.perf_counter(), depth[0] + 1
            try:
                return function(*given, **named)
            finally:
                depth[0] -= 1
                spent[0] += time.perf_counter() - began if depth[0] == 0 else 0.0

        return call

    began = time.perf_counter()
    import stlm_kd.pipeline.distill as distill

    originals = {"known_sha256": hashing.known_sha256, "first_change": hashing.first_change}
    modules = [module for name, module in sys.modules.items() if name.startswith("stlm_kd.")]
    hooked = [(m, n) for m in modules for n, f in originals.items() if vars(m).get(n) is f]
    for module, name in hooked:
        setattr(module, name, timed(originals[name]))
    try:
        distill.distill(recipe, overrides, output_dir=output_dir)
    finally:
        for module, name in hooked:
            setattr(module, name, originals[name])
    return spent[0], time.perf_counter() - began


if __name__ == "__main__":
    main()
