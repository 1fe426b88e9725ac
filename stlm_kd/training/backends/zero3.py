"""The DeepSpeed engine with ZeRO 3: weights, gradients and optimizer state are all partitioned.

Each parameter is flattened, padded and cut into one equal slice per process; its tensor in the module is
empty except while a submodule that needs it runs. What is trained is the float32 slice in the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.errors import CheckpointError, MissingResourceError
from stlm_kd.training.backends.deepspeed import DeepSpeedEngine
from stlm_kd.training.backends.deepspeed_setup import forget_modules
from stlm_kd.training.checkpoint import matching_tensors, model_tensors
from stlm_kd.training.config import TrainingConfig
from stlm_kd.training.optimizer import set_learning_rate
from stlm_kd.training.processes import Processes
from stlm_kd.training.protocols import PlainOutput


class Zero3Engine(DeepSpeedEngine):
    """DeepSpeed with ZeRO 3; see ``protocols.Engine``.

    All processes must run the same submodules in the same order, in training and in evaluation: each gathers
    its weights from all of them.
    """

    needs_equal_forwards = True

    def __init__(self, step: nn.Module, settings: TrainingConfig, processes: Processes) -> None:
        self.before = {module: ({*vars(module)}, module._parameters) for module in step.modules()}
        self.shapes = {name: weight.shape for name, weight in step.named_parameters()}
        step.partitioned = True  # type: ignore[assignment]  # as a plain attribute, removed on closing
        super().__init__(step, settings, processes)
        from deepspeed.runtime.zero import register_external_parameter

        for weight in getattr(step, "direct_parameters", list)():
            register_external_parameter(self.engine.module, weight)
        self.paces = {name: self._share(name, paces) for name, paces in self.paces.items()}

    def accumulate(self, batch: AnyBatch, denominators: dict[str, float], *, is_last: bool) -> PlainOutput:
        from deepspeed.utils import safe_set_local_grad

        output = super().accumulate(batch, denominators, is_last=is_last)
        for name in self._idle():  # DeepSpeed would take that of an earlier step
            safe_set_local_grad(self.weights[name], torch.zeros_like(self._local(name)))
        return output

    def evaluate(self, batch: AnyBatch, denominators: dict[str, float]) -> PlainOutput:
        output: PlainOutput = self.engine(batch, denominators)
        return output

    def gradient_norm(self) -> Tensor:
        squares = [gradient.double().square().sum() for _, gradient in self._local_gradients()]
        return self.processes.sum(torch.stack(squares).sum()).sqrt()

    def gradients_not_finite(self) -> list[str]:
        found = {name: bool(torch.isfinite(gradient).all()) for name, gradient in self._local_gradients()}
        wrong = set(self.processes.all_names([name for name, is_finite in found.items() if not is_finite]))
        return [name for name in found if name in wrong]

    @torch.no_grad()
    def end_step(self, learning_rate: float) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        set_learning_rate(self.optimizer, learning_rate)
        idle = self._idle()
        kept = {
            (name, key): self._local(name, key).clone()
            for name in idle
            for key in (self._state_keys if name in self.moves else ())
        }
        with self._slowed(idle):
            self.engine.step()
        for (name, key), state in kept.items():
            safe_set_local_optimizer_state(self.weights[name], state, key)
        self.moves |= {name: self.moves.get(name, 0) + 1 for name in self.touched}

    def not_finite(self, batch: AnyBatch) -> list[str]:
        from deepspeed.runtime.zero import GatheredParameters

        self._await_prefetched()
        self.engine.module.is_examining = True
        try:
            with GatheredParameters(list(self.step.parameters())):
                found: list[str] = self.engine(batch, {})
        finally:
            self.engine.module.is_examining = False
        return found

    def model_tensors(self) -> dict[str, Tensor]:
        self._await_prefetched()
        self.processes.check_same(_Gathered(self))
        tensors = {name: t for name, t in model_tensors(self.step).items() if name not in self.weights}
        for name in self.weights:
            whole = self._whole_weight(name)
            if self.processes.is_first:  # one at a time, to limit memory
                tensors[name] = whole.cpu()
        return tensors

    @torch.no_grad()
    def load_model_tensors(self, tensors: Mapping[str, Tensor], *, place: Path) -> None:
        from deepspeed.runtime.zero import GatheredParameters

        self._await_prefetched()
        for name, tensor in matching_tensors(self.step, tensors, place=place).items():
            if name not in self.weights:
                tensor.copy_(tensors[name])
                continue
            with GatheredParameters([tensor], modifier_rank=0):
                tensor.copy_(tensors[name])
            self._set_master(name, tensors[name])

    def optimizer_tensors(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        tensors: dict[str, Tensor] = {}
        for name in (name for name in self.weights if name in self.moves):
            for key in self._state_keys:
                tensor = safe_get_full_optimizer_state(self.weights[name], key)
                if self.processes.is_first:  # one at a time, to limit memory
                    tensors[f"{name}/{key}"] = tensor.cpu().clone()
            if self.processes.is_first:
                tensors[f"{name}/step"] = torch.tensor(float(self.moves[name]))
        return tensors

    @torch.no_grad()
    def load_optimizer_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the optimizer state; all parameters get the largest step count (for AdamW's correction)."""
        from deepspeed.utils import safe_set_local_optimizer_state

        self.moves = {n.removesuffix("/step"): int(t) for n, t in tensors.items() if n.endswith("/step")}
        vectors = {name.rpartition("/")[2] for name, tensor in tensors.items() if tensor.ndim > 0}
        for part in self._parts():
            state = {key: torch.zeros_like(part) for key in sorted(vectors)}
            count = torch.tensor(float(max(self.moves.values(), default=0)), device=part.device)
            self.wrapped.state[part] = {"step": count, **state}
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition("/")
            if tensor.ndim > 0:
                safe_set_local_optimizer_state(self.weights[name], self._share(name, tensor), key)

    def finish(self) -> None:
        self._await_prefetched()
        self.whole |= {n: self._whole_weight(n) for n in self.shapes if n not in self.whole}

    def close(self) -> None:
        """Release the module, whose weights stay empty unless the engine was finished."""
        self.engine.destroy()
        super().close()
        for module, (names, parameters) in self.before.items():
            for name in vars(module).keys() - names:
                delattr(module, name)
            module._parameters = parameters
        forget_modules()

    def _await_prefetched(self) -> None:
        """Partition all weights again; those that were fetched ahead in vain cannot be gathered otherwise."""
        self.optimizer.empty_partition_cache()

    def _idle(self) -> list[str]:
        return sorted(self.weights.keys() - self.touched)

    def _local_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """The slices of the gradients in this process."""
        from deepspeed.utils import safe_get_local_grad

        for name in self.weights:
            if name in self.touched:
                yield name, safe_get_local_grad(self.weights[name])

    def _local(self, name: str, key: str | None = None) -> Tensor:
        """The slice in this process of a float32 weight or of its optimizer state."""
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        weight = self.weights[name]
        found = (
            safe_get_local_fp32_param(weight) if key is None else safe_get_local_optimizer_state(weight, key)
        )
        assert isinstance(found, Tensor)
        return found

    def _share(self, name: str, whole: Tensor) -> Tensor:
        """The slice in this process of a tensor of a weight's shape, padded with zeros."""
        share = torch.zeros_like(self._local(name))
        size = share.numel()
        own = whole.reshape(-1)[self.processes.rank * size :][:size]
        share[: own.numel()] = own.to(share)
        return share

    def _set_master(self, name: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_local_fp32_param

        safe_set_local_fp32_param(self.weights[name], self._share(name, whole))

    def _whole_weight(self, name: str) -> Tensor:
        """A copy of a whole weight, of the float32 one where those are cast; all processes must call this."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        weight = self.step.get_parameter(name)
        if self.is_cast:
            whole: Tensor = safe_get_full_fp32_param(weight).clone()
        else:
            with GatheredParameters([weight]):
                whole = weight.detach().clone()
        if whole.shape != self.shapes[name]:
            raise CheckpointError(
                f"{name}: shape {tuple(whole.shape)} gathered from the processes, expected "
                f"{tuple(self.shapes[name])}; nothing was saved. Train with zero: 2"
            )
        return whole

    @contextmanager
    def _slowed(self, idle: list[str]) -> Iterator[None]:
        """Scale the updates of paced rows in the optimizer step in this context; idle weights do not move.

        DeepSpeed calls the optimizer once for each part of its flat weights and publishes the part at once.
        """
        from deepspeed.utils import safe_set_local_fp32_param

        paces = {**self.paces, **{name: torch.zeros_like(self._local(name)) for name in idle}}
        before = {name: self._local(name).clone() for name in paces}

        def slow(*_: object) -> None:
            for name in [name for name in before if not torch.equal(self._local(name), before[name])]:
                old, new = before.pop(name), self._local(name)
                slowed = torch.where(paces[name] == 0, old, old.lerp(new, paces[name]))
                safe_set_local_fp32_param(self.weights[name], slowed)

        hook = self.wrapped.register_step_post_hook(slow)
        try:
            yield
        finally:
            hook.remove()

    @cached_property
    def _state_keys(self) -> tuple[str, ...]:
        """Keys of the optimizer's state that have a value per element."""
        state: dict[str, Tensor] = next(iter(self.wrapped.state.values()), {})
        return tuple(key for key, value in state.items() if value.ndim > 0)

    def _parts(self) -> list[Tensor]:
        """The flat weights that the optimizer updates in this process."""
        parts = getattr(self.optimizer, "fp32_partitioned_groups_flat", None)
        if not isinstance(parts, list):
            raise MissingResourceError(
                "zero: 3: this release of DeepSpeed does not give its flat weights "
                "(fp32_partitioned_groups_flat), so that its optimizer cannot be resumed; train with zero: 2"
            )
        return parts


class _Gathered(Mapping[str, Tensor]):
    """The whole weights of an engine, gathered one at a time."""

    def __init__(self, engine: Zero3Engine) -> None:
        self.engine = engine

    def __getitem__(self, name: str) -> Tensor:
        return self.engine._whole_weight(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.engine.weights)

    def __len__(self) -> int:
        return len(self.engine.weights)
