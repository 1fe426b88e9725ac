"""Every recipe of the package at pico size: its first 20 steps and the keys of its stages are as recorded.

``STLM_KD_RECORD=1 pytest tests/integration/test_golden_runs.py`` records them anew.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from stlm_kd.recipe import load
from stlm_kd.recipe.locate import built_in
from tests.support.paths import GOLDEN_FOLDER
from tests.support.pico_recipes import STEPS, build, write_pico
from tests.support.road import done

QUICK = {
    "adapt-qwen2-0.5b",
    "diito-masked-tokens",
    "minilm-masked",
    "sample-diito",
    "sample-sentiment",
    "sample-two-teachers",
    "stlm-47m-clm",
}
"""One of each kind; the others are run by ``make test-long``."""

NAMES = [
    recipe.name if recipe.name in QUICK else pytest.param(recipe.name, marks=pytest.mark.long)
    for recipe in built_in()
]
GOLDEN = GOLDEN_FOLDER / "recipes"
RECORDS = os.environ.get("STLM_KD_RECORD") == "1"
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pico")
    build(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_first_steps_and_the_stage_keys_of_a_recipe_are_as_recorded(
    name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    recipe = write_pico(name, world)
    adapts_only = load(str(recipe)).adapts_only
    words = ["adapt-teacher" if adapts_only else "distill", "-r", str(recipe), "--no-rehearsal"]
    done(*words, "--output-dir", str(tmp_path))
    found = {"curves": _curves(tmp_path), "stages": _stages(tmp_path)}
    file = GOLDEN / f"{name}.json"
    if RECORDS:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    expected = json.loads(file.read_text(encoding="utf-8"))
    assert found["stages"] == expected["stages"]
    assert found["curves"].keys() == expected["curves"].keys()
    for stage, curve in expected["curves"].items():
        assert len(found["curves"][stage]) == len(curve)
        for step, losses in enumerate(curve, start=1):
            own = found["curves"][stage][step - 1]
            assert own == pytest.approx(losses, abs=1e-5, rel=1e-5), (stage, step)
    assert adapts_only or [len(curve) for curve in found["curves"].values()][-1] == STEPS


def _curves(output_dir: Path) -> dict[str, list[dict[str, float]]]:
    """The losses of each logged step, of each training."""
    found: dict[str, list[dict[str, float]]] = {}
    for file in sorted((output_dir / "stages").glob("*/metrics.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry["kind"] == "step":
                losses = {"loss": entry["loss"], **entry["losses"]}
                found.setdefault(entry["stage"], []).append(losses)
    return dict(sorted(found.items()))


def _stages(output_dir: Path) -> list[Any]:
    """Kind, format and key of each stage; ``#`` for a hash, since weights round otherwise elsewhere."""
    files = sorted((output_dir / "stages").glob("*/stage.json"))
    stages = [json.loads(_DIGEST.sub("#", file.read_text(encoding="utf-8"))) for file in files]
    found = [{name: stage[name] for name in ("kind", "format", "key")} for stage in stages]
    return sorted(found, key=json.dumps)
