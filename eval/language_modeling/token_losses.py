"""The loss of the last tokens of id sequences under a causal language model, for all causal scoring.

The body runs in its own precision; log-softmax and sums use float32 or wider. Dimensions: B rows of a batch,
T positions, N scored tokens of a batch, V ids of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stlm_kd.eval.runner import require_finite
from stlm_kd.lazy import nn, np, torch
from stlm_kd.losses.precision import at_least_float32
from stlm_kd.models.forward import autocast, evaluating

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor
    from transformers import PreTrainedModel

_MAX_LOGITS = 1 << 27
"""Maximum logits of a forward pass (half a GiB in float32), unless a single row has more."""

EQUAL = 1e-5
"""Tolerance, in nats, for float32 losses of equally likely tokens."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A sequence of ids: all but the last are inputs, and the last ``scored`` are targets."""

    ids: tuple[int, ...]
    scored: int


@dataclass(frozen=True, slots=True)
class PieceLoss:
    """The nats of a piece's scored tokens, in float64, and whether each of them is the top-1 prediction."""

    token_nats: npt.NDArray[np.float64]
    greedy: bool

    @property
    def nats(self) -> float:
        """The sum, independent of the order of the tokens."""
        return math.fsum(self.token_nats)


def piece_losses(
    model: PreTrainedModel, pieces: Sequence[Piece], *, batch_size: int, precision: str, suite: str
) -> list[PieceLoss]:
    """The loss of each piece, in order; the model's mode is restored.

    Pieces that differ only in their last id (single-token choices) share a row. Each piece has fewer scored
    ids than ids; ``bf16`` runs the body under autocast. Raises ModelError if a loss is not finite.
    """
    by_inputs: dict[tuple[int, ...], list[int]] = {}
    for index, piece in enumerate(pieces):
        by_inputs.setdefault(piece.ids[:-1], []).append(index)
    found: dict[int, PieceLoss] = {}
    with evaluating(model), torch.inference_mode():
        for rows in _batches(list(by_inputs), batch_size, model.config.get_text_config().vocab_size):
            indices = [by_inputs[row] for row in rows]
            losses = _losses(model, rows, indices, pieces, precision)
            require_finite(model, torch.tensor([loss.nats for loss in losses.values()]), suite=suite)
            found.update(losses)
    return [found[index] for index in range(len(pieces))]


def is_uniform(pieces: Iterable[Piece], losses: Iterable[PieceLoss]) -> bool | None:
    """Whether all scored tokens are equally likely, as with a head of zeros; None if all are the same token.

    >>> same = PieceLoss(np.array([2.0, 2.0]), False)
    >>> is_uniform([Piece((0, 3, 4), 2)], [same]), is_uniform([Piece((0, 3, 3), 2)], [same])
    (True, None)
    """
    if len({token for piece in pieces for token in piece.ids[-piece.scored :]}) < 2:
        return None
    nats = np.concatenate([each.token_nats for each in losses])
    return bool(np.ptp(nats) < EQUAL)


def _batches(
    rows: Sequence[tuple[int, ...]], batch_size: int, vocab_size: int
) -> Iterator[list[tuple[int, ...]]]:
    """Longest rows first, which minimises padding and triggers any out-of-memory error in the first batch."""
    batch: list[tuple[int, ...]] = []
    for row in sorted(rows, key=len, reverse=True):
        longest = len(batch[0]) if batch else len(row)
        if batch and (len(batch) == batch_size or (len(batch) + 1) * longest * vocab_size > _MAX_LOGITS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _losses(
    model: PreTrainedModel,
    rows: Sequence[tuple[int, ...]],
    indices: Sequence[Sequence[int]],
    pieces: Sequence[Piece],
    precision: str,
) -> dict[int, PieceLoss]:
    """The losses of the pieces of each row, by their indices. No scored position attends to padding."""
    inputs_BT = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    scored = [(place, pieces[index], index) for place, each in enumerate(indices) for index in each]
    row_N = torch.tensor([place for place, piece, _ in scored for _ in range(piece.scored)])
    place_N = torch.tensor(
        [at for _, piece, _ in scored for at in range(len(piece.ids) - 1 - piece.scored, len(piece.ids) - 1)]
    )
    target_N = torch.tensor([token for _, piece, _ in scored for token in piece.ids[-piece.scored :]])
    device = model.device
    with autocast(device, precision):
        logits_BTV: Tensor = model(input_ids=inputs_BT.to(device), use_cache=False).logits
    logits_NV = at_least_float32(logits_BTV[row_N.to(device), place_N.to(device)])
    target_N = target_N.to(device)
    nats_N = logits_NV.logsumexp(1) - logits_NV.gather(1, target_N[:, None])[:, 0]
    nats_N = nats_N.double().cpu()  # so that their sum is exact
    greedy_N = (logits_NV.argmax(1) == target_N).cpu()
    sizes = [piece.scored for _, piece, _ in scored]
    by_piece = zip(scored, torch.split(nats_N, sizes), torch.split(greedy_N, sizes), strict=True)
    return {index: PieceLoss(nats.numpy(), bool(greedy.all())) for (_, _, index), nats, greedy in by_piece}
