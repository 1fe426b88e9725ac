"""AdamW and BertAdam with selective weight decay, row learning rates, and optimizer state by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stlm_kd.training.config import RowScale, TrainingConfig


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name; tied ones once, under their first name."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def shape_of(weight: Tensor) -> torch.Size:
    """The shape of a whole weight, also where ZeRO 3 has partitioned it and its own tensor is empty."""
    shape: torch.Size = getattr(weight, "ds_shape", weight.shape)
    return shape


def decayed_names(module: nn.Module) -> set[str]:
    """Weights with weight decay: of two or more dimensions, no bias, and not of a class named ``…Norm…``."""
    norms = {
        id(weight)
        for part in module.modules()
        if "norm" in type(part).__name__.lower()
        for weight in part.parameters(recurse=False)
    }
    return {
        name
        for name, weight in trainable_parameters(module).items()
        if weight.ndim >= 2 and id(weight) not in norms and name.rpartition(".")[2] != "bias"
    }


class BertAdam(torch.optim.Optimizer):
    """AdamW without bias correction, as used for BERT (Devlin et al., 2019).

    The moving averages start at 0, and the second moment grows more slowly: the first step is
    (1 - β₁) / √(1 - β₂) times AdamW's. The original also clips each weight's gradient separately; here
    clipping is global, as for AdamW. The state has AdamW's keys, including ``step``, which is unused.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's takes a closure
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        first, second = group["betas"]
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        size = state["exp_avg_sq"].sqrt().add_(group["eps"])
        weight.addcdiv_(state["exp_avg"], size, value=-group["lr"])


def make_optimizer(module: nn.Module, settings: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019) or ``BertAdam``.

    There are two groups: ``decayed_names`` with ``weight_decay``, the rest without. The module must be on its
    device: the fused kernel is used if all weights are on GPUs or all on the CPU, where it takes a fifth of
    the time. Without ``bias_correction`` the optimizer is ``BertAdam``.
    """
    weights = trainable_parameters(module)
    decayed = decayed_names(module)
    groups: list[dict[str, Any]] = [
        {"params": [w for n, w in weights.items() if n in decayed], "weight_decay": settings.weight_decay},
        {"params": [w for n, w in weights.items() if n not in decayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate, betas, eps = settings.learning_rate, settings.betas, settings.eps
    if not settings.bias_correction:
        return BertAdam(groups, lr=rate, betas=betas, eps=eps)
    fused = {weight.device.type for weight in weights.values()} in ({"cuda"}, {"cpu"})
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=eps, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = value


class Pacing:
    """Scales the optimizer's updates of some rows.

    AdamW updates elements independently, and its steps and decay are proportional to the learning rate, so
    scaling an update is equivalent to scaling the learning rate. The rows' gradients count in the norm for
    clipping.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], paces: Sequence[RowScale]) -> None:
        self.names = tuple(paced.weight for paced in paces)
        self._parts = [
            (weights[paced.weight], torch.tensor(paced.rows, device=weights[paced.weight].device), paced.pace)
            for paced in paces
        ]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Scale the single optimizer step performed in this context."""
        before = [weight.detach()[rows] for weight, rows, _ in self._parts]
        yield
        with torch.no_grad():
            for (weight, rows, pace), old in zip(self._parts, before, strict=True):
                weight[rows] = old if pace == 0 else old.lerp(weight[rows], pace)


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state, where there is any, as ``name/key`` → tensor (``lm_head.weight/exp_avg``)."""
    return {
        f"{name}/{key}": value
        for name, weight in trainable_parameters(module).items()
        for key, value in optimizer.state.get(weight, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Load ``optimizer_tensors`` by name; ``checkpoint.TensorShapes`` has checked them."""
    names = {id(weight): name for name, weight in trainable_parameters(module).items()}
    ordered = [weight for group in optimizer.param_groups for weight in group["params"]]
    index = {names[id(weight)]: position for position, weight in enumerate(ordered)}
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        state.setdefault(index[name], {})[key] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
