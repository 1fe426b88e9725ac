"""The precision that a recipe leaves open is that of a run's first machine, wherever it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stlm_kd.pipeline.builders.models as builders
import stlm_kd.pipeline.recording as recording
from stlm_kd import verify_recipe
from stlm_kd.artifacts.hashing import sealed, unsealed
from stlm_kd.pipeline.builders.models import open_precision
from stlm_kd.recipe import load
from stlm_kd.recipe.lock import Lock, read_lock
from stlm_kd.sharing.pins import Pins, from_json, using
from tests.integration.test_road_cache import taught
from tests.support.road import distilled, stlm_kd, student, weights

STEPS = ("train.steps=3",)


def lock_of(run: Path) -> Lock:
    return read_lock((run / "recipe.lock").read_text())


def record_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the default of the machine; all of them compute on this CPU."""

    def is_one_of(precision: str) -> None:
        for module in (builders, recording):
            monkeypatch.setattr(module, "device_precision", lambda: precision)

    return is_one_of


def test_a_precision_is_open_where_neither_recipe_nor_cache_states_it(
    place: Path, machine: Callable[[str], None]
) -> None:
    stated = "{name: b, model: same, precision: fp32}"
    machine("bf16")
    recipe = load(f"{taught(place, 'both', f'[{stated}, {{name: a, model: same}}]')}.yaml")
    with using(Pins()):
        assert open_precision(recipe) == "bf16"
        assert [builders.teacher_precision(one) for one in recipe.teachers] == ["fp32", "bf16"]
    elsewhere = from_json(Pins(teacher_precision="fp32").as_json(), "the pins of another process")
    with using(elsewhere):
        assert open_precision(recipe) == "fp32"
    with using(Pins(teacher_precision="fp32")):
        assert open_precision(load(f"{taught(place, 'alone', f'[{stated}]')}.yaml")) is None


@pytest.mark.long
@pytest.mark.parametrize("cache", ["", ", cache: auto"])
def test_a_run_keeps_the_precision_of_its_first_machine(
    cache: str,
    place: Path,
    tmp_path: Path,
    machine: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = taught(place, f"open{len(cache)}", f"[{{name: a, model: same{cache}}}]")
    stated = taught(place, f"stated{len(cache)}", f"[{{name: a, model: same, precision: bf16{cache}}}]")
    machine("bf16")
    run = distilled(name, *STEPS, output_dir=tmp_path / "a")
    first, content = lock_of(run), weights(run)
    assert record_of(run)["teacher_precision"] == first.teacher_precision == "bf16"

    machine("fp32")
    alike = distilled(stated, *STEPS, output_dir=tmp_path / "b")
    other = distilled(name, *STEPS, output_dir=tmp_path / "c")
    assert lock_of(alike).teacher_precision is None and weights(alike) == content
    assert lock_of(other).teacher_precision == "fp32" and weights(other) != content
    assert lock_of(other).stages["student.seed-1"] != first.stages["student.seed-1"]

    shutil.rmtree(student(run))
    shutil.rmtree(tmp_path / "a" / "stages")
    distilled(name, *STEPS, output_dir=tmp_path / "a")
    assert "teachers: bf16 weights, as in the record of this run's first start" in caplog.text
    assert weights(run) == content and lock_of(run).stages == first.stages
    plan = stlm_kd("distill", "-r", str(run), "--locked", "--dry-run")
    assert "teacher a: bf16 weights, as locked; the default here is fp32" in " ".join(plan.output.split())
    locked = stlm_kd("distill", "-r", str(run), "--locked", "--output-dir", str(tmp_path / "d"))
    assert locked.exit_code == 0 and "teachers: bf16 weights, as in recipe.lock of" in caplog.text
    (copy,) = (tmp_path / "d").glob("*-????????")
    assert weights(copy) == content and lock_of(copy).teacher_precision == "bf16"

    assert verify_recipe(run).rung == "consistent"
    (run / "run.json").write_text(
        json.dumps(sealed(unsealed(record_of(run)) | {"teacher_precision": "fp32"}))
    )
    assert "not the teacher_precision that the run's record names" in str(verify_recipe(run).findings)
