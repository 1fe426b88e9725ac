"""Integrated gradients: attributes a classifier's log-odds to words along a path from a masked baseline.

Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", 2017, with the package ``captum``. The
path in the word embedding space runs from a baseline, in which every token of a word is the mask token
(padding without one), to the text. Special tokens and punctuation between words are the same at both ends.

Shapes: B rows, T positions, D embedding width, C classes, W words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stlm_kd.data.labelled.batches import ExampleBatch
from stlm_kd.data.labelled.encoding import Source, encode_texts, padding_id, token_sources
from stlm_kd.errors import MissingResourceError
from stlm_kd.eval.attribution.words import Weights, Word
from stlm_kd.lazy import np, torch
from stlm_kd.models.forward import evaluating, inputs_of

if TYPE_CHECKING:
    from captum.attr import IntegratedGradients
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ROWS_AT_ONCE = 64


def integrated_gradients(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: tuple[str, ...],
    words: Sequence[Word],
    target: int,
    *,
    steps: int,
    context: int,
) -> Weights:
    """The attribution of each word for the log-odds of a class in nats, summed over its tokens.

    The weights sum to the log-odds of the text minus those of the baseline, except for the error of the
    numerical integral over ``steps`` points (Gauss-Legendre). The model runs in its own precision. A word
    beyond ``context`` tokens has weight 0.
    """
    row = encode_texts([texts], tokenizer, context=context, multiple=1).rows(np.zeros(1, np.int64))
    sources_T = token_sources(texts, tokenizer, context=context)
    owners_T = np.array([_owner(source, words) for source in sources_T], np.int64)
    nothing = torch.zeros(1, dtype=torch.int64)
    batch = ExampleBatch(row.input_ids, row.attention_mask, row.token_type_ids, nothing, nothing)
    embedded = _Embedded(model, inputs_of(batch.to(model.device), model), target)
    of_words_T = owners_T >= 0
    mask = tokenizer.mask_token_id
    mask = padding_id(tokenizer) if mask is None else int(mask)
    hidden_ids_1T = row.input_ids.masked_fill(torch.from_numpy(of_words_T), mask)
    with evaluating(model):
        text_1TD, baseline_1TD = (embedded.embed(ids) for ids in (row.input_ids, hidden_ids_1T))
        found_1TD, delta_1 = integrator()(embedded).attribute(
            text_1TD,
            baselines=baseline_1TD,
            n_steps=steps,
            internal_batch_size=ROWS_AT_ONCE,
            return_convergence_delta=True,
        )
        with torch.no_grad():
            change = float(embedded(text_1TD) - embedded(baseline_1TD))
    weights_T = found_1TD[0].detach().double().sum(1).cpu().numpy()
    weights_W = np.bincount(owners_T[of_words_T], weights=weights_T[of_words_T], minlength=len(words))
    return Weights(tuple(weights_W.tolist()), missing=float(delta_1), change=change)


@dataclass(frozen=True, slots=True)
class _Embedded:
    """The log-odds of a class as a function of the token embeddings of a text.

    The model also receives the text's ids, since some models use them to find the position to classify at.
    """

    model: PreTrainedModel
    inputs: dict[str, Tensor]
    target: int

    def embed(self, ids_1T: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.model.get_input_embeddings()(ids_1T.to(self.model.device))
        return found

    def __call__(self, embeddings_BTD: Tensor) -> Tensor:
        inputs = {name: row.expand(len(embeddings_BTD), -1) for name, row in self.inputs.items()}
        hook = self.model.get_input_embeddings().register_forward_hook(lambda *_: embeddings_BTD)
        try:
            log_probs_BC = self.model(**inputs).logits.float().log_softmax(1)
        finally:
            hook.remove()
        others = torch.arange(log_probs_BC.shape[1], device=log_probs_BC.device) != self.target
        log_odds_B: Tensor = log_probs_BC[:, self.target] - log_probs_BC[:, others].logsumexp(1)
        return log_odds_B


def _owner(source: Source | None, words: Sequence[Word]) -> int:
    """The index of a token's word: the one with most shared characters; -1 for none."""
    if source is None:
        return -1
    side, begin, end = source
    shared = [min(end, w.end) - max(begin, w.begin) if w.side == side else 0 for w in words]
    best = max(range(len(words)), key=shared.__getitem__)
    return best if shared[best] > 0 else -1


def integrator() -> type[IntegratedGradients]:
    """The class ``IntegratedGradients`` of ``captum``; MissingResourceError if it is not installed."""
    try:
        from captum.attr import IntegratedGradients
    except ModuleNotFoundError as error:
        raise MissingResourceError(
            "integrated-gradients: the package captum is not installed; pip install "
            "'stlm-kd[attributions]', or leave integrated-gradients out of attributions"
        ) from error
    found: type[IntegratedGradients] = IntegratedGradients
    return found
