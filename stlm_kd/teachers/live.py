"""Live teachers: frozen models that compute distributions, hidden states and attention maps of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stlm_kd.data.labelled.batches import AnyBatch, on_cpu
from stlm_kd.distributed import launched_processes
from stlm_kd.interventions import Plan
from stlm_kd.interventions.rerun import InterventionPass
from stlm_kd.models.forward import head_of, inputs_of
from stlm_kd.models.load import to_device
from stlm_kd.models.outputs import ModelOutputs, OutputSpec, forward_with_outputs
from stlm_kd.teachers import Placement
from stlm_kd.teachers.protocol import TeacherOutput
from stlm_kd.teachers.targets import Dense, Logits
from stlm_kd.teachers.units import FetchedWeights, offloaded, sharded


class LiveTeacher:
    """A frozen model of transformers that runs on every batch, up to the deepest layer that is requested.

    Args:
        model: A language model, or a classifier.
        vocabulary: Size of a language model's tokenizer, beyond which its head is padding; None: no padding.
        name: Key of the examples' token ids from its own tokenizer.
        placement: Where its weights are. ``replicate``: on the batch's device. ``shard``: divided over the
            processes, all of which must call it alike; each block is gathered on the batch's device while it
            runs. ``offload``: where they are now; each block is copied to the batch's device while it runs,
            but for embedding and head, which stay there. ``cpu``: on the CPU, where it also runs. A single
            process replicates what it would shard.

    Raises:
        ModelError: ``shard`` for a family whose blocks are unknown.

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
        self._weights: FetchedWeights | None = None
        if self.is_sharded:
            self._weights = sharded(model)
        elif placement == "offload":
            self._weights = offloaded(model, without=outer_layers(model))

    @property
    def is_sharded(self) -> bool:
        """Whether several processes hold parts of the weights, so that all must call it alike."""
        return self.placement == "shard" and launched_processes() > 1

    @torch.no_grad()
    def __call__(self, batch: AnyBatch, needs: OutputSpec) -> TeacherOutput:
        device = batch.input_ids.device
        with self._on(device) as place:
            inputs = inputs_of(_at(batch, place), self.model, reader=self.name)
            return self.output(forward_with_outputs(self.model, inputs, needs).to(device))

    @contextmanager
    def _on(self, device: torch.device) -> Iterator[torch.device]:
        """Prepare a forward pass for a batch on a device; returns the device that the model runs on."""
        if self.placement == "cpu":
            dtype, is_enabled = torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)
            with torch.autocast("cpu", dtype, enabled=is_enabled):
                yield torch.device("cpu")
            return
        if self._weights is None:
            if self.model.device != device:
                to_device(self.model, device)
        else:
            self._weights.device = device
            if self.placement == "offload":
                for layer in outer_layers(self.model):
                    layer.to(device)
            for buffer in self.model.buffers():
                buffer.data = buffer.data.to(device)
        yield device

    def whole_head(self) -> AbstractContextManager[None]:
        """Within this context, the head can project: a sharded one is gathered, by all processes together."""
        head = self.model.get_output_embeddings()
        if self._weights is None or head is None:
            return nullcontext()
        return self._weights.whole(*head.parameters())

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The whole weights by name, each valid until the next one is asked for."""
        for name, weight in self.model.named_parameters():
            with nullcontext() if self._weights is None else self._weights.whole(weight):
                yield name, weight

    def part(self, plan: Plan, layers: tuple[int, ...]) -> InterventionPass:
        """The pass that applies an intervention to these layers."""
        if self.placement == "cpu":
            plan = plan.to(torch.device("cpu"))
        return InterventionPass(self.model, layers, plan, reader=self.name)

    @torch.no_grad()
    def after(
        self, batch: AnyBatch, base: TeacherOutput, part: InterventionPass, needs: OutputSpec
    ) -> TeacherOutput:
        """Outputs after an intervention on a batch, whose ``base`` outputs include those it needs."""
        device = batch.input_ids.device
        with self._on(device) as place:
            return self.output(part.after(_at(batch, place), base.observed.to(place), needs).to(device))

    def output(self, observed: ModelOutputs) -> TeacherOutput:
        """Wrap the model's outputs, with its head if they are head inputs."""
        hidden = observed.head_input
        if hidden is None:
            return TeacherOutput(None if observed.logits is None else Logits(observed.logits), observed)
        head = head_of(self.model)
        vocabulary = self.vocabulary or head.size
        if self.placement == "cpu":
            return TeacherOutput(Dense(hidden.cpu(), head, vocabulary, hidden.device), observed)
        return TeacherOutput(Dense(hidden, head, vocabulary), observed)


def _at(batch: AnyBatch, device: torch.device) -> AnyBatch:
    """A batch where the model runs, without waiting for the device where it was moved from the CPU."""
    if batch.input_ids.device == device:
        return batch
    return on_cpu(batch)


def outer_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The embedding and the head."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return [layer for layer in layers if layer is not None]
