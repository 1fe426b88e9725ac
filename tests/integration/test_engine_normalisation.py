"""The same optimizer step, however its rows are cut into micro-batches."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.training import TrainingConfig
from stlm_kd.training.loop import fit
from tests.support.engine_pico import Memory, PicoStep, pico_fit, pico_rows, take

ROWS, STEPS = 6, 3
PLAN = TrainingConfig(STEPS, 1e-2, warmup=0, eps=1e-3, clip=0.5, log_every=1)


class Cut:
    """The rows of each step, cut at the given places."""

    steps_per_epoch = STEPS

    def __init__(self, cuts: Sequence[int], *, blank: bool = False) -> None:
        self.cuts = [0, *cuts, ROWS]
        self.blank = blank

    def step(self, index: int) -> list[Batch]:
        rows = pico_rows(ROWS, index)
        if self.blank:
            rows.labels.fill_(IGNORED)
        bounds = zip(self.cuts, self.cuts[1:], strict=False)
        return [take(rows, range(start, end)) for start, end in bounds]


def trained(
    folder: Path, cuts: Sequence[int], dtype: torch.dtype, *, blank: bool = False
) -> tuple[nn.Module, Memory]:
    step, memory = PicoStep(dtype=dtype), Memory()
    fit(
        step,
        Cut(cuts, blank=blank),
        PLAN,
        folder=folder,
        validation=None,
        tracker=memory,
        resume=False,
        fingerprint="",
    )
    return step, memory


def reference(dtype: torch.dtype) -> tuple[nn.Module, list[float], list[dict[str, float]]]:
    """The same steps with PyTorch's own means over the whole batch and its own optimizer."""
    step = PicoStep(dtype=dtype)
    groups = [
        {"params": [step.embedding.weight, step.head.weight], "weight_decay": PLAN.weight_decay},
        {"params": [step.norm.weight, step.norm.bias, step.head.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=PLAN.betas, eps=PLAN.eps)
    losses, measures = [], []
    for index in range(STEPS):
        rows = pico_rows(ROWS, index)
        hidden = step.norm(step.embedding(rows.input_ids))
        logits = step.head(hidden + step.frozen(hidden))
        squares = logits.square().mean(-1)
        size = squares[rows.attention_mask].mean()
        rare = squares[rows.attention_mask & (rows.input_ids == 0)].mean()
        measures.append({"size/first": squares[:, 0].mean().item(), "size/rare": rare.item()})
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), rows.labels.flatten(), ignore_index=IGNORED)
        total = loss + 0.5 * size
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(step.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = PLAN.learning_rate_at(index)
        optimizer.step()
        losses.append(total.item())
    return step, losses, measures


@settings(deadline=None, max_examples=12)
@given(cuts=st.sets(st.integers(1, ROWS - 1)), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_any_split_into_micro_batches_gives_the_weights_of_one_whole_batch(
    tmp_path_factory: pytest.TempPathFactory, cuts: set[int], dtype: torch.dtype
) -> None:
    step, memory = trained(tmp_path_factory.mktemp("fit"), sorted(cuts), dtype)
    expected, losses, measures = reference(dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for name, weight in expected.named_parameters():
        torch.testing.assert_close(dict(step.named_parameters())[name], weight, rtol=0, atol=tolerance)
    assert [metrics.loss for metrics in memory.steps] == pytest.approx(losses, rel=1e-6)
    for metrics, means in zip(memory.steps, measures, strict=True):
        assert metrics.measures == pytest.approx(means, rel=1e-5)


def test_each_term_is_reported_per_valid_token_of_its_own(tmp_path: Path) -> None:
    _, memory = trained(tmp_path, [1, 4], torch.float64)
    step, rows = PicoStep(dtype=torch.float64), pico_rows(ROWS, 0)
    output = step(rows, {"labels": 1.0, "size": 1.0})
    labels = output.sums["labels"].item() / int((rows.labels != IGNORED).sum())
    size = output.sums["size"].item() / int(rows.attention_mask.sum())
    assert memory.steps[0].losses == pytest.approx({"labels": labels, "size": size}, rel=1e-12)
    assert memory.steps[0].loss == pytest.approx(labels + 0.5 * size, rel=1e-12)
    assert memory.steps[-1].tokens == sum(int(pico_rows(ROWS, i).attention_mask.sum()) for i in range(STEPS))


def test_only_steps_that_are_logged_are_asked_for_measures(tmp_path: Path) -> None:
    class Asked(PicoStep):
        def begin(self, index: int, steps: int, *, is_logged: bool) -> None:
            super().begin(index, steps, is_logged=is_logged)
            asked.append(is_logged)

    asked: list[bool] = []
    memory = Memory()
    plan = TrainingConfig(6, 1e-2, log_every=4)
    pico_fit(Asked(), tmp_path, plan, tracker=memory, validates=False)
    assert asked == [True, False, False, True, False, True]
    assert [metrics.step for metrics in memory.steps if metrics.measures] == [1, 4, 6]


def test_a_step_without_a_labelled_token_trains_the_other_terms(tmp_path: Path) -> None:
    _, memory = trained(tmp_path, [3], torch.float64, blank=True)
    assert [metrics.losses["labels"] for metrics in memory.steps] == [0.0] * STEPS
    assert memory.steps[-1].losses["size"] < memory.steps[0].losses["size"]


def test_accumulation_named_in_the_environment_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = trained(tmp_path / "a", [2], torch.float64)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    step, _ = trained(tmp_path / "b", [2], torch.float64)
    assert torch.equal(step.head.weight, expected.head.weight)
