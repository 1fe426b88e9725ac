"""A student and a teacher with an intervention, both the library's way and the plain one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stlm_kd.data.batch import IGNORED, TENSORS, Batch
from stlm_kd.distillation.hidden_terms import Projections, TermProjections
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.interventions import Plan, SourceInputs, WordTokens
from stlm_kd.interventions.spec import Intervention
from stlm_kd.models.forward import model_inputs
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.live import LiveTeacher
from tests.support.pico import packed_batch, part, pico_model
from tests.support.six_passes import Run, cosine_sum, counterfactual, kl_sum, labels_sum, whole_run

FAMILIES = ("bert", "distilbert", "gpt2", "llama", "mobillama", "qwen2", "phi3")
LAST = (("last", "last"),)
LAYOUTS = {
    "full": [[8], [8], [8]],
    "padded": [[8], [5], [6]],
    "packed": [[3, 5], [4, 2], [8]],
}
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "batch": ("other-example", {}),
    "pool": ("other-example", {"pairing": "independent"}),
    "in-context": ("in-context-random", {}),
    "tokens": ("input-tokens", {}),
    "mixup": ("mixup", {}),
    "mixup-residual": ("mixup", {"map": "residual"}),
    "mixup-matched": ("mixup", {"noise": "matched", "map": "residual"}),
    "mixup-token": ("mixup", {"noise": "token-embedding"}),
}


class Rows:
    """A pool of given rows."""

    def __init__(self, batch: Batch) -> None:
        self.rows = batch

    def __len__(self) -> int:
        return len(self.rows.input_ids)

    def number(self, place: int) -> int:
        return int(self.rows.example_ids[place])

    def batch(self, places: Sequence[int], generators: Sequence[np.random.Generator]) -> Batch:
        assert len(places) == len(generators)
        picked = [part(self.rows, slice(place, place + 1)) for place in places]
        return Batch(*(torch.cat([getattr(row, name) for row in picked]) for name in TENSORS))


def supplies(seed: int = 0) -> SourceInputs:
    more = packed_batch([[8], [3, 4], [5], [2, 2, 4]], length=8, seed=9)
    pool = Rows(replace(more, example_ids=torch.arange(10, 14)))
    return SourceInputs(seed, pool, WordTokens(np.arange(5, 61), {}))


def base_batch(layout: str, *, masked: bool) -> Batch:
    """Rows of documents; for masked models every third position has a label."""
    batch = packed_batch(LAYOUTS[layout], length=8, seed=3)
    if not masked:
        return batch
    drawn_BT = batch.attention_mask & (torch.arange(8) % 3 == 1)
    return replace(batch, labels=batch.input_ids.masked_fill(~drawn_BT, IGNORED))


@dataclass
class Case:
    """A student and a teacher with all objectives."""

    step: DistillationStep
    batch: Batch
    temperature: float = 2.0

    @property
    def teacher(self) -> LiveTeacher:
        teacher = self.step.teachers["t"]
        assert isinstance(teacher, LiveTeacher)
        return teacher

    def plan(self) -> Plan:
        return self.step.drawn(self.batch)["diito"]

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        self.step.zero_grad()
        loss.backward()
        return {n: p.grad.clone() for n, p in self.step.named_parameters() if p.grad is not None}

    def ours(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        counts = {name: float(count) for name, count in self.step.count(self.batch).items()}
        output = self.step(self.batch, counts)
        return {n: float(v) / counts[n] for n, v in output.sums.items()}, self.gradients(output.loss)

    def plainly(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        plan, batch, mask_BT = self.plan(), self.batch, self.batch.attention_mask
        student, teacher = self.step.student, self.teacher.model
        own, own_after = both(student, batch, plan, (plan.student_layer,))
        with torch.no_grad():
            other, other_after = both(teacher, batch, plan, plan.teacher_layers["t"])
        projections = self.step.projections.of("cos")
        projected = projections(own_after.last.flatten(0, 1), ("last", "last")).view(other.last.shape)
        labelled_BT = batch.labels != IGNORED
        losses = {
            "labels": labels_sum(own.logits, batch) / labelled_BT.sum(),
            "kl": kl_sum(own.logits, other.logits, labelled_BT, 1.0) / labelled_BT.sum(),
            "diito": kl_sum(own_after.logits, other_after.logits, mask_BT, self.temperature) / mask_BT.sum(),
            "cos": cosine_sum(projected, other_after.last, mask_BT) / mask_BT.sum(),
        }
        total = sum(losses.values(), torch.zeros(()))
        return {n: float(v.detach()) for n, v in losses.items()}, self.gradients(total)


def both(model: nn.Module, batch: Batch, plan: Plan, layers: tuple[int, ...]) -> tuple[Run, Run]:
    return whole_run(model, model_inputs(batch, model)), counterfactual(model, batch, plan, layers)


def case_of(
    student: str,
    teacher: str,
    layout: str,
    intervention: Intervention,
    *,
    attention: str = "sdpa",
    width: int = 16,
    layers: tuple[int, int] = (2, 4),
    checkpointing: bool = False,
) -> Case:
    made = pico_model(student, layers=layers[0], attention=attention, seed=1).double()
    other = pico_model(teacher, layers=layers[1], attention=attention, width=width, seed=2).double()
    if checkpointing:
        made.gradient_checkpointing_enable({"use_reentrant": False})
    options = {"temperature": 2.0}
    terms = [
        Term("labels", "labels"),
        Term("kl", "forward_kl", teacher=COMBINED),
        Term(
            "diito", "forward_kl", on="attended", teacher=COMBINED, options=options, intervention=intervention
        ),
        Term("cos", "cosine", on="attended", teacher="t", pairs=LAST, intervention=intervention),
    ]
    step = DistillationStep(
        made,
        terms,
        teachers={"t": LiveTeacher(other, 61, name="t")},
        projections=Projections({"cos": TermProjections(LAST, 16, width, term="cos", seed=0)}).double(),
        supplies=supplies(),
    ).train()
    step.begin(3, 10)
    return Case(step, base_batch(layout, masked=student in ("bert", "distilbert")))


def assert_same(case: Case) -> None:
    losses, slopes = case.ours()
    expected, slopes_expected = case.plainly()
    assert losses == pytest.approx(expected, rel=1e-6)
    assert slopes.keys() == slopes_expected.keys()
    largest = max(float(slope.abs().max()) for slope in slopes_expected.values())
    for name, slope in slopes_expected.items():
        assert float((slopes[name] - slope).abs().max()) < 1e-6 * largest, name


MAPS = [{0: (0, 1), 1: (2, 3)}, {0: (1,)}, {0: (0, 2)}, {1: (1, 3)}]
