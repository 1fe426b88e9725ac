"""A loss in a user's module: found through an entry point or ``--import``, also in worker processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LOSS = '''
from stlm_kd.losses import LOSSES, Temperature, TemperatureScaling


@LOSSES.register("total_variation")
def total_variation(
    student, teacher, /, *, temperature: Temperature = 1.0, temperature_scaling: TemperatureScaling = "none"
):
    """Half the L1 distance of the distributions."""
    student, teacher = ((logits / temperature).softmax(-1) for logits in (student, teacher))
    return (student - teacher).abs().sum(-1) / 2
'''
OBJECTIVES = "objectives=[{loss: labels, weight: 0.5}, {loss: total_variation, weight: 0.5}]"


def command(place: Path, *words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(path or ""), str(ROOT)]))}
    return subprocess.run(
        [sys.executable, "-m", "stlm_kd", *words],
        cwd=place, env={**variables, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip


def installed(folder: Path, module: str) -> Path:
    """A folder with a module and the metadata of an installed package that names it as an extension."""
    (folder / "variation.py").write_text(module, encoding="utf-8")
    metadata = folder / "variation-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: variation\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[stlm_kd]\ntotal = variation\n")
    return folder


@pytest.mark.parametrize("how", [pytest.param("entry point", marks=pytest.mark.long), "import"])
def test_a_users_loss_trains_in_every_process(how: str, place: Path, tmp_path: Path) -> None:
    if how == "import":
        (place / "variation.py").write_text(LOSS, encoding="utf-8")
    words = ["--import", "variation"] if how == "import" else []
    path = None if how == "import" else installed(tmp_path, LOSS)
    options = ["seeds=[1, 2]", "--jobs", "2", "--output-dir", str(tmp_path / "runs"), "--json"]
    done = command(place, *words, "distill", "-r", "taught.yaml", OBJECTIVES, *options, path=path)
    (place / "variation.py").unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["folder"])
    lines = [
        json.loads(line)
        for seed in (1, 2)
        for line in (folder / f"students/student/seed-{seed}/metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["losses"]["total_variation"] for line in lines if line["kind"] == "step"]
    assert losses and all(0 < loss < 1 for loss in losses)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("weight: float = 1.0", "loss total_variation: weight is a key that recipes have already; rename it"),
        ("size: torch.Tensor = 1", "expected numbers, texts, booleans, and lists and mappings of them"),
        ("size", "--import variation: variation: loss total_variation: the option size has no type"),
    ],
)
def test_options_that_no_recipe_can_give_are_refused(option: str, expected: str, place: Path) -> None:
    module = f"import torch\n{LOSS}".replace('temperature_scaling: TemperatureScaling = "none"', option)
    (place / "variation.py").write_text(module, encoding="utf-8")
    refused = command(place, "--import", "variation", "recipe", "validate", "taught.yaml", OBJECTIVES)
    (place / "variation.py").unlink()
    assert refused.returncode == 3 and expected in refused.stderr and "Traceback" not in refused.stderr


def test_without_its_module_the_loss_is_unknown_and_a_broken_module_is_named(
    place: Path, tmp_path: Path
) -> None:
    validate = ["recipe", "validate", "taught.yaml", OBJECTIVES]
    unknown = command(place, *validate)
    assert unknown.returncode == 3 and "total_variation" in unknown.stderr
    broken = command(place, *validate, path=installed(tmp_path, "import nothing_of_this_name\n"))
    assert broken.returncode == 5
    assert (
        "the extension total of variation: its module cannot be imported (ModuleNotFoundError"
        in broken.stderr
    )
    missing = command(place, "--import", "nowhere", *validate)
    assert missing.returncode == 5 and missing.stderr.startswith("--import nowhere: its module cannot be")
