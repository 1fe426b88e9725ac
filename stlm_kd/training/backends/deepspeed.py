"""The DeepSpeed engine with ZeRO 0, 1 or 2, created through Accelerate.

ZeRO 1 and 2 concatenate the trainable parameters of each optimizer group and split them into equal
partitions, one per process, which holds the partition's float32 weights and optimizer state. A parameter's
``_hp_mapping`` gives the fragment of it, if any, in this process's partition. What is trained and saved are
these float32 weights; with ``weights="bf16"`` the module holds bf16 copies of them while the engine is open.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.training.backends.ddp import MicroBatch, WholeModule
from stlm_kd.training.config import RowScale, TrainingConfig
from stlm_kd.training.optimizer import (
    Pacing,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
    shape_of,
    trainable_parameters,
)
from stlm_kd.training.processes import Processes, forget_deepspeed
from stlm_kd.training.protocols import PlainOutput


class DeepSpeedEngine(WholeModule):
    """DeepSpeed; see ``protocols.Engine``.

    The set of parameters with a gradient must be the same in all processes: ZeRO 2 reduces gradients in order
    of arrival. Parameters without a gradient stay unchanged, whereas DeepSpeed alone would decay them.
    """

    def __init__(self, step: nn.Module, settings: TrainingConfig, processes: Processes) -> None:
        self.step = step
        self.processes = processes
        self.precision = settings.precision
        self.weights = trainable_parameters(step.to(processes.device))
        self.is_cast = settings.has_bf16_weights
        self.whole: dict[str, Tensor] = {}  # what the module gets on closing
        originals = {name: w.detach().cpu() for name, w in step.named_parameters() if self.is_cast}
        self.attributes = {weight: set(vars(weight)) for weight in step.parameters()}
        optimizer = make_optimizer(step, settings)
        self.wrapped = optimizer
        groups = enumerate(optimizer.param_groups)
        indices = {id(weight): index for index, group in groups for weight in group["params"]}
        self.group_of = {name: indices[id(weight)] for name, weight in self.weights.items()}
        with redirect_stdout(sys.stderr):
            self.engine, _ = processes.accelerator.prepare(MicroBatch(step, settings.precision), optimizer)
        self.optimizer = self.engine.optimizer
        self.is_divided = settings.zero != 0
        self.pacing = Pacing(self.weights, () if self.is_divided else settings.paced)
        self.paces = row_paces(self.weights, settings.paced) if self.is_divided else {}
        self._keep(originals)
        self.touched: set[str] = set()
        self.moves: dict[str, int] = {}
        self.hooks = [
            weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]  # untyped in torch
                partial(self._touch, name)
            )
            for name, weight in self.weights.items()
        ]

    def begin_step(self) -> None:
        self.touched.clear()

    def accumulate(self, batch: AnyBatch, denominators: dict[str, float], *, is_last: bool) -> PlainOutput:
        self.engine.set_gradient_accumulation_boundary(is_last)
        loss, terms, measures = self.engine(batch, denominators)
        self.engine.backward(loss * self.processes.count)
        return loss.detach(), terms, measures

    def gradient_norm(self) -> Tensor:
        if self.is_divided:
            norm = self.optimizer.scaled_global_norm()
            assert isinstance(norm, Tensor)
            return norm
        for name in self.weights.keys() - self.touched:
            self.weights[name].grad = None  # DeepSpeed fills in zeros
        return nn.utils.get_total_norm([w.grad for w in self.weights.values() if w.grad is not None])

    def gradients_not_finite(self) -> list[str]:
        from deepspeed.utils import safe_get_full_grad

        found = {
            name: safe_get_full_grad(self.weights[name]) for name in self.weights if name in self.touched
        }
        return [name for name, gradient in found.items() if not bool(torch.isfinite(gradient).all())]

    @torch.no_grad()
    def end_step(self, learning_rate: float) -> None:
        set_learning_rate(self.optimizer, learning_rate)
        idle = sorted(self.weights.keys() - self.touched) if self.is_divided else []
        paces = {**self.paces, **{name: torch.zeros(self.weights[name].shape) for name in idle}}
        before = {name: self._fragment(name).clone() for name in paces}
        state = self._gathered([name for name in idle if name in self.moves])
        with self.pacing.applied():
            self.engine.step()
        for name, old in before.items():
            self._slow(name, old, paces[name])
        for full_name, tensor in state.items():
            name, _, key = full_name.rpartition("/")
            if tensor.ndim > 0:
                self._put(name, tensor, self.wrapped.state[self._part(name)][key])
        self.moves |= {name: self.moves.get(name, 0) + 1 for name in self.touched}

    def optimizer_tensors(self) -> dict[str, Tensor]:
        if not self.is_divided:
            return optimizer_tensors(self.optimizer, self.step)
        tensors: dict[str, Tensor] = {}
        for name in (name for name in self.weights if name in self.moves):
            found = self._gathered([name])
            if self.processes.is_first:  # one parameter at a time, to limit memory
                tensors |= {key: tensor.cpu() for key, tensor in found.items()}
        return tensors

    @torch.no_grad()
    def load_optimizer_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the optimizer state.

        With ZeRO 1 and 2 the parameters of a group share the step count for AdamW's bias correction. If a
        checkpoint has different counts, because of steps without a gradient, the largest is used.
        """
        if not self.is_divided:
            load_optimizer_tensors(self.optimizer, self.step, tensors)
            return
        self.moves = {n.removesuffix("/step"): int(t) for n, t in tensors.items() if n.endswith("/step")}
        groups = self.wrapped.state_dict()["param_groups"]
        state = {index: self._divided_state(index, tensors) for index in range(len(groups))}
        self.wrapped.load_state_dict({"state": state, "param_groups": groups})

    def model_tensors(self) -> dict[str, Tensor]:
        tensors = super().model_tensors()
        for name in self.weights if self.is_cast else ():
            master = self._master(name)
            if self.processes.is_first:  # one at a time, to limit memory
                tensors[name] = master.cpu()
        return tensors

    @torch.no_grad()
    def load_model_tensors(self, tensors: Mapping[str, Tensor], *, place: Path) -> None:
        super().load_model_tensors(tensors, place=place)
        if self.is_divided:
            for name in self.weights:
                self._put(name, tensors[name], self._part(name))

    def finish(self) -> None:
        if self.is_cast:
            self.whole |= {name: self._master(name) for name in self.weights}

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()
        for name, weight in self.step.named_parameters():
            weight.grad = None
            if name in self.whole:
                weight.data = self.whole[name].to(self.processes.device)
            elif name in self.weights:
                weight.data = weight.data.to(torch.float32 if self.is_cast else weight.dtype, copy=True)
        self.processes.accelerator.free_memory()
        for weight, attributes in self.attributes.items():
            for attribute in vars(weight).keys() - attributes:
                delattr(weight, attribute)
        forget_deepspeed()

    def _touch(self, name: str, weight: Tensor) -> None:
        self.touched.add(name)

    @torch.no_grad()
    def _keep(self, originals: Mapping[str, Tensor]) -> None:
        """Undo the rounding of the weights from before they were cast, of the frozen ones on closing."""
        for name, original in originals.items():
            if name in self.weights:
                self._set_master(name, original)
            else:
                self.whole[name] = original

    def _set_master(self, name: str, whole: Tensor) -> None:
        self._put(name, whole, self._part(name))

    def _master(self, name: str) -> Tensor:
        """A copy of a whole float32 weight; all processes must call this."""
        return self._whole(name, self._part(name))

    def _slow(self, name: str, old: Tensor, paces: Tensor) -> None:
        """Scale the update of a weight by element; all processes must call this."""
        if (piece := self._piece(name)) is not None:
            new = self._fragment(name)
            pace = paces.reshape(-1)[piece[0]].to(new)
            new.copy_(torch.where(pace == 0, old, old.lerp(new, pace)))
        self.weights[name].copy_(self._master(name))

    def _fragment(self, name: str) -> Tensor:
        """The part of a float32 weight that lies in this process's partition; may be empty."""
        piece = self._piece(name)
        return self._part(name)[slice(0) if piece is None else piece[1]]

    def _part(self, name: str) -> Tensor:
        """The flat partition in this process of the group that contains ``name``."""
        part = self.wrapped.param_groups[self.group_of[name]]["params"][0]
        assert isinstance(part, Tensor)
        return part

    def _piece(self, name: str) -> tuple[slice, slice] | None:
        """The slice of a parameter in this process's partition, and its position there."""
        mapping = self.weights[name]._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed's ZeRO adds it
        if mapping is None:
            return None
        own, there = mapping.lp_fragment_address, mapping.hp_fragment_address
        return slice(own.start, own.start + own.numel), slice(there.start, there.start + there.numel)

    def _put(self, name: str, whole: Tensor, part: Tensor) -> None:
        if (piece := self._piece(name)) is not None:
            part[piece[1]] = whole.reshape(-1)[piece[0]].to(part)

    def _gathered(self, names: list[str]) -> dict[str, Tensor]:
        """The full optimizer state of some parameters; all processes must call this."""
        tensors = {}
        for name in names:
            for key, value in self.wrapped.state[self._part(name)].items():
                count = torch.full_like(value, self.moves[name]) if value.ndim == 0 else None
                tensors[f"{name}/{key}"] = self._whole(name, value) if count is None else count
        return tensors

    def _whole(self, name: str, part: Tensor) -> Tensor:
        weight = self.weights[name]
        whole = part.new_zeros(weight.numel(), device=self.processes.device)  # the part may be offloaded
        if (piece := self._piece(name)) is not None:
            whole[piece[0]] = part[piece[1]].to(whole)
        return self.processes.sum(whole).reshape(weight.shape)

    def _divided_state(self, index: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The partition in this process of one group's optimizer state; zero for parameters without state."""
        state: dict[str, Tensor] = {}
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition("/")
            if self.group_of[name] != index:
                continue
            if tensor.ndim == 0:
                state[key] = torch.maximum(state.get(key, tensor), tensor)
            else:
                part = state.setdefault(key, torch.zeros_like(self._part(name)))
                self._put(name, tensor, part)
        return state


def row_paces(weights: Mapping[str, Tensor], paced: Sequence[RowScale]) -> dict[str, Tensor]:
    """The multiplier of each element of the weights of which some rows have one."""
    paces = {row.weight: torch.ones(shape_of(weights[row.weight])) for row in paced}
    for row in paced:
        paces[row.weight][list(row.rows)] = row.pace
    return paces
