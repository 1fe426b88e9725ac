"""What the trainings of two folders of runs have in common: their logged numbers and their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stlm_kd.tracking import read_metrics

ALSO = ("loss", "grad_norm", "learning_rate", "tokens")
Point = tuple[str, str, int, str]


def curves(output_dir: Path) -> dict[Point, float]:
    """What was logged of adaptations and trainings, by what was trained, kind of line, step and name."""
    found: dict[Point, float] = {}
    for file in (output_dir / "stages").glob("*/metrics.jsonl"):
        for line in read_metrics(file):
            if line["kind"] != "note":
                values = {**line["losses"], **{name: line[name] for name in ALSO if name in line}}
                found |= {(line["stage"], line["kind"], line["step"], n): x for n, x in values.items()}
    return found


def weights(output_dir: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Every saved tensor, by what was trained and its name."""
    return {
        (str(read_metrics(file.parents[1] / "metrics.jsonl")[0]["stage"]), name): tensor
        for file in (output_dir / "stages").glob("*/model/model.safetensors")
        for name, tensor in load_file(file).items()
    }


def same_curves(found: Path, expected: Path) -> bool:
    """Whether all losses of two folders are equal but for the rounding of sums; the controls see it fail."""
    ours, theirs = curves(found), curves(expected)
    assert ours.keys() == theirs.keys() and theirs
    return ours == pytest.approx(theirs, rel=1e-5)


def largest_difference(found: Path, expected: Path) -> float:
    """Between saved weights, in units of the largest learning rate: about how far AdamW moves a weight."""
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys() and theirs
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) / 5e-3
