"""Every loss there is, trained by one process or two, in any micro-batches: the same losses and weights.

Steps of 6, 6 and 4 rows are dealt out: whole, in micro-batches of 2, or to two processes. What two processes
hold of a teacher that is divided over them is counted there, too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stlm_kd.losses import LOSSES, MAP_LOSSES, STATE_LOSSES
from stlm_kd.teachers.combination.gate import GATE
from stlm_kd.tracking import read_metrics
from tests.support.engine_fleet import Run, Told, launch, train
from tests.support.engine_objectives import TERMS, Texts, all_objectives, weights_at
from tests.support.teacher_memory import MEASURED, sizes_of

EXACT, ROUNDED = 1e-12, 2e-5
"""Relative to the largest of a tensor, in float64 and in float32."""

PARTITIONED = {
    "offload": "parameters",
    "settings": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
}
"""Small weights are partitioned too, which by default each process keeps."""

TWO = [
    Run("ddp", step="objectives"),
    Run("sharded", step="objectives-sharded"),
    Run("ddp-fp32", step="objectives-fp32"),
    Run("zero-2-fp32", zero=2, step="objectives-fp32"),
    Run("zero-0-fp32", zero=0, step="objectives-fp32"),
    Run("zero-3-fp32", zero=3, deepspeed=PARTITIONED, step="objectives-fp32"),
    *(Run(name, step=f"measured-{name}", settings={"steps": 2}) for name in MEASURED),
]
ONE = [
    Run("whole", step="objectives", micro_batch=6),
    Run("parts", step="objectives", micro_batch=2),
    Run("singles", step="objectives", micro_batch=1),
    Run("dense", step="objectives-dense", micro_batch=6),
    Run("whole-fp32", step="objectives-fp32", micro_batch=6),
    Run("means", step="objectives-mean", micro_batch=3),
    Run("shifted", step="objectives-shifted", micro_batch=6),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this process end."""
    place = tmp_path_factory.mktemp("objectives")
    for run in ONE:
        told = train(place, run)
        assert told["error"] is None and told["remains"] == [], (run.name, told)
    return place


@pytest.fixture(scope="module")
def two(folder: Path) -> Told:
    """The same in two processes."""
    told = launch(folder, 2, TWO)
    for rank in told:
        assert [rank[run.name]["error"] for run in TWO] == [None] * len(TWO)
    return told


def losses(folder: Path) -> list[dict[str, float]]:
    """Of each step, its terms' values, the total and the gradient's norm."""
    steps = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "step"]
    return [{**line["losses"], "loss": line["loss"], "grad_norm": line["grad_norm"]} for line in steps]


def saved(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "step-00000006" / f"{name}.safetensors")


def apart(found: Path, expected: Path, *, without: str = " ") -> float:
    """The largest difference of losses, saved weights and optimizer states, relative to the largest there.

    ``without``: a part of the names of weights that are left out.
    """
    gaps = [0.0]
    for ours, theirs in zip(losses(found), losses(expected), strict=True):
        assert ours.keys() == theirs.keys()
        gaps += [abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-3) for name in theirs]
    for name in ("model", "optimizer"):
        mine, other = saved(found, name), saved(expected, name)
        assert mine.keys() == other.keys()
        for key, tensor in ((key, tensor) for key, tensor in other.items() if without not in key):
            scale = tensor.double().abs().max().clamp(min=1e-9)
            gaps.append(float((mine[key].double() - tensor.double()).abs().max() / scale))
    return max(gaps)


def test_every_loss_is_trained_on() -> None:
    assert {term.loss for term in TERMS} == {*LOSSES, *STATE_LOSSES, *MAP_LOSSES}


def test_terms_have_the_weights_of_their_moment_and_rest_at_times(folder: Path) -> None:
    rested = 0
    for index, line in enumerate(losses(folder / "whole")):
        factors = weights_at(index / 6)
        assert line.keys() == {*factors, "loss", "grad_norm"}
        of_student = {name: factor for name, factor in factors.items() if name != GATE}
        assert line["loss"] == pytest.approx(sum(f * line[name] for name, f in of_student.items()), rel=1e-9)
        rested += len(TERMS) + 1 - len(factors)
    assert rested > 8


@pytest.mark.parametrize("name", ["parts", "singles", "dense"])
def test_micro_batches_and_whole_logits_change_nothing(folder: Path, name: str) -> None:
    assert apart(folder / name, folder / "whole") < EXACT


