"""Trainings with interventions: resumed ones end alike, and what is trained for is learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stlm_kd.distillation.hidden_terms import Projections, TermProjections
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.interventions import SourceInputs, WordTokens
from stlm_kd.interventions.spec import Intervention
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.tracking import StepMetrics
from stlm_kd.training import TrainingConfig
from tests.support.engine_pico import VOCABULARY, Memory, PicoBatches, digest, pico_fit
from tests.support.interchange_case import LAST, supplies
from tests.support.pico import packed_batch, pico_model

SETTINGS = TrainingConfig(steps=9, learning_rate=1e-2, checkpoint_every=2, log_every=1)


class Halt(Exception):
    pass


class HaltingMemory(Memory):
    """Stops the training after its fifth step, as a crash would."""

    def step(self, metrics: StepMetrics) -> None:
        super().step(metrics)
        if metrics.step == 5:
            raise Halt


def step_of(source: str, *, dropout: float = 0.0) -> DistillationStep:
    """A student of two layers with a cosine that needs a projection, and its teacher of four."""
    student = pico_model("gpt2", vocabulary=VOCABULARY, layers=2, seed=1)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    teacher = pico_model("llama", vocabulary=VOCABULARY, layers=4, width=24, seed=2)
    intervention = Intervention("diito", {"t": {0: (0, 1), 1: (2, 3)}}, source=source)
    common = {"on": "attended", "teacher": "t", "intervention": intervention}
    return DistillationStep(
        student,
        [
            Term("labels", "labels"),
            Term("diito", "forward_kl", **common, options={"temperature": 2.0}),  # type: ignore[arg-type]  # fields of several types
            Term("cos", "cosine", **common, pairs=LAST),  # type: ignore[arg-type]  # likewise
        ],
        teachers={"t": LiveTeacher(teacher, VOCABULARY, name="t")},
        projections=Projections({"cos": TermProjections(LAST, 16, 24, term="cos", seed=0)}),
        supplies=supplies(),
    )


@pytest.mark.parametrize("source", ["other-example", "mixup"])
def test_a_resumed_training_ends_bit_for_bit_like_an_uninterrupted_one(source: str, tmp_path: Path) -> None:
    whole, told = step_of(source, dropout=0.2), Memory()
    pico_fit(whole, tmp_path / "whole", SETTINGS, tracker=told, validates=False)
    with pytest.raises(Halt):
        pico_fit(
            step_of(source, dropout=0.2), tmp_path / "halted", SETTINGS, tracker=HaltingMemory(),
            validates=False,
        )  # fmt: skip
    resumed, heard = step_of(source, dropout=0.2), Memory()
    batches = PicoBatches()
    pico_fit(resumed, tmp_path / "halted", SETTINGS, tracker=heard, batches=batches, validates=False)
    assert batches.asked[0] > 0
    assert digest(resumed) == digest(whole)
    for told_of, heard_of in zip(told.steps[-len(heard.steps) :], heard.steps, strict=True):
        assert heard_of.losses == told_of.losses
        assert heard_of.measures == told_of.measures != {}


def agreement(step: DistillationStep) -> float:
    """The share of held-out positions where both sides have one favourite after the same interventions."""
    same: list[Tensor] = []
    with torch.no_grad():
        for index in range(8):
            batch = packed_batch([[8]] * 8, length=8, vocabulary=VOCABULARY, seed=1000 + index)
            step.begin(index, 8)
            sides = step.ask(batch, step.drawn(batch))
            after = sides.after["diito"]
            own, said = after.student.head_input, after.teachers["t"].distribution
            assert own is not None and said is not None and sides.head is not None
            mask_BT = after.touched
            theirs = said.rows(mask_BT).logits(slice(None), VOCABULARY).argmax(-1)
            logits = torch.nn.functional.linear(own[mask_BT], sides.head.weight, sides.head.bias)
            same.append((logits.argmax(-1) == theirs).float())
    return float(torch.cat(same).mean())


@pytest.mark.parametrize("source", ["other-example", "in-context-random"])
def test_the_loss_alone_raises_the_agreement_after_interventions(source: str) -> None:
    intervention = Intervention("diito", {"t": {0: (0, 1), 1: (2, 3)}}, source=source)
    teacher = pico_model("llama", vocabulary=VOCABULARY, layers=4, seed=2)
    student = pico_model("llama", vocabulary=VOCABULARY, layers=2, seed=1)
    term = Term(
        "diito", "forward_kl", on="attended", teacher="t", options={"temperature": 2.0},
        intervention=intervention,
    )  # fmt: skip
    given = SourceInputs(0, None, WordTokens(np.arange(VOCABULARY), {}))
    step = DistillationStep(
        student, [term], teachers={"t": LiveTeacher(teacher, VOCABULARY, name="t")}, supplies=given
    ).train()
    before = agreement(step)
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    for index in range(150):
        batch = packed_batch([[8]] * 8, length=8, vocabulary=VOCABULARY, seed=index)
        step.begin(index, 150)
        optimizer.zero_grad()
        step(batch, {name: float(n) for name, n in step.count(batch).items()}).loss.backward()
        optimizer.step()
    after = agreement(step)
    assert before < 0.3 and after > before + 0.2, (before, after)
