"""bf16 weights in the module, fp32 ones in DeepSpeed's optimizer, in two real processes."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stlm_kd.tracking import read_metrics
from tests.support.engine_fleet import Run, Told, launch

pytestmark = pytest.mark.long  # test_engine_deepspeed.py has a run of it

BF16 = {"precision": "bf16"}
WEIGHTS = {
    2: {"weights": "bf16"},
    3: {"weights": "bf16", "settings": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}},
}
OFFLOADED = {2: "optimizer", 3: "parameters"}
BEST = {"validate_every": 1, "keep": "best"}


def runs(zero: int) -> list[Run]:
    def run(name: str, **options: object) -> Run:
        settings = {**BF16, **(BEST if name == "best" else {})}
        deepspeed = {"deepspeed": WEIGHTS[zero], **options}
        return Run(f"{name}-{zero}", zero=zero, settings=settings, **deepspeed)  # type: ignore[arg-type]

    return [
        run("whole"),
        run("stopped", signals={"2": [signal.SIGTERM, 1]}),
        run("resumed", begins_as=f"stopped-{zero}"),
        Run(f"as-ddp-{zero}", begins_as=f"stopped-{zero}"),
        run("paced", pace=0.0),
        run("sometimes", step="sometimes"),
        run("best", step="rising"),
        run("offloaded", deepspeed={**WEIGHTS[zero], "offload": OFFLOADED[zero]}),
        run("poisoned", step="poisoned"),
        run("objectives", step="objectives-fp32"),
    ]


OTHERS = [
    Run("ddp"),
    Run("paced-ddp", pace=0.0),
    Run("sometimes-ddp", step="sometimes"),
    Run("objectives-ddp", step="objectives-fp32"),
]
STAGES = pytest.mark.parametrize("zero", [2, 3])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bf16")


@pytest.fixture(scope="module", autouse=True)
def two(folder: Path) -> Told:
    return launch(folder, 2, [*OTHERS, *runs(2), *runs(3)])


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "step"]


def saved(folder: Path, name: str = "model", step: int = 6) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


@STAGES
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("whole", "ddp"),
        ("offloaded", "ddp"),
        ("paced", "paced-ddp"),
        ("sometimes", "sometimes-ddp"),
        ("objectives", "objectives-ddp"),
    ],
)
def test_losses_are_those_of_fp32_but_for_rounding(folder: Path, zero: int, name: str, expected: str) -> None:
    found, plain = losses(folder / f"{name}-{zero}"), losses(folder / expected)
    assert found == pytest.approx(plain, rel=4e-3)  # bf16 has 8 bits: 2^-8
    assert found != pytest.approx(plain, rel=1e-6)


@STAGES
def test_the_fp32_weights_are_saved_and_stay_in_the_module(two: Told, folder: Path, zero: int) -> None:
    model = saved(folder / f"whole-{zero}")
    trained = {name: tensor for name, tensor in model.items() if name != "forwards"}
    for tensor in trained.values():
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, tensor.bfloat16().float())  # as bf16 weights would be
    weights = two[0][f"whole-{zero}"]["weights"]
    assert {name: weights[name] for name in trained} == {
        name: float(tensor.double().sum()) for name, tensor in trained.items()
    }
    assert {tensor.dtype for tensor in saved(folder / f"whole-{zero}", "optimizer").values()} == {
        torch.float32
    }


@STAGES
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(two: Told, folder: Path, zero: int) -> None:
    for rank in two:
        assert rank[f"stopped-{zero}"]["error"][:2] == ["Preempted", 75]
        assert rank[f"resumed-{zero}"]["digest"] == two[0][f"whole-{zero}"]["digest"]
    for name in ("model", "optimizer"):
        found, expected = (saved(folder / f"{run}-{zero}", name) for run in ("resumed", "whole"))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@STAGES
def test_plain_pytorch_goes_on_in_fp32(folder: Path, zero: int) -> None:
    later = losses(folder / f"as-ddp-{zero}")[3:]
    assert later == pytest.approx(losses(folder / "ddp")[3:], rel=5e-4)


@STAGES
def test_slowed_rows_and_idle_weights_do_not_move(folder: Path, zero: int) -> None:
    early, late = (saved(folder / f"paced-{zero}", step=step)["embedding.weight"] for step in (4, 6))
    rows = [0, 5, 11]
    assert torch.equal(early[rows], late[rows]) and not torch.equal(early, late)
    assert not torch.equal(late[rows], late[rows].bfloat16().float()), "those of the beginning, not rounded"
    early, late = (saved(folder / f"sometimes-{zero}", step=step)["idle.weight"] for step in (4, 6))
    assert torch.equal(early, late)


@STAGES
def test_the_best_fp32_weights_are_in_the_module_at_the_end(two: Told, folder: Path, zero: int) -> None:
    told = two[0][f"best-{zero}"]
    best = saved(folder / f"best-{zero}", step=told["result"]["best_step"])
    assert 0 < told["result"]["best_step"] < 6
    assert {name: told["weights"][name] for name in best} == {
        n: float(t.double().sum()) for n, t in best.items()
    }


@STAGES
def test_what_is_not_finite_stops_all_and_nothing_of_the_engine_remains(two: Told, zero: int) -> None:
    for rank in two:
        name, code, text = rank[f"poisoned-{zero}"]["error"]
        assert (name, code) == ("NonFiniteError", 1) and "gradients not finite: head.bias)" in text
        for run in runs(zero):
            assert (rank[run.name]["remains"], rank[run.name]["freed"]) == ([], [True, True])
            if run.step != "poisoned":  # whose second process differs
                assert rank[run.name]["digest"] == two[0][run.name]["digest"]
