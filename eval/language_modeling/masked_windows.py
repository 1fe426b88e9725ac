"""Text as windows for masked language models, and what a model says at masked positions of them.

Dimensions: B rows, T positions, N masked positions, n of one chunk, D width, V ids of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from stlm_kd.artifacts.results import UNIFORM
from stlm_kd.data.masking import mask_id_of
from stlm_kd.data.tokenizers import document_ends
from stlm_kd.errors import DataError, ModelError
from stlm_kd.eval.language_modeling.round_trip import bytes_kept
from stlm_kd.eval.language_modeling.token_losses import EQUAL
from stlm_kd.eval.runner import (
    MASKED_WINDOW,
    autocast,
    check_window,
    evaluating,
    require_finite,
    require_task,
)
from stlm_kd.losses.chunked import CHUNK_ELEMENTS
from stlm_kd.losses.precision import at_least_float32
from stlm_kd.models.forward import Head, bypassed_head, head_of
from stlm_kd.models.positions import num_positions

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class TextWindow:
    """``[start] tokens [end]``: a piece of one document.

    Attributes:
        ids: Start and end included.
        bytes: UTF-8 bytes of its text, from where its first token begins (the first window of a document:
            from the document's beginning) to where the first token of the next window does.
        document: Its place among the documents.
    """

    ids: tuple[int, ...]
    bytes: int
    document: int = 0

    @property
    def tokens(self) -> int:
        """Without start and end."""
        return len(self.ids) - 2


@dataclass(frozen=True, slots=True)
class WindowedText:
    """Documents cut into windows.

    Attributes:
        windows: Of all documents, in the order of the text; each token and each byte is in one of them.
        documents: How many there are, but for empty ones.
        window: Positions of a window, at most.
        mask_id: The mask token.
        ends: The ids that stand before and after the tokens of each window.
        unknown_id: Stands for what the tokenizer cannot spell; None where it can spell everything.
        bytes_kept: The share of the text's bytes that the tokenizer gives back.
    """

    windows: tuple[TextWindow, ...]
    documents: int
    window: int
    mask_id: int
    ends: tuple[int, int]
    unknown_id: int | None
    bytes_kept: float = 1.0

    def unknown(self, windows: Iterable[TextWindow]) -> int:
        """Tokens of these windows that stand for what the tokenizer cannot spell."""
        if self.unknown_id is None or self.unknown_id in self.ends:
            return 0
        return sum(window.ids.count(self.unknown_id) for window in windows)


@dataclass(frozen=True, slots=True)
class MaskedRow:
    """What a model sees, and the tokens that it has to find.

    Attributes:
        ids: Start and end included.
        places: Where a token has to be found.
        targets: The token that belongs in each of these places.
    """

    ids: Sequence[int]
    places: Sequence[int]
    targets: Sequence[int]


@dataclass(frozen=True, slots=True)
class Found:
    """What the model predicts in one row.

    Attributes:
        nats: Of its targets together.
        right: How many of them are the model's top prediction.
        behind: Nats by which a target is less likely than the top prediction, at most.
        predicted: The top predictions.
    """

    nats: float
    right: int
    behind: float = 0.0
    predicted: frozenset[int] = frozenset()


def degenerate_tokens(found: Iterable[Found], targets: Iterable[int]) -> str | None:
    """What is to be said of a model that tells no tokens apart, or None.

    All tokens are equally likely; or one token is predicted throughout, while the targets vary.

    >>> rows = [Found(2.0, 0, 0.0, frozenset({5})), Found(2.0, 0, 0.5, frozenset({5}))]
    >>> degenerate_tokens(rows, [3, 4])
    'degenerate: predicts a single token at all 2 masked positions'
    """
    asked = list(targets)
    rows = [each for each in found if each.predicted]
    if len(set(asked)) < 2:
        return None
    is_right = sum(each.right for each in rows) == len(asked)
    if max(each.behind for each in rows) < EQUAL and not is_right:
        return UNIFORM
    if len(frozenset[int]().union(*(each.predicted for each in rows))) == 1:
        return f"degenerate: predicts a single token at all {len(asked):,} masked positions"
    return None


def windowed_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    *,
    window: int | None,
    suite: str,
) -> WindowedText:
    """The documents in windows of at most ``window`` positions, for a model that can be scored on them.

    Args:
        model: Asked for its task, positions and vocabulary.
        tokenizer: Must have ends and a mask.
        documents: Empty ones are left out.
        window: None: ``MASKED_WINDOW``, or as many as the model has if that is fewer.
        suite: What messages begin with.

    Raises:
        DataError: No text, or no token in it.
        ModelError: A causal model; a tokenizer without mask token, without ends or of ids that the model
            does not have; a window beyond the model's positions.
    """
    require_task(model, "mlm", suite=suite)
    mask_id = mask_id_of(tokenizer)
    _check_vocabulary(model, tokenizer, suite)
    window = _checked_window(model.config, window, suite)
    texts = [text for text in documents if text]
    if not texts:
        raise DataError(f"{suite}: no text to score; give the recipe a data.validation that is not empty")
    ends = document_ends(tokenizer)
    windows = tuple(
        replace(piece, document=index)
        for index, text in enumerate(texts)
        for piece in split_document(text, tokenizer, ends=ends, window=window)
    )
    if not any(piece.tokens for piece in windows):
        raise DataError(f"{suite}: the tokenizer finds no token in the text")
    return WindowedText(
        windows, len(texts), window, mask_id, ends, tokenizer.unk_token_id, bytes_kept(tokenizer, texts)
    )


def split_document(
    text: str, tokenizer: PreTrainedTokenizerFast, *, ends: tuple[int, int], window: int
) -> Iterator[TextWindow]:
    """A document's windows: as full as they get, one after the other, without overlap.

    A document without a token is one window of its start and end.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = encoded["input_ids"]
    firsts = range(0, max(len(ids), 1), window - 2)
    begins = [0, *(encoded["offset_mapping"][first][0] for first in firsts[1:]), len(text)]
    for first, (begin, end) in zip(firsts, pairwise(begins), strict=True):
        tokens = ids[first : first + window - 2]
        yield TextWindow((ends[0], *tokens, ends[1]), len(text[begin:end].encode()))


def find_tokens(
    model: PreTrainedModel, rows: Iterable[MaskedRow], *, batch_size: int, precision: str, suite: str
) -> list[Found]:
    """What the model says of each row, in their order; the model is left in its mode.

    The rows are run as they come, so those of one length should follow each other. Only the states at the
    places of the targets meet the vocabulary.
    """
    remaining = iter(rows)
    found: list[Found] = []
    with evaluating(model), torch.inference_mode():
        while batch := list(islice(remaining, batch_size)):
            found.extend(_found(model, batch, precision))
            require_finite(model, torch.tensor([each.nats for each in found[-len(batch) :]]), suite=suite)
    return found


def _found(model: PreTrainedModel, batch: Sequence[MaskedRow], precision: str) -> list[Found]:
    shape = len(batch), max(len(row.ids) for row in batch)
    inputs_BT = torch.full(shape, model.config.pad_token_id or 0)
    mask_BT = torch.zeros(shape, dtype=torch.long)
    for index, row in enumerate(batch):
        inputs_BT[index, : len(row.ids)] = torch.tensor(row.ids)
        mask_BT[index, : len(row.ids)] = 1
    row_N = torch.tensor([index for index, row in enumerate(batch) for _ in row.places])
    place_N = torch.tensor([place for row in batch for place in row.places])
    target_N = torch.tensor([target for row in batch for target in row.targets])
    device = model.device
    with autocast(device, precision):
        with bypassed_head(model):
            hidden_BTD: Tensor = model(
                input_ids=inputs_BT.to(device), attention_mask=mask_BT.to(device)
            ).logits
        states_ND = hidden_BTD[row_N.to(device), place_N.to(device)]
        nats_N, top_N, behind_N = _against_vocabulary(states_ND, target_N.to(device), head_of(model))
    sizes = [len(row.places) for row in batch]
    rows = zip(
        torch.split(nats_N.double().cpu(), sizes),
        torch.split(top_N.cpu(), sizes),
        torch.split(target_N, sizes),
        torch.split(behind_N.cpu(), sizes),
        strict=True,
    )
    return [
        Found(float(nats.sum()), int((top == target).sum()), float(behind.max()), frozenset(top.tolist()))
        for nats, top, target, behind in rows
    ]


def _against_vocabulary(states_ND: Tensor, target_N: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor]:
    """The nats of each target, the likeliest token, and the nats by which this is likelier than the target.

    One chunk of logits is alive at once.
    """
    size = max(16, CHUNK_ELEMENTS // head.size)
    nats, top, behind = [], [], []
    for states_nD, target_n in zip(torch.split(states_ND, size), torch.split(target_N, size), strict=True):
        logits_nV = at_least_float32(functional.linear(states_nD, head.weight, head.bias))
        nats.append(functional.cross_entropy(logits_nV, target_n, reduction="none"))
        highest_n, top_n = logits_nV.max(-1)
        top.append(top_n)
        behind.append(highest_n - logits_nV.gather(1, target_n[:, None])[:, 0])
    return torch.cat(nats), torch.cat(top), torch.cat(behind)


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, suite: str) -> None:
    highest, size = max(tokenizer.get_vocab().values()), head_of(model).size
    if highest >= size:
        raise ModelError(
            f"{suite}: the tokenizer has ids up to {highest}, but the model has a vocabulary of {size}; "
            "give the model the tokenizer that it was trained with"
        )


def _checked_window(config: PreTrainedConfig, window: int | None, suite: str) -> int:
    if window is None:
        return min(num_positions(config) or MASKED_WINDOW, MASKED_WINDOW)
    check_window(config, window, suite=suite)
    return window
