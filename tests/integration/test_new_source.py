"""A new counterfactual source is one file: recipes name it with its option, train and compare with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = '''
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt

from stlm_kd.interventions import Positions, register_source
from stlm_kd.interventions.plan import OtherStates


@register_source("next-ids")
def next_ids(draw, /, *, by: Annotated[int, Gt(0)] = 1):
    """Hidden states of the base with ids increased at the chosen positions."""
    found = [
        (row, position)
        for row in draw.rows
        for document in draw.documents[row]
        for position in draw.within(document, draw.generator("positions", row))
    ]
    rows, positions = torch.from_numpy(np.array(found, np.int64).reshape(-1, 2)).unbind(1)
    ids = draw.batch.input_ids.clone()
    ids[rows, positions] = (ids[rows, positions] + by) % 256
    places = Positions(rows, positions)
    return places, OtherStates(replace(draw.batch, input_ids=ids), places)
'''

PROBE = """
import json, sys
from pathlib import Path

import next_ids
from typer.testing import CliRunner

from stlm_kd.cli.main import app
from stlm_kd.errors import StlmKdError
from stlm_kd.recipe import load, recipe_hash

folder = Path(sys.argv[1])
with_source = "objectives=[{{loss: labels}}, {{loss: diito, teacher: a, source: {}}}]".format


def fault(source, *changes):
    try:
        load("taught.yaml", (with_source(source), *changes))
    except StlmKdError as error:
        return str(error)


def trained(source):
    words = ["distill", "-r", "taught.yaml", with_source(source), "train.steps=2", "train.validate_every=1"]
    words += ["eval=[{suite: interchange, source: next-ids, rows: 4, alignment: last}]"]
    done = CliRunner().invoke(app, [*words, "--output-dir", str(folder), "--no-rehearsal", "--json"])
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"
    return (Path(json.loads(done.stdout)["folder"]) / "results.json").read_text()


changed = "{name: next-ids, by: 3}"
first, second, again = (trained(source) for source in ("next-ids", changed, changed))
recipe = load("taught.yaml", (with_source(changed),))
print(json.dumps({
    "trainings": len(list(folder.glob("stages/*/metrics.jsonl"))),
    "interventions": "next-ids states at consecutive positions" in first,
    "options": recipe.objectives[1].source_options,
    "hashes": len({recipe_hash(load("taught.yaml", (with_source(one),))) for one in (
        "next-ids", "{name: next-ids}", "{name: next-ids, by: 2}", "{name: next-ids, by: 3}"
    )}),
    "faults": [
        fault("{name: next-ids, by: 0}"),
        fault("{name: next-ids, bye: 2}"),
        fault("{name: nextids}"),
        fault("next-ids, mixup_map: same"),
    ],
}))
"""


@pytest.fixture
def found(place: Path, tmp_path: Path) -> dict[str, object]:
    """What recipes and commands find where the module of the source is imported."""
    (tmp_path / "next_ids.py").write_text(SOURCE)
    (tmp_path / "probe.py").write_text(PROBE)
    command = [sys.executable, str(tmp_path / "probe.py"), str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.long
def test_a_source_in_a_file_of_its_own_is_trained_with_compared_and_checked(found: dict[str, object]) -> None:
    assert found["trainings"] == 2, "the option is part of a student's key"
    assert found["interventions"]
    assert found["options"] == {"by": 3} and found["hashes"] == 3
    bound, unknown, name, other = map(str, found["faults"])  # type: ignore[call-overload]  # JSON
    assert "objectives[1].source.by" in bound and "0 found; expected more than 0" in bound
    assert "objectives[1].source.bye" in unknown and "not an option of next-ids (did you mean by?)" in unknown
    assert "'nextids' is not a known counterfactual source (did you mean next-ids?)" in name
    assert "mixup_map" in other and "not an option of the source next-ids, which takes by" in other
