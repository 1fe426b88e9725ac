"""lm-eval interface of a causal model in memory, with prompts that begin like training documents.

Log-likelihoods are our own (lm-eval's public ``loglikelihood`` and ``loglikelihood_rolling``); generation is
lm-eval's, on prompts that are encoded here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from stlm_kd.data.tokenizers import document_ends, ids_from_start
from stlm_kd.errors import MissingResourceError, ModelError
from stlm_kd.eval.language_modeling.perplexity import split_into_windows
from stlm_kd.eval.language_modeling.token_losses import Piece, is_uniform, piece_losses
from stlm_kd.eval.runner import name_of
from stlm_kd.lazy import np, torch
from stlm_kd.models.positions import num_positions

if TYPE_CHECKING:
    from torch import Tensor


SUITE = "lm-eval"

Request = Any
"""lm-eval's ``Instance``, which is untyped; ``args`` contains its texts."""


class DocumentLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """A model whose prompts are the beginning of a document: the start token, the text, and no end token.

    A prompt longer than the model's positions is truncated on the left, including the start token; training
    rows and perplexity windows that begin within a document have no start token either.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, precision: str
    ) -> None:
        start, self._end = document_ends(tokenizer)
        own = copy.deepcopy(tokenizer)
        own.model_max_length = VERY_LARGE_INTEGER  # silences the length warning; truncation happens here
        if own.pad_token_id is None:
            own.pad_token = own.convert_ids_to_tokens(self._end)
        super().__init__(
            pretrained=model,
            backend="causal",
            tokenizer=own,
            batch_size=batch_size,
            max_length=num_positions(model.config),
            prefix_token_id=start,
            mixed_precision_dtype=torch.bfloat16 if precision == "bf16" else None,
            trust_remote_code=False,
        )
        self._precision = precision
        self._uniform: bool | None = None
        self._encoded_prompts = 0

    @property
    def predicts_uniformly(self) -> bool:
        """Whether all scored tokens were equally likely; False if none was scored."""
        return bool(self._uniform)

    @property
    def eot_token_id(self) -> int:
        return self._end

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **_: object,
    ) -> list[int]:
        """The ids of a text, after the start token unless ``add_special_tokens`` is False."""
        (ids,) = ids_from_start(self.tokenizer, [string])
        ids = ids[1:] if add_special_tokens is False else ids
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask of prompts for generation, (B, T), padded on the left."""
        assert padding_side == "left", padding_side
        del truncation  # lm-eval uses left_truncate_len
        self._encoded_prompts += len(strings)
        rows = [self.tok_encode(text, left_truncate_len=left_truncate_len) for text in strings]
        padded = partial(pad_sequence, batch_first=True, padding_side=padding_side)
        ids_BT = padded([torch.tensor(row) for row in rows], padding_value=self.tokenizer.pad_token_id)
        return ids_BT, padded([torch.ones(len(row), dtype=torch.long) for row in rows])

    def loglikelihood(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """For each (context, continuation), the continuation's log-probability and whether it is greedy.

        Raises ModelError if a log-probability is not finite, or a continuation has no token.
        """
        del disable_tqdm
        return self._log_likelihoods([self._encoded(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text, in lm-eval's windows; ModelError if one is not finite."""
        del disable_tqdm
        found = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            found.append(sum(nats for nats, _ in self._log_likelihoods(pairs)))
        return found

    def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[str]:
        """Generate with lm-eval's own method; MissingResourceError if it bypasses ``tok_batch_encode``."""
        before = self._encoded_prompts
        found: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        if requests and self._encoded_prompts == before:
            raise MissingResourceError(
                f"lm-eval {metadata.version('lm-eval')}: its generation no longer encodes prompts with "
                "tok_batch_encode, so they would not begin like training documents; use a version within the "
                "range that this package declares"
            )
        return found

    def _encoded(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The ids of context and continuation; trailing whitespace moves to the continuation, as in lm-eval.

        The pair is encoded as one text and split after the length of the encoded context. If this leaves no
        token for the continuation, the two are encoded separately.
        """
        blanks = len(context) - len(context.rstrip())
        if blanks:
            context, continuation = context[:-blanks], context[-blanks:] + continuation
        before, whole = ids_from_start(self.tokenizer, [context, context + continuation])
        if len(whole) > len(before):
            return whole[: len(before)], whole[len(before) :]
        after = self.tok_encode(continuation, add_special_tokens=False)
        if not after:
            raise ModelError(
                f"{SUITE}: the tokenizer of {name_of(self.model)} has no token for the answer "
                f"{continuation!r}; use a tokenizer that can encode it"
            )
        return before, after

    def _log_likelihoods(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[float, bool]]:
        pieces = [list(self._pieces(*pair)) for pair in pairs]
        flat = [piece for each in pieces for piece in each]
        losses = piece_losses(
            self.model, flat, batch_size=self.batch_size, precision=self._precision, suite=SUITE
        )
        uniform = is_uniform(flat, losses)
        if uniform is not None:
            self._uniform = self._uniform is not False and uniform
        remaining = iter(losses)
        found = []
        for each in pieces:
            own = [next(remaining) for _ in each]
            total = np.float32(-sum(loss.nats for loss in own))  # smaller differences count as ties
            found.append((float(total), all(loss.greedy for loss in own)))
        return found

    def _pieces(self, context: Sequence[int], continuation: Sequence[int]) -> Iterator[Piece]:
        """One row, truncated on the left; or several windows if the continuation alone is too long."""
        ids, longest = (*context, *continuation), self.max_length
        if len(continuation) <= longest:
            yield Piece(ids[-(longest + 1) :], len(continuation))
            return
        for window in split_into_windows(len(ids), longest, max(longest // 2, 1)):
            scored = min(window.scored, window.stop - len(context))
            if scored > 0:
                yield Piece(ids[window.start : window.stop], scored)
