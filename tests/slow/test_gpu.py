"""On a GPU: ``make test-gpu``. ``STLM_KD_TEST_DEVICE=cpu`` rehearses the same tests without one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from stlm_kd.losses import LOSSES
from tests.integration.test_diito_training import (
    test_a_resumed_training_ends_bit_for_bit_like_an_uninterrupted_one as assert_resumed,
)
from tests.integration.test_road_cache import losses, taught
from tests.support.loss_checks import CASES, Options, case_name, logits, target_of
from tests.support.pico import packed_batch, pico_model
from tests.support.road import distilled

DEVICE = os.environ.get("STLM_KD_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU is at hand: nothing here ran on one"
)
OBJECTIVES = (
    "[{loss: labels, weight: 0.5}, {loss: forward_kl, weight: 0.5}, "
    "{loss: diito, weight: 0.2, alignment: last}]"
)
STEPS = "train.steps=30"


@pytest.mark.parametrize(("name", "options"), CASES, ids=case_name)
def test_a_loss_and_its_gradient_are_those_of_float64_on_the_cpu(name: str, options: Options) -> None:
    found = []
    for device, dtype in ((DEVICE, torch.float32), ("cpu", torch.float64)):
        student = logits(0).to(device, dtype).requires_grad_()
        target = target_of(name, 1).to(device)
        target = target.to(dtype) if target.is_floating_point() else target
        values = LOSSES[name](student, target, **options)
        (slope,) = torch.autograd.grad(values.sum(), student)
        found.append((values.detach().cpu().double(), slope.cpu().double()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_a_packed_document_is_read_as_if_it_were_alone(precision: torch.dtype, tolerance: float) -> None:
    """Under SDPA with a block-diagonal causal mask; in bf16 against float32 on the CPU."""
    model, batch = pico_model("llama"), packed_batch([(5, 3, 4)], length=12)
    same = batch.document_ids[:, :, None] == batch.document_ids[:, None]
    mask = (same & torch.ones(12, 12).tril().bool())[:, None]
    with torch.no_grad():
        alone = [model(input_ids=ids[None]).logits[0] for ids in batch.input_ids[0].split([5, 3, 4])]
        model.to(DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision is torch.bfloat16):
            packed = model(
                input_ids=batch.input_ids.to(DEVICE),
                attention_mask=mask.to(DEVICE),
                position_ids=batch.position_ids.to(DEVICE),
            ).logits[0]
    expected = torch.cat(alone)
    assert float((packed.cpu().float() - expected).abs().max()) < tolerance * float(expected.abs().max())


def test_a_distillation_learns_with_live_and_cached_teachers_in_float32_and_bf16(
    place: Path, tmp_path: Path
) -> None:
    live = taught(place, "gpu-live", "[{name: a, model: same}]", OBJECTIVES)
    whole = distilled(live, STEPS, output_dir=tmp_path)
    half = distilled(live, STEPS, "train.precision=bf16", output_dir=tmp_path)
    cached = distilled(
        taught(place, "gpu-cached", "[{name: a, model: same, cache: auto}]"), STEPS, output_dir=tmp_path
    )
    for run in (whole, half, cached):
        assert losses(run, "labels")[-1] < losses(run, "labels")[0] - 0.2
    assert losses(half, "diito") == pytest.approx(losses(whole, "diito"), rel=0.1, abs=0.02)
    assert losses(cached)[0] == pytest.approx(losses(whole)[0], rel=0.05)


def test_a_resumed_training_with_interventions_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    assert_resumed("other-example", tmp_path)
