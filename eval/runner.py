"""How suites run a model: its task, mode, precision and window."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

from stlm_kd.data.labelled.batches import Tokenised, example_evaluation_batches
from stlm_kd.errors import DataError, ModelError
from stlm_kd.lazy import np, torch
from stlm_kd.models.families import Task
from stlm_kd.models.forward import autocast, evaluating, inputs_of, task_of
from stlm_kd.models.positions import num_positions

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

Precision: TypeAlias = Literal["fp32", "bf16"]
"""The model's own precision, or autocast to bfloat16."""


def require_task(model: PreTrainedModel, task: Task, *, suite: str) -> None:
    """Raise ModelError for a model whose task the suite cannot score, naming suites that can."""
    if task_of(model) == task:
        return
    family = model.config.model_type
    if task == "clm":
        raise ModelError(
            f"{suite}: this {family} model is a masked language model, which does not predict the next "
            "token; use pseudo-perplexity or masked-loss"
        )
    raise ModelError(
        f"{suite}: this {family} model is a causal language model, which does not attend to the tokens after "
        "a masked one; use perplexity"
    )


def name_of(model: PreTrainedModel) -> str:
    """The model's name in messages: the folder or Hub id it was loaded from, or its family."""
    return model.name_or_path or f"this {model.config.model_type} model"


def require_finite(model: PreTrainedModel, values: Tensor, *, suite: str | None = None) -> None:
    """Raise ModelError, naming the model, if a value of its outputs is NaN or infinite."""
    if not bool(torch.isfinite(values).all()):
        raise ModelError(
            f"{f'{suite}: ' if suite else ''}{name_of(model)} gives predictions that are not finite; its "
            "weights or its precision are at fault (check the loss of its training, or use precision: fp32)"
        )


def example_logits(
    model: PreTrainedModel,
    rows: Tokenised,
    *,
    batch_size: int,
    precision: Precision,
    suite: str | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Each batch's places and logits (B, …); restores the model's mode. ModelError if one is not finite."""
    with torch.no_grad(), evaluating(model), autocast(model.device, precision):
        for batch in example_evaluation_batches(rows, micro_batch=batch_size):
            logits = model(**inputs_of(batch.to(model.device), model)).logits
            require_finite(model, logits, suite=suite)
            yield batch.example_ids.tolist(), logits


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Restore the states of the global random generators after the block."""
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


MASKED_WINDOW = 128
"""Default window of masked language models, unless the model or the training context is shorter.

Short because pseudo-perplexity needs one row for each token.
"""


def checked_window(config: PreTrainedConfig, window: int, *, suite: str) -> int:
    """The window; a ModelError if it is longer than the model's positions."""
    positions = num_positions(config)
    if positions is not None and window > positions:
        raise ModelError(
            f"{suite}: the window is {window} tokens, but the model has {positions} "
            f"positions; use window: {positions} or less"
        )
    return window


def texts_to_score(documents: Sequence[str], *, suite: str) -> list[str]:
    """The documents that are not empty; a DataError if all are."""
    texts = [text for text in documents if text]
    if not texts:
        raise DataError(f"{suite}: no text to score; give the recipe a data.validation that is not empty")
    return texts
