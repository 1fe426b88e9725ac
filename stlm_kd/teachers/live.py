"""Live teachers: frozen models that compute distributions, hidden states and attention maps of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.interventions import Plan
from stlm_kd.interventions.rerun import InterventionPass
from stlm_kd.models.forward import head_of, inputs_of
from stlm_kd.models.load import to_device
from stlm_kd.models.outputs import ModelOutputs, OutputSpec, forward_with_outputs
from stlm_kd.teachers import Placement
from stlm_kd.teachers.protocol import TeacherOutput
from stlm_kd.teachers.targets import Dense, Logits


class LiveTeacher:
    """A frozen model of transformers that runs on every batch, up to the deepest layer that is requested.

    Args:
        model: A language model, or a classifier.
        vocabulary: Size of a language model's tokenizer, beyond which its head is padding; None: no padding.
        name: Key of the examples' token ids from its own tokenizer.
        placement: Where its weights are. ``replicate``: on the batch's device. ``offload``: there only during
            the forward pass, and otherwise where they are now; embedding and head stay on the device, since
            they project the outputs later.

    It gets the student's token ids, so both must have one vocabulary; ``stlm_kd.adapt_teacher`` gives a
    teacher the student's. ``OutputSpec`` names outputs; the distribution has (N, V) logits at N tokens:

    >>> import stlm_kd, torch, transformers
    >>> from stlm_kd.distillation.entries import batch_of
    >>> from stlm_kd.models.outputs import OutputSpec
    >>> sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes))
    >>> teacher = stlm_kd.LiveTeacher(model)
    >>> batch = batch_of({"input_ids": torch.tensor([[7, 3, 9]])}, model)
    >>> output = teacher(batch, OutputSpec(head_input=True, sites=frozenset({0})))
    >>> output.distribution.rows(batch.attention_mask).logits(slice(0, 3), 50).shape
    torch.Size([3, 50])
    >>> output.observed.states[0].shape
    torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: int | None = None,
        *,
        name: str = "",
        placement: Placement = "replicate",
    ) -> None:
        self.model: PreTrainedModel = model.eval().requires_grad_(False)
        self.vocabulary = vocabulary
        self.name = name
        self.placement: Placement = placement
        stays = {id(weight) for layer in _outer(model) for weight in layer.parameters()}
        self._resting = [(weight, weight.data) for weight in model.parameters() if id(weight) not in stays]

    @torch.no_grad()
    def __call__(self, batch: AnyBatch, needs: OutputSpec) -> TeacherOutput:
        with self._on(batch.input_ids.device):
            return self.output(
                forward_with_outputs(self.model, inputs_of(batch, self.model, reader=self.name), needs)
            )

    @contextmanager
    def _on(self, device: torch.device) -> Iterator[None]:
        """Keep the whole model on the device within the context."""
        if self.placement != "offload":
            if self.model.device != device:
                to_device(self.model, device)
            yield
            return
        for layer in _outer(self.model):
            layer.to(device)
        for buffer in self.model.buffers():
            buffer.data = buffer.data.to(device)
        try:
            for weight, resting in self._resting:
                weight.data = _moved(resting, device)
            yield
        finally:
            for weight, resting in self._resting:  # frozen, so nothing is copied back
                weight.data = resting

    def part(self, plan: Plan, layers: tuple[int, ...]) -> InterventionPass:
        """The pass that applies an intervention to these layers."""
        return InterventionPass(self.model, layers, plan, reader=self.name)

    @torch.no_grad()
    def after(
        self, batch: AnyBatch, base: TeacherOutput, part: InterventionPass, needs: OutputSpec
    ) -> TeacherOutput:
        """Outputs after an intervention on a batch, whose ``base`` outputs include those it needs."""
        with self._on(batch.input_ids.device):
            return self.output(part.after(batch, base.observed, needs))

    def output(self, observed: ModelOutputs) -> TeacherOutput:
        """Wrap the model's outputs, with its head if they are head inputs."""
        if observed.head_input is not None:
            head = head_of(self.model)
            return TeacherOutput(Dense(observed.head_input, head, self.vocabulary or head.size), observed)
        return TeacherOutput(None if observed.logits is None else Logits(observed.logits), observed)


def _outer(model: PreTrainedModel) -> list[nn.Module]:
    """The embedding and the head."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return [layer for layer in layers if layer is not None]


def _moved(weight: Tensor, device: torch.device) -> Tensor:
    return weight.to(device, non_blocking=True)
