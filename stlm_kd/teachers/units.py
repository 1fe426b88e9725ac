"""Weights that are on a device only while a module uses them: kept on the CPU, or divided over the processes.

A unit is a set of weights that the same modules read: those of a block, an embedding or a final norm; a tied
embedding and head share one. Hooks fetch a module's units before it runs and release them afterwards, so that
a model run in parts, or without its head, works alike. For frozen models, without gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel

from stlm_kd.distributed import join_processes, require_all_processes
from stlm_kd.errors import ModelError
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.partial_forward import blocks_of

_ALIGNED = 64
"""Bytes at whose multiples a gathered weight begins, as those that PyTorch allocates alone on a CPU do:
matrix products may round differently elsewhere."""


class Unit(Protocol):
    """Weights that are fetched and released together."""

    def fetch(self, device: torch.device) -> Sequence[Tensor]:
        """The whole weights on a device, in order."""

    @property
    def resting(self) -> Sequence[Tensor]:
        """What stands in for the weights while they are not used, in order."""


class OffloadedUnit:
    """Weights that stay where they are, and are copied to the device."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.resting = [weight.data for weight in weights]

    def fetch(self, device: torch.device) -> list[Tensor]:
        return [_moved(resting, device) for resting in self.resting]


class ShardedUnit:
    """Weights of which each process keeps an equal part; all processes must fetch them alike.

    Attributes:
        own: This process's part, (bytes,) uint8; its device is that of the gathering.
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.shapes = [weight.shape for weight in weights]
        self.dtype = weights[0].dtype
        self.begins = [0]
        for weight in weights:
            self.begins.append(_rounded_up(self.begins[-1] + weight.nbytes))
        count, rank = distributed.get_world_size(), distributed.get_rank()
        self.size = _rounded_up(-(-self.begins[-1] // count)) * count
        whole = torch.zeros(self.size, dtype=torch.uint8)
        for weight, begin in zip(weights, self.begins, strict=False):
            whole[begin : begin + weight.nbytes] = _as_bytes(weight.data.cpu())
        self.own = whole.view(count, -1)[rank].clone()
        # NaN, so that a use outside of the hooks is noticed; a single value in memory.
        self.resting = [torch.full((), torch.nan, dtype=self.dtype).expand(shape) for shape in self.shapes]

    def fetch(self, device: torch.device) -> list[Tensor]:
        self.own = self.own.to(device)
        whole = torch.empty(self.size, dtype=torch.uint8, device=device)
        _all_gather(whole, self.own)
        return [
            whole[begin : begin + shape.numel() * self.dtype.itemsize].view(self.dtype).view(shape)
            for shape, begin in zip(self.shapes, self.begins, strict=False)
        ]


class _Held:
    """A unit, its weights, and the number of modules that use them now."""

    def __init__(self, unit: Unit, weights: Sequence[nn.Parameter]) -> None:
        self.unit, self.weights, self.users = unit, weights, 0
        self._put(unit.resting)

    def take(self, device: torch.device) -> None:
        if not self.users:
            self._put(self.unit.fetch(device))
        self.users += 1

    def release(self) -> None:
        self.users -= 1
        if not self.users:
            self._put(self.unit.resting)

    def _put(self, tensors: Sequence[Tensor]) -> None:
        for weight, tensor in zip(self.weights, tensors, strict=True):
            weight.data = tensor


class FetchedWeights:
    """The weights of a model as units, which hooks on its modules fetch and release.

    ``device``, that of the next forward pass, is set by the caller. ``without``: modules whose weights stay
    as they are.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        kind: Callable[[Sequence[nn.Parameter]], Unit],
        *,
        without: Collection[nn.Module] = (),
    ) -> None:
        self.device = torch.device("cpu")
        readers: dict[nn.Parameter, list[nn.Module]] = {}
        for module, weights in _readers(model, without):
            for weight in weights:
                readers.setdefault(weight, []).append(module)
        alike: dict[tuple[object, ...], list[nn.Parameter]] = {}
        for weight, modules in readers.items():
            alike.setdefault((weight.dtype, *map(id, modules)), []).append(weight)
        self._units: dict[nn.Module, list[_Held]] = {}
        self._of_weight: dict[nn.Parameter, _Held] = {}
        for weights in alike.values():
            held = _Held(kind(weights), weights)
            self._of_weight |= dict.fromkeys(weights, held)
            for module in readers[weights[0]]:
                self._units.setdefault(module, []).append(held)
        for module in self._units:
            module.register_forward_pre_hook(self._take)
            module.register_forward_hook(self._release, always_call=True)

    def _take(self, module: nn.Module, _args: object) -> None:
        for held in self._units[module]:
            held.take(self.device)

    def _release(self, module: nn.Module, _args: object, _output: object) -> None:
        for held in self._units[module]:
            held.release()

    @contextmanager
    def whole(self, *weights: Tensor | None) -> Iterator[None]:
        """Keep the units of these weights on the device within the context."""
        found = dict.fromkeys(
            self._of_weight[weight]
            for weight in weights
            if isinstance(weight, nn.Parameter) and weight in self._of_weight
        )
        with ExitStack() as stack:
            for held in found:
                held.take(self.device)
                stack.callback(held.release)
            yield


def sharded(model: PreTrainedModel) -> FetchedWeights:
    """Divide a model's weights over the processes, all of which must call this.

    Raises:
        ModelError: The family is not in ``ARCHITECTURES``.
    """
    require_all_processes("placement: shard")
    join_processes()
    if model.config.model_type not in ARCHITECTURES:
        raise ModelError(f"placement: shard: {unshardable(model.config.model_type)}")
    return FetchedWeights(model, ShardedUnit)


def offloaded(model: PreTrainedModel, *, without: Collection[nn.Module]) -> FetchedWeights:
    """Leave a model's weights where they are, but for those of some modules, and copy them to the device."""
    return FetchedWeights(model, OffloadedUnit, without=without)


def unshardable(model_type: str) -> str:
    """The message that a family cannot be divided over processes."""
    return (
        f"the blocks of {model_type} are unknown, so it cannot be divided over the processes; known: "
        f"{', '.join(ARCHITECTURES)}. Use placement: offload, or register_family"
    )


def largest_fetched(model: PreTrainedModel, *, without: Collection[nn.Module] = ()) -> int:
    """Bytes of the weights of the module that reads the most of them: a block, or an embedding or head."""
    return max(sum(weight.nbytes for weight in weights) for _, weights in _readers(model, without))


def _readers(
    model: PreTrainedModel, without: Collection[nn.Module]
) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """The modules to hook with the weights that each reads: blocks, and all modules outside of them.

    The whole body counts as one block where the blocks are unknown.
    """
    left_out = {weight for module in without for weight in module.parameters()}
    is_known = model.config.model_type in ARCHITECTURES
    blocks: list[nn.Module] = [*dict.fromkeys(blocks_of(model))] if is_known else [model.base_model]
    inside = {part for block in blocks for part in block.modules()}
    for block in blocks:
        yield block, [weight for weight in block.parameters() if weight not in left_out]
    for module in model.modules():
        if module not in inside:
            yield module, [w for w in module.parameters(recurse=False) if w not in left_out]


def _all_gather(whole: Tensor, own: Tensor) -> None:
    # torch 2.13 renamed it; the old name warns.
    gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
    gather(whole, own)


def _moved(weight: Tensor, device: torch.device) -> Tensor:
    return weight.to(device, non_blocking=True)


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _rounded_up(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
