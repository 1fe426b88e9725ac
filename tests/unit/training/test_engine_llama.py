"""The loop with the project's own step module and real architectures."""

from pathlib import Path

import pytest
import torch

from stlm_kd.data.batch import Batch
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.training import TrainingConfig
from stlm_kd.training.loop import fit
from tests.support.engine_pico import Memory, digest
from tests.support.pico import packed_batch, pico_model

PLAN = TrainingConfig(
    steps=12, learning_rate=2e-2, validate_every=6, keep="best", checkpoint_every=4, log_every=1
)


class OneText:
    """The same two rows at each step, as two micro-batches."""

    steps_per_epoch = 1

    def step(self, index: int) -> list[Batch]:
        return [packed_batch([[9, 5]], length=16), packed_batch([[12]], length=16, seed=1)]


def train(folder: Path, family: str, memory: Memory) -> DistillationStep:
    step = DistillationStep(pico_model(family), [Term("labels", "labels")])
    fit(
        step,
        OneText(),
        PLAN,
        folder=folder,
        validation=lambda: OneText().step(0),
        tracker=memory,
        resume=True,
        fingerprint=family,
    )
    return step


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_pico_model_learns_a_text_by_heart_and_a_finished_run_gives_it_back(
    tmp_path: Path, family: str
) -> None:
    memory = Memory()
    step = train(tmp_path, family, memory)
    losses = [metrics.losses["labels"] for metrics in memory.steps]
    assert losses[-1] < 0.5 * losses[0]
    assert memory.validations[-1].losses["labels"] < losses[-1]
    again = train(tmp_path, family, Memory())
    assert digest(again) == digest(step)
    assert torch.equal(
        again.student.get_output_embeddings().weight, again.student.get_input_embeddings().weight
    )
