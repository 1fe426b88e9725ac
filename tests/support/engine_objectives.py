"""Every loss there is in one training step, weights and options scheduled, some of it resting at times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

import torch

from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.distillation.hidden_terms import Projections, TermProjections
from stlm_kd.distillation.step import DistillationStep, teacher_needs
from stlm_kd.distillation.terms import Term
from stlm_kd.losses import STATE_LOSSES
from stlm_kd.models.attention_maps import install_maps
from stlm_kd.models.layer_alignment import layer_pairs, site_pairs
from stlm_kd.schedules import Ramp, Steps
from stlm_kd.teachers import COMBINED, Placement
from stlm_kd.teachers.combination.gate import GATE, Gate
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.training.protocols import StepOutput
from tests.support.engine_worker import SignallingBatches
from tests.support.pico import packed_batch, part, pico_model

WIDTHS = {"a": 24, "b": 16}
LAYERS = {"a": 4, "b": 3}
STUDENT_LAYERS = 2
LENGTH = 16
RESTS = Steps(((0.0, 0.5), (0.3, 0.0), (0.6, 0.8)))
"""0 in the third and fourth of six steps."""

TERMS = [
    Term("labels", "labels", weight=Ramp("linear", 1.0, 0.4)),
    Term(
        "forward_kl",
        "forward_kl",
        weight=0.7,
        teacher=COMBINED,
        options={"temperature": Ramp("cosine", 4.0, 1.0, 0.0, 0.7)},
    ),
    Term("reverse_kl", "reverse_kl", weight=RESTS, on="attended", teacher="b", options={"temperature": 1.5}),
    Term("js", "jensen_shannon", weight=0.4, teacher="a", options={"beta": Ramp("linear", 0.2, 0.8)}),
    Term("skew", "skew_forward_kl", weight=0.3, on="attended", teacher="b", options={"alpha": 0.2}),
    Term("mse", "logit_mse", weight=Ramp("cosine", 0.0, 0.1), teacher=COMBINED, options={"centred": True}),
    Term(
        "hint",
        "hint",
        weight=RESTS,
        on="attended",
        teacher="a",
        pairs=site_pairs(["embeddings", "full"], STUDENT_LAYERS, LAYERS["a"]),
    ),
    Term("cosine", "cosine", weight=0.5, teacher="a", pairs=(("last", "last"),)),
    Term(
        "normalised",
        "normalised_mse",
        weight=RESTS,
        on="attended",
        teacher="b",
        pairs=site_pairs("full", STUDENT_LAYERS, LAYERS["b"]),
    ),
    Term(
        "maps",
        "attention_cross_entropy",
        weight=RESTS,
        on="attended",
        teacher="a",
        pairs=layer_pairs("full", STUDENT_LAYERS, LAYERS["a"]),
    ),
    Term(
        "map_mse",
        "attention_mse",
        weight=Ramp("linear", 2.0, 0.0, 0.2, 0.8),
        teacher="b",
        pairs=layer_pairs("first", STUDENT_LAYERS, LAYERS["b"]),
    ),
]


def all_objectives(
    *,
    dtype: torch.dtype = torch.float64,
    method: Literal["chunked", "dense"] = "chunked",
    own_means: bool = False,
    shifted: bool = False,
    placements: Mapping[str, Placement] = MappingProxyType({}),
    tied: bool = True,
) -> DistillationStep:
    """A student, two teachers that are wider or deeper, every loss, and a gate between the teachers.

    Args:
        dtype: Of all weights.
        method: How the vocabulary losses are computed.
        own_means: The mistake of averaging the means of micro-batches.
        shifted: The mistake of labels that are one position off.
        placements: Of teachers; of the others, replicate.
        tied: Whether a teacher's head is its embedding.
    """
    teachers = {
        name: LiveTeacher(
            pico_model("gpt2", width=WIDTHS[name], layers=LAYERS[name], seed=seed, tied=tied).to(dtype),
            61,
            name=name,
            placement=placements.get(name, "replicate"),
        )
        for seed, name in enumerate(WIDTHS, start=5)
    }
    for name, needs in teacher_needs(TERMS, list(teachers), classes=False).items():
        install_maps(teachers[name].model, needs.maps)
    projections = {
        term.name: TermProjections(term.pairs, 16, WIDTHS[str(term.teacher)], term=term.name, seed=1)
        for term in TERMS
        if term.loss in STATE_LOSSES
    }
    kind = OwnMeans if own_means else Shifted if shifted else DistillationStep
    step = kind(
        pico_model("gpt2", layers=STUDENT_LAYERS, tied=False),
        TERMS,
        teachers=teachers,
        combination=Combination("learned"),
        gate=Gate(16, list(WIDTHS)),
        projections=Projections(projections),
        vocabulary_loss=method,
    )
    step.to(dtype)
    return step


class OwnMeans(DistillationStep):
    """Divides by what a micro-batch counts, of which there are two in a step."""

    def forward(self, batch: Batch, denominators: Mapping[str, float], plans: None = None) -> StepOutput:
        own = {name: max(2.0 * count, 1.0) for name, count in self.count(batch).items()}
        return super().forward(batch, own if self.training else denominators, plans)


class Shifted(DistillationStep):
    """Reads each label at the position before it."""

    def forward(self, batch: Batch, denominators: Mapping[str, float], plans: None = None) -> StepOutput:
        labels = batch.labels.roll(-1, dims=1)
        labels[batch.labels == IGNORED] = IGNORED
        labels[(batch.labels != IGNORED) & (labels == IGNORED)] = 0
        return super().forward(replace(batch, labels=labels), denominators, plans)


ROWS = [[9, 5], [12], [3, 3, 4], [16], [2, 7], [11]]
"""Documents of each row, by length."""


class Texts(SignallingBatches):
    """Six rows of text, other ones in each step and four in each third one, dealt out as ``PicoBatches``."""

    def rows_of(self, index: int, count: int) -> Batch:
        return packed_batch(ROWS[:count], length=LENGTH, seed=index)


def held_out_texts() -> list[Batch]:
    return [part(packed_batch(ROWS, length=LENGTH, seed=99), slice(0, 3))]


def weights_at(share: float) -> dict[str, float]:
    """By term, what it weighs when so much of the training is done; terms that rest are left out."""
    own = {name: term.factor for name, term in _at(TERMS, share).items() if term.factor or name == "labels"}
    return {**own, GATE: 1.0}


def _at(terms: Sequence[Term], share: float) -> dict[str, Term]:
    return {term.name: term.at(share) for term in terms}