def test_two_processes_end_as_one(two: Told, folder: Path) -> None:
    assert apart(folder / "ddp", folder / "whole") < EXACT
    assert two[0]["ddp"]["digest"] == two[1]["ddp"]["digest"]


def test_a_teacher_divided_over_two_processes_changes_no_bit(two: Told, folder: Path) -> None:
    assert losses(folder / "sharded") == losses(folder / "ddp")
    assert {rank[name]["digest"] for rank in two for name in ("sharded", "ddp")} == {two[0]["ddp"]["digest"]}


def shares_held(two: Told, name: str) -> list[tuple[float, float]]:
    """By process, what it holds between steps and at most, of the whole teacher."""
    whole, _ = sizes_of(name.partition("-")[0])
    return [(rank[name]["held"]["between"] / whole, rank[name]["held"]["most"] / whole) for rank in two]


@pytest.mark.parametrize("name", ["gpt2-shard", "gpt2-noisy", "bert-shard"])
def test_a_divided_teacher_never_takes_more_than_its_half_and_its_largest_module(
    two: Told, name: str
) -> None:
    """The embedding of gpt2, which is its head, and a block of bert: .89 and .73 of the whole."""
    whole, largest = sizes_of(name.partition("-")[0])
    expected = (0.5, 0.5 + largest / whole)
    assert shares_held(two, name) == [pytest.approx(expected, abs=1e-3)] * 2


def test_the_whole_teacher_and_a_block_that_is_not_released_are_counted(two: Told) -> None:
    assert shares_held(two, "gpt2-replicate") == shares_held(two, "bert-replicate") == [(1, 1)] * 2
    for _, most in shares_held(two, "gpt2-leaks"):
        assert most > shares_held(two, "gpt2-shard")[0][1] + 0.1


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_the_losses_of_the_teacher_that_is_counted_are_those_of_the_whole(
    two: Told, folder: Path, family: str
) -> None:
    assert losses(folder / f"{family}-shard") == losses(folder / f"{family}-replicate")
    assert {rank[f"{family}-{name}"]["digest"] for rank in two for name in ("shard", "replicate")} == {
        two[0][f"{family}-replicate"]["digest"]
    }


@pytest.mark.parametrize("name", ["ddp-fp32", "zero-3-fp32", "zero-2-fp32", "zero-0-fp32"])
def test_any_engine_ends_as_plain_pytorch(two: Told, folder: Path, name: str) -> None:
    assert apart(folder / name, folder / "whole-fp32") < ROUNDED
    assert two[0][name]["digest"] == two[1][name]["digest"]


def test_projections_and_gate_are_trained_and_saved_with_the_student(folder: Path) -> None:
    first, last = (
        load_file(folder / "whole" / "checkpoints" / f"step-0000000{step}" / "model.safetensors")
        for step in (4, 6)
    )
    projections = {name for name in last if name.startswith(("projections.", "gate."))}
    assert len(projections) == 2 * (3 + 1 + 1), "of a hint at three pairs, a cosine at one, and a gate"
    assert not any(torch.equal(first[name], last[name]) for name in projections)
    assert {f"{name}/exp_avg" for name in projections} <= set(saved(folder / "whole", "optimizer"))


def test_a_projection_whose_term_rests_gets_a_gradient_of_nothing() -> None:
    """Engines expect a gradient for every weight, in every process."""
    step = all_objectives()
    batch = Texts().rows_of(0, 6)
    for index, rests in ((0, False), (2, True)):
        step.zero_grad()
        step.begin(index, 6)
        step(batch, {name: float(count) for name, count in step.count(batch).items()}).loss.backward()
        gradients = {name: weight.grad for name, weight in step.named_parameters() if weight.requires_grad}
        assert all(gradient is not None for gradient in gradients.values())
        moved = {
            name.split(".")[1]
            for name, gradient in gradients.items()
            if name.startswith("projections.") and gradient is not None and gradient.any()
        }
        assert moved == {"cosine"} | (set() if rests else {"hint"})


@pytest.mark.parametrize("mistake", ["means", "shifted"])
def test_averaged_means_of_micro_batches_and_labels_one_off_are_noticed(folder: Path, mistake: str) -> None:
    assert apart(folder / mistake, folder / "whole") > 1e-3
    assert apart(folder / "parts", folder / "whole") < EXACT
