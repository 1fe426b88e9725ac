"""SQuAD v1.1: the study's settings, spans from windows, exact match and F1 by the official definition.

Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", 2016, section 6.1. Settings:
Wu et al., "Causal Distillation for Language Models", 2022, A.4: learning rate 3e-5, batch 48, 2 epochs,
windows that share 128 tokens; evaluated on the development set.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias

from stlm_kd.artifacts.results import ExampleScore, Json, Score, SuiteResult, text_hash
from stlm_kd.data.labelled.question_answering import (
    EncodedWindows,
    Question,
    digest,
    draw_questions,
    encode_windows,
    read_questions,
)
from stlm_kd.eval.classification.metrics import example_scores, mean_stderr
from stlm_kd.eval.fine_tuning.base import FINE_TUNING, FineTuneTask
from stlm_kd.eval.fine_tuning.benchmark_data import VALIDATION
from stlm_kd.eval.runner import example_logits
from stlm_kd.lazy import np
from stlm_kd.sharing.data_sets.named import TRAIN

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stlm_kd.artifacts.stage_store import Json as KeyPart

SUITE: Final = "squad"
TASK: Final = "squad_v1.1"
HUB: Final = "rajpurkar/squad"
STRIDE: Final = 128
STUDY: Final = replace(FINE_TUNING, epochs=2, learning_rate=3e-5, effective_batch=48)
LONGEST_ANSWER: Final = 30
"""Maximum tokens of an answer, as in BERT's own script."""

_BEST = 20
_NO_SPAN: tuple[float, str, tuple[int, ...]] = (-math.inf, "", ())
_BATCH = 32

Floats: TypeAlias = "npt.NDArray[np.float64]"


