"""NaN and infinity are somebody's: the teacher or the student is named, the step, and a cure that fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.train import train
from stlm_kd.errors import NonFiniteError
from stlm_kd.models.outputs import OutputSpec
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.targets import Logits
from stlm_kd.training.config import TrainingConfig
from tests.support.pico import packed_batch, pico_model

BATCH = packed_batch([[5, 7], [12], [3, 3, 4]], length=12)
OBJECTIVE = [{"loss": "labels"}, {"loss": "forward_kl", "temperature": 2.0}]


def spoil(model: PreTrainedModel, *, value: float, name: str = "layers.1.mlp.up_proj.weight") -> None:
    with torch.no_grad():
        model.base_model.get_parameter(name)[0] = value


class Stored(LiveTeacher):
    """Its outputs, as if read from a disk, are NaN at one position."""

    def __call__(self, batch, needs: OutputSpec):  # type: ignore[no-untyped-def]
        output = super().__call__(batch, needs)
        values = output.distribution.logits((slice(None), slice(None)), 61)
        values[0, 2] = float("nan")
        return replace(output, distribution=Logits(values), observed=replace(output.observed, logits=values))


@pytest.mark.parametrize(
    ("spoilt", "kind", "whose"),
    [
        pytest.param(
            lambda student, teacher: spoil(teacher, value=float("nan")),
            LiveTeacher,
            "teacher a (its weights model.layers.1.mlp.up_proj.weight)",
            id="weights of a teacher",
        ),
        pytest.param(
            lambda student, teacher: spoil(teacher, value=3e38, name="embed_tokens.weight"),
            LiveTeacher,
            "teacher a (its outputs)",
            id="a teacher that overflows",
        ),
        pytest.param(lambda *_: None, Stored, "teacher a (its outputs)", id="stored outputs"),
        pytest.param(
            lambda student, teacher: spoil(student, value=float("inf")),
            LiveTeacher,
            "the student (its weights model.layers.1.mlp.up_proj.weight)",
            id="weights of the student",
        ),
    ],
)
def test_who_is_not_finite_is_named(
    spoilt: Callable[..., None], kind: type[LiveTeacher], whose: str, tmp_path: Path
) -> None:
    student, teacher = pico_model(seed=1), pico_model(seed=2)
    spoilt(student, teacher)
    step = DistillationStep(student, OBJECTIVE, teachers={"a": kind(teacher)})
    with pytest.raises(NonFiniteError) as caught:
        train(step, [BATCH], TrainingConfig(steps=2), folder=tmp_path)
    message = str(caught.value)
    assert message.startswith("step 1: ")
    assert f"Not finite: {whose}." in message
    assert ("leave it out" in message) == whose.startswith("teacher")
    assert ("smaller learning rate" in message) == whose.startswith("the student")


def test_nobody_is_named_where_all_is_finite() -> None:
    step = DistillationStep(pico_model(seed=1), OBJECTIVE, teachers={"a": LiveTeacher(pico_model(seed=2))})
    assert step.not_finite(BATCH) == []
