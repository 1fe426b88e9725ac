"""Start-up of light commands against a bare interpreter with their library, side by side in one run.

Run: python benchmarks/program/cli_startup.py [ROUNDS]
Targets, in imports of Typer: ``--help`` below 3, ``recipe list`` below 5, ``recipe validate`` below 8.75 (0.4
and 0.7 seconds where one takes 0.08). The last reads the options of losses and suites from the modules that
define them, but imports no PyTorch.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

OURS = [sys.executable, "-m", "stlm_kd"]
COMMANDS = {
    "import typer": [sys.executable, "-c", "import typer"],
    "--help": [*OURS, "--help"],
    "recipe list": [*OURS, "recipe", "list"],
    "recipe validate": [*OURS, "recipe", "validate", "sample-two-teachers"],
}
TARGETS = {
    "--help": ("import typer", 3.0),
    "recipe list": ("import typer", 5.0),
    "recipe validate": ("import typer", 8.75),
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
    for name, (bare, target) in TARGETS.items():
        print(f"{medians[name] / medians[bare]:7.2f} x  {name} / {bare}  (target: below {target:g})")


if __name__ == "__main__":
    main()
