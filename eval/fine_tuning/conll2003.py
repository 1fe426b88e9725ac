"""CoNLL-2003: its tags, the study's settings, and the scores of a fine-tuned model.

Wu et al., "Causal Distillation for Language Models", 2022, section 5 and A.4: learning rate 5e-5, batch 32, 3
epochs; evaluated on the development set.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from stlm_kd.artifacts.results import Json, SuiteResult
from stlm_kd.data.labelled.batches import example_evaluation_batches
from stlm_kd.data.labelled.token_labels import Sentences, encode_words
from stlm_kd.eval.fine_tuning.base import Precision, Settings
from stlm_kd.eval.fine_tuning.entities import entity_scores
from stlm_kd.eval.runner import autocast, require_finite
from stlm_kd.models.forward import evaluating, inputs_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SUITE: Final = "ner"
TASK: Final = "conll2003"
TAGS: Final = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
HUB: Final = "lhoestq/conll2003"
CONTEXT: Final = 256
STUDY: Final = Settings(epochs=3, learning_rate=5e-5, effective_batch=32)
_BATCH = 64


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    sentences: Sentences,
    *,
    context: int,
    precision: Precision,
) -> SuiteResult:
    """Entity F1, micro and macro, and accuracy of a model that was fine-tuned to tag words.

    A word that is truncated, or that the tokenizer encodes to nothing, counts as predicted ``O``; a note
    gives their number.

    Args:
        model: With a token classification head for the sentences' tags.
        tokenizer: Its tokenizer.
        sentences: At least one.
        context: Maximum tokens of a sentence.
        precision: ``bf16`` runs the model under autocast.

    Raises:
        MissingResourceError: seqeval is not installed.
    """
    encoded = encode_words(sentences, tokenizer, context=context)
    predicted: list[list[str]] = [["O"] * len(words) for words in sentences.words]
    with torch.no_grad(), evaluating(model), autocast(model.device, precision):
        for batch in example_evaluation_batches(encoded, micro_batch=_BATCH):
            logits_BTC = model(**inputs_of(batch.to(model.device), model)).logits
            require_finite(model, logits_BTC, suite=SUITE)
            places_BT = logits_BTC.argmax(-1).cpu().numpy()
            for row, number in enumerate(batch.example_ids.tolist()):
                firsts = encoded.firsts[number]
                for word in np.flatnonzero(firsts >= 0):
                    predicted[number][word] = sentences.tag_names[places_BT[row, firsts[word]]]
    labels = [[sentences.tag_names[tag] for tag in tags] for tags in sentences.tags]
    found = entity_scores(predicted, labels, task=TASK, ids=sentences.ids, suite=SUITE)
    notes = (f"{TASK}: {encoded.unread} words are not encoded and count as O",) if encoded.unread else ()
    predictions: dict[str, Json] = {
        name: [*tags] for name, tags in zip(sentences.ids, predicted, strict=True)
    }
    known: dict[str, Json] = {"texts": sentences.digest(), "told": predictions}
    scores = found.scores
    if len(labels) > 1 and {tag for tags in predicted for tag in tags} == {"O"} != {
        tag for tags in labels for tag in tags
    }:
        reason = f"degenerate: finds no entity in all {len(labels):,} sentences"
        scores = tuple(replace(score, degenerate=reason) for score in scores)
    return replace(found, scores=scores, notes=notes, report={**found.report, **known})
