"""A teacher's body stays as it is while its new rows are trained: dropout is off, and still configured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from stlm_kd.adaptation.initialisers import INITIALISERS
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.models.load import save_model
from stlm_kd.pipeline.stages import adaptation
from tests.support.pico import pico_model
from tests.support.road import ADAPT, stlm_kd

DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}


@pytest.fixture(scope="module")
def teacher(road: Path) -> Path:
    """A gpt2 that was trained with dropout, under another tokenizer than the student's."""
    other = load_tokenizer(str(road / "gpt2"))
    model = pico_model("gpt2", vocabulary=len(other))
    for name, value in DROPOUT.items():
        setattr(model.config, name, value)
    save_model(model, other, road / "with-dropout")
    return road / "with-dropout"


def test_a_body_is_run_without_dropout_in_training_and_keeps_it_in_its_configuration(
    teacher: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, seen = adaptation.fit, []

    def watched(step: Any, batches: Any, settings: Any, **named: Any) -> Any:
        step.train()
        (batch,) = batches.step(0)
        losses = [step(batch, step.count(batch)).loss.item() for _ in range(2)]
        seen.append((step.training, losses[0] == losses[1], step.student.transformer.drop.p))
        trained = fit(step, batches, settings, **named)
        assert not any(part.training for part in step.student.modules())
        return trained

    monkeypatch.setattr(adaptation, "fit", watched)
    torch.manual_seed(0)
    teachers = f"teachers=[{{name: g, model: {teacher}, adapt: {ADAPT}}}]"
    result = stlm_kd("adapt-teacher", "-r", "adapts.yaml", teachers, "--output-dir", str(tmp_path))
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    assert seen == [(True, True, 0.1)]
    (saved,) = tmp_path.glob("*/teachers/g")
    config = AutoConfig.from_pretrained(saved)
    assert {name: getattr(config, name) for name in DROPOUT} == DROPOUT


def vocabularies(*folders: Path) -> list[dict[str, int]]:
    """The ids of each folder's tokens."""
    return [load_tokenizer(str(folder)).get_vocab() for folder in folders]


def test_a_teacher_is_adapted_by_what_it_said_of_spans_and_its_body_stays(
    teacher: Path, place: Path, tmp_path: Path
) -> None:
    adapt = ADAPT.replace(
        "{",
        "{init: overlap, norms: true, old_rows_learning_rate: 0, "
        "objective: {self-distillation: 1, cross-entropy: 0.5}, ",
    )
    teachers = f"teachers=[{{name: g, model: {teacher}, adapt: {adapt}}}]"
    result = stlm_kd("adapt-teacher", "-r", "adapts.yaml", teachers, "eval=[]", "--output-dir", str(tmp_path))
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    (stage,) = tmp_path.glob("stages/adapted-*")
    report = json.loads((stage / "report.json").read_text())
    assert report["objective"] == {"self-distillation": 1.0, "cross-entropy": 0.5}
    assert 0.5 < report["aligned"] <= 1
    assert report["trained"] < report["initialised"]
    metrics = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert any("1 nat per token is" in line["message"] for line in metrics if line["kind"] == "note")
    assert {"labels", "spans"} in [set(line.get("losses", {})) for line in metrics]
    old, new = (load_file(folder / "model.safetensors") for folder in (teacher, stage / "model"))
    changed = {name for name in old if name not in new or not torch.equal(old[name], new[name])}
    norms = {name for name in old if ".ln_" in name}
    assert {"transformer.wte.weight"} < changed <= {"transformer.wte.weight", *norms}
    (own, given), rows = vocabularies(teacher, stage / "model"), "transformer.wte.weight"
    kept = {token for token in given if old[rows][own.get(token, 0)].equal(new[rows][given[token]])}
    assert kept == own.keys() & given.keys()
    assert report["trained_parameters"] == sum(new[n].numel() for n in {"transformer.wte.weight", *norms})


@pytest.mark.parametrize("is_full", [False, pytest.param(True, marks=pytest.mark.long)], ids=["one", "all"])
def test_init_auto_takes_what_a_full_measurement_would(
    is_full: bool, teacher: Path, place: Path, tmp_path: Path
) -> None:
    """Each initialiser alone, scored on the whole held-out text by the evaluation, orders them alike."""

    def adapted(init: str) -> dict[str, Any]:
        adapt = ADAPT.replace("{", f"{{init: {init}, ")
        teachers = f"teachers=[{{name: g, model: {teacher}, adapt: {adapt}}}]"
        output = tmp_path / init
        result = stlm_kd(
            "adapt-teacher", "-r", "adapts.yaml", teachers, "eval=[]", "--output-dir", str(output)
        )
        assert result.exit_code == 0, f"{result.output}{result.exception!r}"
        (stage,) = output.glob("stages/adapted-*")
        report: dict[str, Any] = json.loads((stage / "report.json").read_text())
        return {**report, "output": result.output}

    found = adapted("auto")
    losses = found["init_losses"]
    assert [*losses] == [*INITIALISERS] and found["init"] == min(losses, key=losses.__getitem__)
    assert found["init_positions"] <= 0.05 * 2 * 4000 / len(losses)
    assert f"auto: {found['init']}; nats per label on" in found["output"]
    alone = {init: adapted(init) for init in (losses if is_full else [found["init"]])}
    assert found["init"] == min(alone, key=lambda init: alone[init]["initialised"])
    same = alone[found["init"]]
    assert same["init_losses"] == {}
    assert (found["initialised"], found["trained"]) == (same["initialised"], same["trained"])