def normalised(answer: str) -> str:
    """An answer as the official script compares it: lower case, no punctuation or articles, single spaces.

    >>> normalised("The  Cat's, a hat")
    'cats hat'
    """
    bare = "".join(character for character in answer.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(answer: str, right: str) -> float:
    """1 if both are equal after normalisation, else 0."""
    return float(normalised(answer) == normalised(right))


def token_f1(answer: str, right: str) -> float:
    """The F1 of the shared words, counted with multiplicity; 0 if there are none."""
    predicted, truth = normalised(answer).split(), normalised(right).split()
    shared = sum((Counter(predicted) & Counter(truth)).values())
    return 2 * shared / (len(predicted) + len(truth)) if shared else 0.0


def answer_scores(
    told: Mapping[str, str], questions: Sequence[Question], *, one_span: bool = False
) -> SuiteResult:
    """Exact match and F1, 0 to 1: the best over each question's answers, averaged over the questions.

    ``told``: the predicted answers by id; ``one_span``: they are all at the same tokens of their windows.
    """
    rows: list[ExampleScore] = []
    scores = []
    for name, metric in (("exact_match", exact_match), ("token_f1", token_f1)):
        values = np.array(
            [max(metric(told[one.id], text) for text, _ in one.answers) for one in questions], np.float64
        )
        scores.append(Score(TASK, name, float(values.mean()), mean_stderr(values), len(values)))
        rows += example_scores(TASK, name, [one.id for one in questions], values)
    degenerate = _degenerate(list(told.values()), one_span=one_span) if scores[0].value < 1 else None
    scores = [replace(score, degenerate=degenerate) for score in scores]
    report: dict[str, Json] = {"task": TASK, "told": dict(told), "texts": digest(questions)}
    texts = {TASK: {one.id: text_hash([one.question, one.passage]) for one in questions}}
    return SuiteResult(SUITE, tuple(scores), tuple(rows), report=report, texts=texts)


def _degenerate(answers: Sequence[str], *, one_span: bool) -> str | None:
    """``Score.degenerate`` for a model with the same answer, or span, for all of several questions."""
    if len(answers) < 2 or not (one_span or len(set(answers)) == 1):
        return None
    same = "answer" if len(set(answers)) == 1 else "span of tokens"
    return f"degenerate: predicts the same {same} for all {len(answers):,} questions"


def _tokens_of(begin: int, end: int, windows: EncodedWindows, window: int) -> tuple[int, ...]:
    """The first and last token of a character span, counted from the window's first passage token."""
    first, last = windows.own.offsets[window : window + 2]
    starts = windows.characters[first:last, 0]
    places = np.searchsorted(starts[starts >= 0], [begin, end - 1], side="right") - 1
    return tuple(places.tolist())


def best_span(logits_T2: Floats, windows: EncodedWindows, window: int) -> tuple[float, int, int] | None:
    """The most likely span of a window's passage: the sum of its logits, and its start and end.

    Considers the ``_BEST`` most likely starts and ends, and spans of at most ``LONGEST_ANSWER`` tokens; None
    if there is none.
    """
    first, last = windows.own.offsets[window : window + 2]
    characters_T2 = windows.characters[first:last]
    places = np.flatnonzero(characters_T2[:, 0] >= 0)
    if not len(places):
        return None
    starts, ends = (places[np.argsort(-logits_T2[places, side], kind="stable")[:_BEST]] for side in (0, 1))
    pairs = [(s, e) for s in starts for e in ends if s <= e < s + LONGEST_ANSWER]
    if not pairs:
        return None
    begin, end = max(pairs, key=lambda pair: logits_T2[pair[0], 0] + logits_T2[pair[1], 1])
    value = float(logits_T2[begin, 0] + logits_T2[end, 1])
    return value, int(characters_T2[begin, 0]), int(characters_T2[end, 1])


@dataclass(frozen=True)
class Squad(FineTuneTask[tuple[Question, ...]]):
    """SQuAD v1.1 as a fine-tuning task."""

    suite = SUITE
    hub = HUB
    context = 384
    unit = "nats/end"

    @property
    def _stride(self) -> int:
        assert self.job.stride is not None
        return self.job.stride

    def examples_key(self) -> KeyPart:
        return [digest(self.read(TRAIN), in_order=True), digest(self.read(VALIDATION))]

    def load(self, split: str) -> tuple[Question, ...]:
        assert self.found is not None
        return _questions(self.found.file(split), self.found.hub[0], split)

    def drawn(self) -> tuple[Question, ...]:
        return draw_questions(self.read(TRAIN), self.job.fraction, seed=self.job.seed)

    def model(self, name: str, tokenizer: PreTrainedTokenizerFast, *, trust: bool) -> PreTrainedModel:
        from stlm_kd.models.heads.tokens import SPAN, load_token_classifier

        return load_token_classifier(
            name, SPAN, tokenizer=tokenizer, trust_remote_code=trust, head_seed=self.job.seed
        )

    def encoded(
        self, tokenizer: PreTrainedTokenizerFast, *, context: int, multiple: int
    ) -> tuple[EncodedWindows, tuple[str, ...]]:
        drawn = self.drawn()
        windows = encode_windows(drawn, tokenizer, context=context, stride=self._stride, multiple=multiple)
        return windows, (f"{len(drawn)} questions in {len(windows)} windows",)

    def head(self, model: PreTrainedModel) -> str:
        return "every token"

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        data: tuple[Question, ...],
        *,
        part: str,
        context: int,
    ) -> SuiteResult:
        windows = encode_windows(data, tokenizer, context=context, stride=self._stride)
        best: dict[int, tuple[float, str, tuple[int, ...]]] = {}
        precision = self.job.settings.precision
        for places, logits_BT2 in example_logits(
            model, windows, batch_size=_BATCH, precision=precision, suite=SUITE
        ):
            for window, logits_T2 in zip(places, logits_BT2.double().cpu().numpy(), strict=True):
                question = int(windows.questions[window])
                found = best_span(logits_T2, windows, window)
                if found is not None and found[0] > best.get(question, _NO_SPAN)[0]:
                    value, begin, end = found
                    text = data[question].passage[begin:end]
                    best[question] = value, text, _tokens_of(begin, end, windows, window)
        found_spans = [best.get(place, _NO_SPAN) for place in range(len(data))]
        answers = {one.id: text for one, (_, text, _) in zip(data, found_spans, strict=True)}
        return answer_scores(answers, data, one_span=len({tokens for *_, tokens in found_spans}) == 1)


@lru_cache(maxsize=2)
def _questions(path: str | None, dataset: str, split: str) -> tuple[Question, ...]:
    return read_questions(path=path, dataset=dataset, split=split)
