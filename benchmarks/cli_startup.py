"""Start-up of ``stlm-kd --help`` against a bare interpreter that imports Typer, side by side in one run.

Run: python benchmarks/cli_startup.py [ROUNDS]
Target: a ratio below 3.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

TARGET = 3.0
COMMANDS = {
    "python -c 'import typer'": [sys.executable, "-c", "import typer"],
    "stlm-kd --help": [sys.executable, "-m", "stlm_kd", "--help"],
}


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def measure(rounds: int) -> dict[str, float]:
    """Median seconds of each command; the commands take turns, so that load falls on both alike."""
    for command in COMMANDS.values():
        seconds(command)  # fills the file cache and writes the byte code
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    return {name: statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    medians = measure(rounds)
    for name, median in medians.items():
        print(f"{median * 1000:7.0f} ms  {name}")
    bare, ours = medians.values()
    print(f"{ours / bare:7.2f} x  (target: below {TARGET:g}; median of {rounds})")


if __name__ == "__main__":
    main()
