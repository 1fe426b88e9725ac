"""Windows of text for masked language models, and predictions at their masked positions.

Dimensions: B rows, T positions, N masked positions, n of one chunk, D width, V ids of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import TYPE_CHECKING

from stlm_kd.artifacts.results import UNIFORM, text_hash
from stlm_kd.data.masking import mask_id_of
from stlm_kd.data.tokenizers import document_ends
from stlm_kd.errors import DataError, ModelError
from stlm_kd.eval.language_modeling.round_trip import bytes_kept
from stlm_kd.eval.language_modeling.token_losses import EQUAL
from stlm_kd.eval.runner import MASKED_WINDOW, checked_window, require_finite, require_task, texts_to_score
from stlm_kd.lazy import functional, nn, torch
from stlm_kd.losses.precision import at_least_float32
from stlm_kd.models.forward import Head, autocast, bypassed_head, evaluating, head_of
from stlm_kd.models.positions import num_positions

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class TextWindow:
    """``[start] tokens [end]``: a piece of one document.

    ``bytes`` are the UTF-8 bytes from the beginning of its first token (in a document's first window: from
    the beginning of the document) to that of the next window's first token, and ``text`` is their
    ``text_hash``. ``document`` is an index.
    """

    ids: tuple[int, ...]
    bytes: int
    document: int = 0
    text: str = field(default="", compare=False)

    @property
    def tokens(self) -> int:
        """The number of tokens without start and end."""
        return len(self.ids) - 2


@dataclass(frozen=True, slots=True)
class WindowedText:
    """Documents that are not empty, split into windows of at most ``window`` positions, in text order.

    Each token and each byte is in exactly one. ``ends`` are the ids of start and end of each window;
    ``unknown_id`` is None if the tokenizer can encode everything; ``bytes_kept`` is the fraction of the
    text's bytes that decoding restores.
    """

    windows: tuple[TextWindow, ...]
    documents: int
    window: int
    mask_id: int
    ends: tuple[int, int]
    unknown_id: int | None
    bytes_kept: float = 1.0

    def unknown(self, windows: Iterable[TextWindow]) -> int:
        """The number of unknown tokens in these windows."""
        if self.unknown_id is None or self.unknown_id in self.ends:
            return 0
        return sum(window.ids.count(self.unknown_id) for window in windows)


@dataclass(frozen=True, slots=True)
class MaskedRow:
    """A model input with start and end, the positions to predict, and the target token of each."""

    ids: Sequence[int]
    places: Sequence[int]
    targets: Sequence[int]


@dataclass(frozen=True, slots=True)
class Found:
    """A model's predictions for one row.

    ``nats`` is the total loss of its targets, of which ``right`` are the top-1 prediction; ``behind`` is the
    maximum gap in nats between the top-1 prediction and a target.
    """

    nats: float
    right: int
    behind: float
    predicted: frozenset[int]


def degenerate_tokens(found: Sequence[Found], targets: Sequence[int]) -> str | None:
    """A description of degenerate predictions, or None.

    Degenerate: all tokens are equally likely; or a single token is predicted although the targets vary.

    >>> rows = [Found(2.0, 0, 0.0, frozenset({5})), Found(2.0, 0, 0.5, frozenset({5}))]
    >>> degenerate_tokens(rows, [3, 4])
    'degenerate: predicts a single token at all 2 masked positions'
    """
    if len(set(targets)) < 2:
        return None
    is_right = sum(each.right for each in found) == len(targets)
    if max(each.behind for each in found) < EQUAL and not is_right:
        return UNIFORM
    if len(frozenset[int]().union(*(each.predicted for each in found))) == 1:
        return f"degenerate: predicts a single token at all {len(targets):,} masked positions"
    return None


def windowed_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    *,
    window: int | None,
    suite: str,
) -> WindowedText:
    """Split the documents into windows of at most ``window`` positions that the model can be scored on.

    The default window is ``MASKED_WINDOW``, or the model's positions if fewer. Empty documents are skipped.

    Raises DataError without text, or a token in it; and ModelError for a causal model, a tokenizer without
    mask, start or end token, or with ids outside the model's vocabulary, or a window beyond its positions.
    """
    require_task(model, "mlm", suite=suite)
    mask_id = mask_id_of(tokenizer)
    _check_vocabulary(model, tokenizer, suite)
    default = min(num_positions(model.config) or MASKED_WINDOW, MASKED_WINDOW)
    window = checked_window(model.config, window or default, suite=suite)
    texts = texts_to_score(documents, suite=suite)
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
    """A document's windows: as long as possible, without overlap; one of start and end if it has no token."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = encoded["input_ids"]
    firsts = range(0, max(len(ids), 1), window - 2)
    begins = [0, *(encoded["offset_mapping"][first][0] for first in firsts[1:]), len(text)]
    for first, (begin, end) in zip(firsts, pairwise(begins), strict=True):
        tokens = ids[first : first + window - 2]
        piece = text[begin:end]
        yield TextWindow((ends[0], *tokens, ends[1]), len(piece.encode()), text=text_hash(piece))


def find_tokens(
    model: PreTrainedModel, rows: Iterable[MaskedRow], *, batch_size: int, precision: str, suite: str
) -> list[Found]:
    """The model's predictions for each row, in order; the model's mode is restored.

    Batches follow the order of the rows, so rows of equal length should be adjacent. Only hidden states at
    target positions are projected to the vocabulary.
    """
    remaining = iter(rows)
    found: list[Found] = []
    with evaluating(model), torch.inference_mode():
        while batch := list(islice(remaining, batch_size)):
            found.extend(_found(model, batch, precision))
            require_finite(model, torch.tensor([each.nats for each in found[-len(batch) :]]), suite=suite)
    return found


def _found(model: PreTrainedModel, batch: Sequence[MaskedRow], precision: str) -> list[Found]:
    ids = [torch.tensor(row.ids) for row in batch]
    inputs_BT = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=model.config.pad_token_id or 0)
    mask_BT = nn.utils.rnn.pad_sequence([torch.ones_like(row_T) for row_T in ids], batch_first=True)
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
        nats_N, top_N, behind_N = against_vocabulary(states_ND, target_N.to(device), head_of(model))
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


def against_vocabulary(states_ND: Tensor, target_N: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each target, the top-1 token, and the gap in nats; one chunk of logits in memory."""
    from stlm_kd.losses.chunked import CHUNK_ELEMENTS

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
