"""Whole optimizer steps with interventions: packed text, masked text and examples, in any micro-batches."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from stlm_kd.data.batches import BatchStream, PackedRows
from stlm_kd.data.labelled.batches import AnyBatch, EncodedExamples, ExampleStream
from stlm_kd.data.labelled.encoding import EncodedTexts
from stlm_kd.data.masking import Masking
from stlm_kd.distillation.hidden_terms import Projections, TermProjections
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.interventions import SourceInputs, SourcePool, WordTokens
from stlm_kd.interventions.example_pool import ExamplePool, TextPool
from stlm_kd.interventions.spec import Intervention
from stlm_kd.teachers import Placement
from stlm_kd.teachers.live import LiveTeacher
from tests.support.interchange_case import LAST, SOURCES
from tests.support.pico import pico_model
from tests.support.stores import store_of

VOCABULARY, CONTEXT, WIDTH = 61, 12, 24
LAYERS = {"t": {0: (0, 1), 1: (2, 3)}}
Kind = Literal["packed", "masked", "examples"]
KINDS: tuple[Kind, ...] = ("packed", "masked", "examples")
MASKING = Masking(np.ones(VOCABULARY), mask_id=2, share=0.3)


def packed(*, wrapped: bool = False, weight: float = 1.0) -> PackedRows:
    """Some forty rows; several documents share a row, and long ones go on in another."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 22, 60)
    bodies = [generator.integers(3, VOCABULARY, size).tolist() for size in sizes]
    return PackedRows(store_of(bodies), CONTEXT, wrapped=wrapped, weight=weight)


def examples() -> EncodedExamples:
    """Thirty-seven examples of one to twelve tokens."""
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, CONTEXT + 1, 37)
    ids = [generator.integers(3, VOCABULARY, length) for length in lengths]
    offsets = np.cumsum([0, *lengths])
    texts = EncodedTexts(
        np.concatenate(ids).astype(np.int32), None, offsets, CONTEXT, padding=1, truncated=0, multiple=1
    )
    return EncodedExamples(generator.integers(0, 3, 37), texts)


def stream(
    kind: Kind, *, effective: int = 16, micro: int, rank: int = 0, world_size: int = 1, pairs: bool = True
) -> BatchStream | ExampleStream:
    """Batches of a process."""
    if kind == "examples":
        return ExampleStream(
            examples(), effective_batch=effective, micro_batch=micro, seed=4, rank=rank,
            world_size=world_size, forward_cost=10, pairs=pairs,
        )  # fmt: skip
    masked = kind == "masked"
    return BatchStream(
        [packed(wrapped=masked)], effective_batch=effective, micro_batch=micro, seed=4, rank=rank,
        world_size=world_size, masking=MASKING if masked else None, pairs=pairs,
    )  # fmt: skip


def step_of(
    kind: Kind,
    source: str = "batch",
    *,
    positions: str = "consecutive",
    placement: Placement = "replicate",
    dtype: torch.dtype = torch.float64,
) -> DistillationStep:
    """A student of two layers beside a teacher of four, with every loss after an intervention.

    Args:
        kind: What they read.
        source: Name in ``interchange_case.SOURCES``.
        positions: How places are drawn.
        placement: Of the teacher.
        dtype: Of all weights.
    """
    where, options = SOURCES[source]
    intervention = Intervention(
        "d", LAYERS, source=where, options=options, positions=positions, fraction=0.5  # type: ignore[arg-type]  # a literal
    )  # fmt: skip
    common = {"on": "attended", "teacher": "t", "intervention": intervention}
    terms = [
        Term("labels", "labels"),
        Term("kl", "forward_kl", teacher="t"),
        Term("diito", "forward_kl", **common, options={"temperature": 2.0}),  # type: ignore[arg-type]  # fields of several types
        Term("cos", "cosine", **common, pairs=LAST),  # type: ignore[arg-type]  # likewise
    ]
    student, teacher = (model_of(kind, layers, width) for layers, width in ((2, 16), (4, WIDTH)))
    step = DistillationStep(
        student.to(dtype),
        terms,
        teachers={
            "t": LiveTeacher(
                teacher.to(dtype),
                None if kind == "examples" else VOCABULARY,
                name="t",
                placement=placement,
            )
        },
        projections=Projections({"cos": TermProjections(LAST, 16, WIDTH, term="cos", seed=0)}).to(dtype),
        supplies=sources_of(kind),
    )
    return step.train()


def model_of(kind: Kind, layers: int, width: int) -> PreTrainedModel:
    """A model of the kind's task."""
    if kind != "examples":
        family = "gpt2" if kind == "packed" else "bert"  # llama's norms are in float32, whatever its weights
        return pico_model(family, layers=layers, width=width, seed=layers)
    torch.manual_seed(layers)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_labels=3, initializer_range=0.3, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=64,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def sources_of(kind: Kind) -> SourceInputs:
    """What interventions draw from."""
    return SourceInputs(0, _pool(kind), WordTokens(np.arange(5, VOCABULARY), {}))


def _pool(kind: Kind) -> SourcePool:
    if kind == "examples":
        return ExamplePool(examples())
    masked = kind == "masked"
    return TextPool([packed(wrapped=masked)], MASKING if masked else None)


def held_out_pairs(kind: Kind = "packed") -> list[AnyBatch]:
    """Two rows of what the step reads."""
    return [stream(kind, effective=2, micro=2).step(0)[0]]


class PairedTexts:
    """Rows that are sources of each other, so many in a step, dealt to processes."""

    def __init__(
        self, *, rank: int, world_size: int, micro_batch: int, kind: Kind = "packed", effective: int = 16
    ) -> None:
        self.signals: dict[str, list[int]] = {}
        self._stream = stream(kind, effective=effective, micro=micro_batch, rank=rank, world_size=world_size)

    def step(self, index: int) -> list[AnyBatch]:
        return [*self._stream.step(index)]
