"""How a suite runs a model: for which task, in which mode and precision, over how many positions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stlm_kd.errors import ModelError
from stlm_kd.models.families import Task
from stlm_kd.models.forward import task_of
from stlm_kd.models.positions import num_positions

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def require_task(model: PreTrainedModel, task: Task, *, suite: str) -> None:
    """Refuse a model that does not predict what a suite asks it for.

    Raises:
        ModelError: It does not; the message names the suites that can score it.
    """
    if task_of(model) == task:
        return
    family = model.config.model_type
    if task == "clm":
        raise ModelError(
            f"{suite}: this {family} model is a masked language model, which has no probability of a token "
            "after those before it alone; use pseudo-perplexity or masked-loss"
        )
    raise ModelError(
        f"{suite}: this {family} model is a causal language model, which does not look at what follows a "
        "masked token; use perplexity"
    )


def name_of(model: PreTrainedModel) -> str:
    """What messages call a model: the folder or Hub id that it was loaded from, or its family."""
    return model.name_or_path or f"this {model.config.model_type} model"


def require_finite(model: PreTrainedModel, values: Tensor, *, suite: str | None = None) -> None:
    """Refuse what a model computes where some of it is NaN or infinite.

    Raises:
        ModelError: It is; the message names the model.
    """
    if not bool(torch.isfinite(values).all()):
        raise ModelError(
            f"{f'{suite}: ' if suite else ''}{name_of(model)} gives predictions that are not finite; its "
            "weights or its precision are at fault (check the loss of its training, or use precision: fp32)"
        )


MASKED_WINDOW = 128
"""Positions of a window of a masked language model, unless it or the training text has fewer: a row is cheap,
of which pseudo-perplexity needs one for each token."""


def common_window(suite: str, sizes: Iterable[int | None]) -> int | None:
    """The window in which a suite scores all models of a table, where none is asked for.

    Bits per byte depend on how much a model sees, so that all rows of a table have the same window: the
    smallest of the sizes (the recipe's context, or positions of models; None: any), and for masked language
    models at most ``MASKED_WINDOW``.

    Returns:
        None where the suite reads no windows of text, or nothing is known.

    >>> common_window("perplexity", [512, None, 256]), common_window("masked-loss", [512])
    (256, 128)
    """
    if suite not in ("perplexity", "pseudo-perplexity", "masked-loss"):
        return None
    known = [size for size in sizes if size is not None]
    if suite != "perplexity":
        known.append(MASKED_WINDOW)
    return min(known, default=None)


def check_window(config: PreTrainedConfig, window: int, *, suite: str) -> None:
    """Refuse a window that is longer than what the model can see.

    Raises:
        ModelError: It is.
    """
    positions = num_positions(config)
    if positions is not None and window > positions:
        raise ModelError(
            f"{suite}: a window of {window} tokens was asked for, but the model has {positions} "
            f"positions; use window: {positions} or less"
        )


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The precision in which the model runs: ``bf16`` is autocast, anything else its own."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Dropout off, and as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
