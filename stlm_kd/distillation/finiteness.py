"""Whose weights or outputs are NaN or infinite, once a loss is.

Shapes: B rows, T positions, H heads, N positions that are not padding, D width, V tokens or classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from stlm_kd.distillation.objective import ForwardOutputs
from stlm_kd.losses import TopKTail
from stlm_kd.models.outputs import ModelOutputs
from stlm_kd.teachers.targets import Dense
from stlm_kd.teachers.translated_targets import Translated

_AT_ONCE = 256  # positions whose logits are computed


@torch.no_grad()
def weights_not_finite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first of a model's weights with NaN or infinite values; None if all are finite."""
    return next((name for name, weight in weights if not bool(torch.isfinite(weight).all())), None)


@torch.no_grad()
def outputs_not_finite(outputs: ForwardOutputs, trained: str) -> list[str]:
    """Whose outputs on a batch have NaN or +inf: ``teacher NAME``, and the model that is ``trained``.

    −inf in predictions is no fault, since it means impossible; neither is anything at padding.
    """
    mask_BT = outputs.batch.attention_mask
    found = []
    for name, output in outputs.teachers.items():
        said = output.distribution
        projected = said if isinstance(said, Dense) else None
        stored = [said.log_probs, said.tail] if isinstance(said, TopKTail) else []
        stored += [said.hidden] if isinstance(said, Translated) else []
        if _any_wrong([*stored, *_values(output.observed, projected, mask_BT)]):
            found.append(f"teacher {name}")
    own = outputs.student.head_input
    projected = None
    if own is not None and outputs.head is not None:
        projected = Dense(own, outputs.head, outputs.head.size)
    if _any_wrong(_values(outputs.student, projected, mask_BT)):
        found.append(trained)
    return found


def _values(outputs: ModelOutputs, projected: Dense | None, mask_BT: Tensor) -> Iterator[Tensor]:
    """All outputs where there is no padding, and the logits that are ``projected``."""
    for state_BTD in outputs.states.values():
        yield state_BTD[mask_BT]
    for map_BHTT in outputs.maps.values():
        yield map_BHTT.transpose(1, 2)[mask_BT]
    if outputs.logits is not None:
        yield outputs.logits[mask_BT] if outputs.logits.shape[:2] == mask_BT.shape else outputs.logits
    if projected is not None:
        rows = projected.rows(mask_BT)
        for begin in range(0, len(rows.hidden), _AT_ONCE):
            yield rows.logits(slice(begin, begin + _AT_ONCE), rows.vocabulary)


def _any_wrong(values: Iterable[Tensor]) -> bool:
    return any(bool((value.isnan() | (value == torch.inf)).any()) for value in values)
