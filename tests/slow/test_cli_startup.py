"""What the light commands import: nothing that takes long."""

import json
import subprocess
import sys

import pytest

HEAVY = ["torch", "transformers", "datasets", "lm_eval", "accelerate", "numpy", "matplotlib", "scipy"]
PROBE = """
import json, sys
from stlm_kd.cli.main import app
try:
    app(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code, stop.code
print(json.dumps(sorted(name for name in sys.modules if "." not in name)), file=sys.stderr)
"""


def imported(*words: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=True)
    assert done.stdout
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_help_imports_nothing_that_is_not_needed_for_it() -> None:
    assert imported("--help").isdisjoint([*HEAVY, "pydantic", "yaml", "rich"])


@pytest.mark.parametrize("command", [("distill",), ("adapt-teacher",), ("eval",), ("recipe", "show")])
def test_help_of_a_command_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    assert imported(*command, "--help").isdisjoint([*HEAVY, "yaml"])


@pytest.mark.parametrize("command", [("recipe", "list"), ("recipe", "show", "stlm-47m-clm"), ("--version",)])
def test_recipes_are_listed_and_shown_without_anything_heavy(command: tuple[str, ...]) -> None:
    assert imported(*command).isdisjoint(HEAVY)


@pytest.mark.parametrize("recipe", ["sample-two-teachers", "sample-diito", "sample-sentiment"])
def test_a_recipe_is_checked_without_anything_heavy(recipe: str) -> None:
    assert imported("recipe", "validate", recipe).isdisjoint({*HEAVY, "asyncio"})


def test_the_module_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "stlm_kd", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in ("distill", "adapt-teacher", "eval", "generate", "recipe", "runs"):
        assert name in done.stdout
