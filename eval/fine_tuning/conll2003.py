"""CoNLL-2003: its tags, the study's settings, and the scores of a fine-tuned model.

Wu et al., "Causal Distillation for Language Models", 2022, section 5 and A.4: learning rate 5e-5, batch 32, 3
epochs; evaluated on the development set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from stlm_kd.artifacts.results import Json, SuiteResult, text_hash
from stlm_kd.data.labelled.token_labels import EncodedWords, Sentences, encode_words, read_sentences
from stlm_kd.errors import DataError
from stlm_kd.eval.fine_tuning.base import FINE_TUNING, FineTuneTask
from stlm_kd.eval.fine_tuning.benchmark_data import VALIDATION
from stlm_kd.eval.fine_tuning.entities import entity_scores
from stlm_kd.eval.runner import example_logits
from stlm_kd.lazy import np
from stlm_kd.sharing.data_sets.named import TRAIN

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stlm_kd.artifacts.stage_store import Json as KeyPart

SUITE: Final = "ner"
TASK: Final = "conll2003"
TAGS: Final = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
HUB: Final = "lhoestq/conll2003"
STUDY: Final = replace(FINE_TUNING, epochs=3, learning_rate=5e-5, effective_batch=32)
_BATCH = 64


@dataclass(frozen=True)
class Conll2003(FineTuneTask[Sentences]):
    """CoNLL-2003 as a fine-tuning task."""

    suite = SUITE
    hub = HUB
    context = 256
    unit = "nats/word"

    def examples_key(self) -> KeyPart:
        return [self.read(TRAIN).digest(in_order=True), self.read(VALIDATION).digest()]

    def load(self, split: str) -> Sentences:
        assert self.found is not None
        return _sentences(self.found.file(split), self.found.hub[0], split)

    def drawn(self) -> Sentences:
        drawn = self.read(TRAIN).draw(self.job.fraction, seed=self.job.seed)
        if not any(tag for tags in drawn.tags for tag in tags):
            raise DataError(
                f"{SUITE}: {self.job.fraction:g} of the sentences ({len(drawn)}) leaves no entity; draw a "
                "larger fraction"
            )
        return drawn

    def model(self, name: str, tokenizer: PreTrainedTokenizerFast, *, trust: bool) -> PreTrainedModel:
        from stlm_kd.models.heads.tokens import load_token_classifier

        return load_token_classifier(
            name, TAGS, tokenizer=tokenizer, trust_remote_code=trust, head_seed=self.job.seed
        )

    def encoded(
        self, tokenizer: PreTrainedTokenizerFast, *, context: int, multiple: int
    ) -> tuple[EncodedWords, tuple[str, ...]]:
        words = encode_words(self.drawn(), tokenizer, context=context, multiple=multiple)
        note = f"{words.unread} words have no token within {context} positions"
        return words, (note,) if words.unread else ()

    def head(self, model: PreTrainedModel) -> str:
        return "each word's first token"

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        data: Sentences,
        *,
        part: str,
        context: int,
    ) -> SuiteResult:
        """Entity F1, micro and macro, and accuracy.

        A word that is truncated, or that the tokenizer encodes to nothing, counts as predicted ``O``; a note
        gives their number.
        """
        encoded = encode_words(data, tokenizer, context=context)
        predicted: list[list[str]] = [["O"] * len(words) for words in data.words]
        precision = self.job.settings.precision
        for numbers, logits_BTC in example_logits(
            model, encoded, batch_size=_BATCH, precision=precision, suite=SUITE
        ):
            for number, places_T in zip(numbers, logits_BTC.argmax(-1).cpu().numpy(), strict=True):
                firsts = encoded.firsts[number]
                for word in np.flatnonzero(firsts >= 0):
                    predicted[number][word] = data.tag_names[places_T[firsts[word]]]
        labels = [[data.tag_names[tag] for tag in tags] for tags in data.tags]
        found = entity_scores(predicted, labels, task=TASK, ids=data.ids, suite=SUITE)
        notes = (f"{TASK}: {encoded.unread} words are not encoded and count as O",) if encoded.unread else ()
        predictions: dict[str, Json] = {name: [*tags] for name, tags in zip(data.ids, predicted, strict=True)}
        known: dict[str, Json] = {"texts": data.digest(), "told": predictions}
        scores = found.scores
        if len(labels) > 1 and {tag for tags in predicted for tag in tags} == {"O"} != {
            tag for tags in labels for tag in tags
        }:
            reason = f"degenerate: finds no entity in all {len(labels):,} sentences"
            scores = tuple(replace(score, degenerate=reason) for score in scores)
        texts = {TASK: {name: text_hash([*words]) for name, words in zip(data.ids, data.words, strict=True)}}
        return replace(found, scores=scores, notes=notes, report={**found.report, **known}, texts=texts)


@lru_cache(maxsize=2)
def _sentences(path: str | None, dataset: str, split: str) -> Sentences:
    return read_sentences(TAGS, path=path, dataset=dataset, split=split)
