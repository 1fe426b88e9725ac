"""How many bytes of a teacher's weights a process holds at each moment of a training step.

Counted from outside of the library: the storages that take part in gathering, alive or not, and those of the
model's parameters. Nothing of ``teachers.units`` or ``teachers.footprint`` is asked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from stlm_kd.data.batch import Batch
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.interventions import Plan
from stlm_kd.interventions.spec import Intervention
from stlm_kd.models.partial_forward import blocks_of
from stlm_kd.teachers import Placement
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.training.protocols import StepOutput
from tests.support.interchange_steps import sources_of
from tests.support.pico import pico_model

WIDTH, LAYERS, POSITIONS = 64, 4, 16
"""Every weight is a multiple of 128 bytes, so that halves need no padding."""
VOCABULARY = {"gpt2": 2048, "bert": 256}
"""The embedding, which is also the head, is the largest module of the one, a block of the other."""


def sizes_of(family: str) -> tuple[int, int]:
    """Bytes of the whole teacher, and of its largest module, counted by hand."""
    tokens, block = VOCABULARY[family] * WIDTH, 12 * WIDTH**2 + 13 * WIDTH
    whole = tokens + POSITIONS * WIDTH + LAYERS * block + 2 * WIDTH  # and a norm
    if family == "bert":  # two segments; a head's transform, its norm and the bias of each token
        whole += 2 * WIDTH + WIDTH**2 + 3 * WIDTH + VOCABULARY[family]
    return 4 * whole, 4 * max(tokens, block)


def teacher_model(family: str) -> PreTrainedModel:
    torch.manual_seed(7)
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY[family], n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=2,
                bos_token_id=0, eos_token_id=0,
            )
        )  # fmt: skip
    return BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY[family], max_position_embeddings=POSITIONS, hidden_size=WIDTH,
            intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2,
        )
    )  # fmt: skip


class TeacherMemory(TorchDispatchMode):
    """Counts after each operation what lives of a model's weights; ``most``: bytes at once."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.gathered: dict[int, tuple[StorageWeakRef, int]] = {}
        self.parts: set[int] = set()
        self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.namespace == "c10d" and "allgather" in func.__name__:
            self._await_release()
            filled, part, *_ = args
            self.parts.add(self._follow(part))
            self._follow(filled)
        self.most = max(self.most, self.held())
        return output

    def held(self) -> int:
        """Bytes of the storages that are alive, each once."""
        self.gathered = {key: one for key, one in self.gathered.items() if not one[0].expired()}
        return sum(
            {**{key: size for key, (_, size) in self.gathered.items()}, **self._of_parameters()}.values()
        )

    def _of_parameters(self) -> dict[int, int]:
        storages = (weight.untyped_storage() for weight in self.model.parameters())
        return {storage._cdata: storage.nbytes() for storage in storages}

    def _follow(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        self.gathered[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return storage._cdata

    def _await_release(self) -> None:
        """Give gloo's thread up to a second to let go of earlier gatherings that no parameter uses."""
        for _ in range(1000):
            self.held()
            if not self.gathered.keys() - self.parts - self._of_parameters().keys():
                return
            time.sleep(1e-3)


class MeasuredStep(DistillationStep):
    """A distillation step that notes what it holds of its teacher, from the second training step on."""

    memory: TeacherMemory

    def forward(
        self,
        batch: Batch,
        denominators: Mapping[str, float] | None = None,
        plans: Mapping[str, Plan] | None = None,
    ) -> StepOutput:
        with self.memory:
            return super().forward(batch, denominators, plans)

    def begin(self, index: int, steps: int, *, is_logged: bool = False) -> None:
        super().begin(index, steps, is_logged=is_logged)
        if index == 1:  # each part has been seen
            self.memory.most = 0

    def held(self) -> dict[str, int]:
        """Bytes between the steps, and at most."""
        return {"between": self.memory.held(), "most": self.memory.most}


def measured_step(
    family: str, placement: Placement = "shard", *, noisy: bool = False, leaks: bool = False
) -> MeasuredStep:
    """A student beside a teacher whose weights are counted.

    Args:
        family: Of both.
        placement: Of the teacher.
        noisy: Whether embeddings of random tokens are mixed into hidden states.
        leaks: The mistake of a block whose weights are not released.
    """
    vocabulary = VOCABULARY[family]
    model = teacher_model(family)
    teacher = LiveTeacher(model, vocabulary, name="t", placement=placement)
    intervention = Intervention(
        "d", {"t": {0: (1,), 1: (2,)}}, source="mixup", options={"noise": "token-embedding"}, fraction=0.5
    )
    terms = [Term("labels", "labels"), Term("kl", "forward_kl", teacher="t")]
    if noisy:
        terms.append(Term("d", "forward_kl", on="attended", teacher="t", intervention=intervention))
    step = MeasuredStep(
        pico_model(family, vocabulary=vocabulary),
        terms,
        teachers={"t": teacher},
        supplies=sources_of("packed"),
    )
    step.memory = TeacherMemory(model)
    if leaks:
        blocks_of(model)[1]._forward_hooks.clear()
    return step


MEASURED = {
    "gpt2-replicate": partial(measured_step, "gpt2", "replicate"),
    "gpt2-shard": partial(measured_step, "gpt2"),
    "gpt2-noisy": partial(measured_step, "gpt2", noisy=True),
    "gpt2-leaks": partial(measured_step, "gpt2", leaks=True),
    "bert-replicate": partial(measured_step, "bert", "replicate"),
    "bert-shard": partial(measured_step, "bert"),
}
