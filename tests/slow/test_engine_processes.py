"""Two real processes over gloo against one."""

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stlm_kd.tracking import read_metrics
from tests.support.processes import run_together

SETTINGS = {
    "steps": 6,
    "learning_rate": 1e-2,
    "eps": 1e-3,
    "validate_every": 3,
    "checkpoint_every": 2,
    "log_every": 1,
}


def launch(folder: Path, processes: int, options: dict[str, object]) -> list[tuple[int, str]]:
    """Exit code and stderr of each process."""
    ended = run_together(processes, "tests.support.engine_worker", str(folder), json.dumps(options))
    return [(process.code, process.stderr) for process in ended]


def lines(folder: Path) -> list[tuple[object, float, float]]:
    return [
        (line["kind"], line["step"], value)
        for line in read_metrics(folder / "metrics.jsonl")
        for value in (
            *line["losses"].values(),
            *line.get("measures", {}).values(),
            *(line.get(name, 0.0) for name in ("loss", "tokens", "grad_norm")),
        )
    ]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps of 6, 6 and 4 rows, dealt to two processes, in micro-batches of 2: 2 + 1 rows, then 2."""
    folder = tmp_path_factory.mktemp("two")
    ended = launch(folder, 2, {"settings": SETTINGS, "micro_batch": 2})
    assert [code for code, _ in ended] == [0, 0], ended
    assert "Traceback" not in ended[1][1] and "step" not in ended[1][1]
    return folder


def test_two_processes_report_the_losses_and_gradient_norms_of_one(two: Path, tmp_path: Path) -> None:
    ended = launch(tmp_path, 1, {"settings": SETTINGS, "micro_batch": 6})
    assert ended[0][0] == 0, ended
    expected = lines(tmp_path)
    assert [line[:2] for line in lines(two)] == [line[:2] for line in expected]
    assert [line[2] for line in lines(two)] == pytest.approx([line[2] for line in expected], rel=1e-5)
    assert len(expected) == 6 * (5 + 2) + 2 * 5


def test_both_processes_end_with_the_same_weights(two: Path) -> None:
    told = [json.loads((two / f"result-{rank}.json").read_text()) for rank in range(2)]
    assert told[0]["digest"] == told[1]["digest"]
    assert told[0]["result"]["validation_history"] == told[1]["result"]["validation_history"]


@pytest.mark.parametrize(
    ("first", "after"),
    [
        pytest.param({"signals": {"2": [signal.SIGTERM, 1]}}, 3, id="step", marks=pytest.mark.long),
        # Process 1 waits for the validation of process 0, and would run out of time before its end.
        pytest.param(
            {"signals": {"2": [signal.SIGTERM, 1, 1.0]}, "slow": {"validation": 5.0}}, 3, id="validation"
        ),
        # After the first of three micro-batches, too little is left of the eight seconds.
        pytest.param(
            {"signals": {"0": [signal.SIGTERM, 1]}, "slow": {"0": 1.5}, "micro_batch": 1}, 0, id="slow-step"
        ),
    ],
)
def test_a_signal_to_one_process_stops_both_and_both_go_on_from_there(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: dict[str, object], after: int
) -> None:
    monkeypatch.setenv("STLM_KD_STOP_WITHIN", "8")
    options = {"settings": SETTINGS, "micro_batch": 2}
    ended = launch(tmp_path, 2, {**options, **first})
    assert [code for code, _ in ended] == [75, 75], ended
    assert all(f"stopped by SIGTERM after step {after}; saved" in text for _, text in ended), ended
    ended = launch(tmp_path, 2, options)
    assert [code for code, _ in ended] == [0, 0], ended
    assert lines(tmp_path) == lines(two)
    told = [json.loads((folder / "result-1.json").read_text())["digest"] for folder in (two, tmp_path)]
    assert told[0] == told[1]


def rows_of(folder: Path) -> list[Counter[int]]:
    """How often each row was trained on, in each of two epochs of five steps."""
    found: list[Counter[int]] = [Counter(), Counter()]
    for path in folder.glob("rows-*.json"):
        index = int(path.name.split("-")[1])
        found[index // 5].update(number for number in json.loads(path.read_text()) if number >= 0)
    return found


def last_saved(folder: Path) -> dict[str, torch.Tensor]:
    place = folder / "checkpoints" / "step-00000010"
    saved = {**load_file(place / "model.safetensors"), **load_file(place / "optimizer.safetensors")}
    return {name: tensor for name, tensor in saved.items() if name != "forwards"}  # it counts micro-batches


@pytest.mark.long
@pytest.mark.parametrize(
    "engines",
    [(2, 0, 1), (3, 0, 2), (None, 1, 3)],
    ids=["zero-2-0-1", "zero-3-0-2", "ddp-zero-1-3"],
)
def test_two_one_and_four_processes_go_on_in_the_middle_of_an_epoch(
    tmp_path: Path, engines: tuple[int | None, ...]
) -> None:
    settings = {**SETTINGS, "steps": 10, "checkpoint_every": 4, "validate_every": 5}
    for folder in (tmp_path / "whole", tmp_path / "parts"):
        folder.mkdir()
    options = {"epoch_rows": 26, "micro_batch": 2, "settings": settings}
    ((code, text),) = launch(tmp_path / "whole", 1, {**options, "micro_batch": 6})
    assert code == 0, text
    stops: list[dict[str, object]] = [
        {"2": [signal.SIGTERM, 1]},
        {"6": [signal.SIGTERM, 0]},
        {},
    ]
    for processes, zero, signals in zip((2, 1, 4), engines, stops, strict=True):
        engine = {"settings": {**settings, "zero": zero}, "signals": signals}
        ended = launch(tmp_path / "parts", processes, {**options, **engine})
        assert {code for code, _ in ended} == {75 if signals else 0}, ended
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole") == [Counter(range(26))] * 2
    torch.testing.assert_close(
        last_saved(tmp_path / "parts"), last_saved(tmp_path / "whole"), rtol=1e-4, atol=1e-6
    )
