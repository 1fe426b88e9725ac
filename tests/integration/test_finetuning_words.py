"""NER and questions: metrics as seqeval and the official rules have them, encodings, fine-tunings."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from seqeval import metrics
from seqeval.metrics.sequence_labeling import get_entities
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, LlamaConfig, PreTrainedTokenizerFast

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.data.batch import IGNORED
from stlm_kd.data.labelled.batches import example_evaluation_batches
from stlm_kd.data.labelled.question_answering import Question, encode_windows, read_questions
from stlm_kd.data.labelled.token_labels import Sentences, encode_words, read_sentences
from stlm_kd.data.sources.sources import Source, documents
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.errors import DataError, MissingResourceError
from stlm_kd.eval import SUITES
from stlm_kd.eval.fine_tuning import conll2003, squad
from stlm_kd.eval.fine_tuning.entities import (
    entities_by_kind,
    entities_in,
    entity_counts,
    entity_scores,
    kinds_in,
    macro_f1,
    micro_f1,
)
from stlm_kd.losses import LABELS
from stlm_kd.models.heads.tokens import SPAN, load_token_classifier
from stlm_kd.models.load import save_model
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.stages.fine_tune import tuned_scores

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
QUICK = {"steps": 6, "effective_batch": 16, "learning_rate": 1e-2, "seeds": 1, "source": "local"}
NAMES = ("Ann", "Bob", "Rome", "Oslo")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences with names, questions after a name, and two models with a tokenizer for both."""
    folder = tmp_path_factory.mktemp("words-world")
    texts = list(documents(Source(sample="train", size=4000)))
    write_data(folder / "data")
    torch.manual_seed(0)
    masked = train_tokenizer([*texts, *NAMES], size=300, masked=True)
    own = train_tokenizer([*texts, *NAMES], size=300)
    save_model(AutoModel.from_config(BertConfig(vocab_size=len(masked), **SHAPE)), masked, folder / "bert")
    llama = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(own), **SHAPE))
    save_model(llama, own, folder / "llama")
    return folder


def write_data(folder: Path) -> None:
    rows: dict[str, list[dict[str, Any]]] = {"conll2003": [], "squad_v1.1": []}
    for place in range(24):
        name, other = NAMES[place % 4], NAMES[(place + 1) % 4]
        tags = ["O", "B-PER" if place % 4 < 2 else "B-LOC", "O", "O"]
        rows["conll2003"].append({"id": str(place), "tokens": ["so", name, "is", "here"], "ner_tags": tags})
        passage = f"the dog sees {name} and the cat sees {other}"
        rows["squad_v1.1"].append(
            {"id": f"q{place}", "context": passage, "question": "whom does the dog see?",
             "answers": {"text": [name], "answer_start": [passage.index(name)]}}
        )  # fmt: skip
    for task, found in rows.items():
        for split, part in (("train", found[:16]), ("validation", found[16:])):
            (folder / task).mkdir(parents=True, exist_ok=True)
            lines = "\n".join(map(json.dumps, part))
            (folder / task / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def scored(world: Path, suite: str, output_dir: Path, model: str = "bert", **options: Any) -> SuiteResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STLM_KD_DATA", str(world / "data"))
        (result,) = tuned_scores(suite, {**QUICK, **options}, str(world / model), RunContext(output_dir))
    return result


def tokenizer_of(world: Path, model: str) -> PreTrainedTokenizerFast:
    found = PreTrainedTokenizerFast.from_pretrained(world / model)
    assert isinstance(found, PreTrainedTokenizerFast)
    return found


TAGS = st.sampled_from(conll2003.TAGS)


@settings(max_examples=60)
@given(st.lists(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=7), min_size=2, max_size=8))
def test_entity_scores_are_seqevals(sentences: list[list[tuple[str, str]]]) -> None:
    told, labels = ([[pair[side] for pair in row] for row in sentences] for side in (0, 1))
    assume(any(tag != "O" for row in (*told, *labels) for tag in row))
    for tags in (*told, *labels):
        assert entities_in(tags) == set(get_entities(tags))
    ids = [f"s{place}" for place in range(len(told))]
    result = entity_scores(told, labels, task="t", ids=ids, suite="ner")
    found = {score.metric: score.value for score in result.scores}
    assert found == pytest.approx(
        {
            "entity_f1": metrics.f1_score(labels, told, zero_division=0),
            "entity_macro_f1": metrics.f1_score(labels, told, average="macro", zero_division=0),
            "accuracy": metrics.accuracy_score(labels, told),
        }
    )
    words = sum(map(len, labels))
    of_sentences = zip(result.examples, labels, strict=True)
    assert sum(row.value * len(tags) for row, tags in of_sentences) == pytest.approx(
        found["accuracy"] * words
    )


def test_without_any_entity_f1_is_0_and_accuracy_counts() -> None:
    result = entity_scores([["O"]], [["O"]], task="t", ids=["s"], suite="ner")
    assert [score.value for score in result.scores] == [0, 0, 1]


def test_resampled_entity_scores_scatter_about_seqevals() -> None:
    told = [["B-PER", "I-PER", "O"], ["B-LOC", "O", "O"], ["O", "B-ORG", "O"]]
    labels = [["B-PER", "O", "O"], ["B-LOC", "O", "B-PER"], ["O", "B-ORG", "O"]]
    counts = entities_by_kind(told, labels)
    whole = entity_counts(counts, kinds_in(counts)).sum(0)[None]
    assert micro_f1(whole)[0] == pytest.approx(metrics.f1_score(labels, told))
    assert macro_f1(whole)[0] == pytest.approx(metrics.f1_score(labels, told, average="macro"))


def official_normalised(text: str) -> str:
    """Written out after the official evaluation script of SQuAD v1.1."""
    lowered = text.lower()
    unmarked = "".join(sign for sign in lowered if sign not in string.punctuation)
    return " ".join(word for word in re.split(r"\s+", re.sub(r"\b(a|an|the)\b", " ", unmarked)) if word)


def official_f1(prediction: str, truth: str) -> float:
    told, right = official_normalised(prediction).split(), official_normalised(truth).split()
    common = Counter(told) & Counter(right)
    same = sum(common.values())
    if same == 0:
        return 0
    precision, recall = same / len(told), same / len(right)
    return (2 * precision * recall) / (precision + recall)


PHRASES = st.lists(st.sampled_from(["the", "A", "cat", "cat's", "Cat", "an", "hat,", "-", "3.5"]), max_size=5)


@settings(max_examples=100)
@given(st.lists(st.tuples(PHRASES, st.lists(PHRASES, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_answers_are_scored_by_the_official_rules(cases: list[tuple[list[str], list[list[str]]]]) -> None:
    questions = [
        Question(f"q{place}", "?", "", tuple((" ".join(one), 0) for one in answers))
        for place, (_, answers) in enumerate(cases)
    ]
    told = {one.id: " ".join(case[0]) for one, case in zip(questions, cases, strict=True)}
    result = squad.answer_scores(told, questions)
    pairs = [(told[one.id], [text for text, _ in one.answers]) for one in questions]
    exact = [max(official_normalised(a) == official_normalised(b) for b in right) for a, right in pairs]
    shared = [max(official_f1(a, b) for b in right) for a, right in pairs]
    assert result.score("squad_v1.1", "exact_match").value == pytest.approx(sum(exact) / len(exact))
    assert result.score("squad_v1.1", "token_f1").value == pytest.approx(sum(shared) / len(shared))
    assert [row.id for row in result.examples if row.metric == "token_f1"] == list(told)


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_a_words_first_token_bears_its_tag(world: Path, model: str) -> None:
    tokenizer = tokenizer_of(world, model)
    words = (("so", "Roman", "dogs,", "see"), ("x",))
    encoded = encode_words(
        Sentences(words, ((0, 5, 0, 1), (2,)), ("a", "b"), conll2003.TAGS), tokenizer, context=32, multiple=1
    )
    batch = encoded.batch(torch.arange(2).numpy())
    for row, (sentence, tags) in enumerate(zip(words, ((0, 5, 0, 1), (2,)), strict=True)):
        labelled = (batch.labels[row] != IGNORED).nonzero().squeeze(1).tolist()
        assert labelled == encoded.firsts[row].tolist()
        assert batch.labels[row, labelled].tolist() == list(tags)
        ids = batch.input_ids[row].tolist()
        ends = [*labelled[1:], int(batch.attention_mask[row].sum())]
        for word, begin, end in zip(sentence, labelled, ends, strict=True):
            read = tokenizer.decode(ids[begin:end], skip_special_tokens=True).replace(" ", "")
            assert read == word


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_windows_hold_the_answer_where_they_say(world: Path, model: str) -> None:
    tokenizer = tokenizer_of(world, model)
    passage = " ".join(["the dog sees the cat and"] * 6 + ["Bob"] + ["the cat sees the dog"] * 6)
    question = Question("q", "who is it?", passage, (("Bob", passage.index("Bob")),))
    windows = encode_windows([question], tokenizer, context=48, stride=12, multiple=1)
    assert len(windows) > 2
    covered = set()
    for place, (begin, end) in enumerate(windows.labels.tolist()):
        first = windows.own.offsets[place]
        spans = windows.characters[first : windows.own.offsets[place + 1]]
        covered |= {at for a, b in spans.tolist() for at in range(a, b)}
        if end:
            assert passage[spans[begin][0] : spans[end][1]].strip() == "Bob"
    assert {at for at, sign in enumerate(passage) if sign != " "} <= covered
    assert windows.labels.any()
    with pytest.raises(DataError, match="windows share 40"):
        encode_windows([question], tokenizer, context=48, stride=40)


def test_the_likeliest_span_lies_in_the_passage_and_begins_before_it_ends(world: Path) -> None:
    question = Question("q", "the dog?", "so Bob sees Ann", (("Bob", 3),))
    windows = encode_windows([question], tokenizer_of(world, "bert"), context=48, stride=4, multiple=1)
    logits = torch.full((int(windows.own.lengths()[0]), 2), -1.0).double().numpy()
    begin, end = windows.labels[0]
    logits[0] = 99  # outside the passage
    logits[begin, 0], logits[end, 1] = 5, 5
    if begin:
        logits[begin - 1, 1] = 7  # an end before the beginning
    assert squad.best_span(logits, windows, 0) == (10.0, 3, 6)


@pytest.mark.parametrize("kind", ["words", "span"])
def test_any_split_into_micro_batches_gives_the_same_gradient(world: Path, kind: str) -> None:
    """However much padding a row gets: it is no position of a span."""
    tokenizer = tokenizer_of(world, "bert")
    labels = conll2003.TAGS if kind == "words" else SPAN
    model = load_token_classifier(
        str(world / "bert"), labels, tokenizer=tokenizer, trust_remote_code=False, head_seed=0
    )
    data = world / "data"
    encoded: Any = (
        encode_words(
            read_sentences(conll2003.TAGS, path=str(data / "conll2003/train.jsonl")), tokenizer, context=32
        )
        if kind == "words"
        else encode_windows(
            read_questions(path=str(data / "squad_v1.1/train.jsonl")), tokenizer, context=40, stride=8
        )
    )
    step = DistillationStep(model, [Term(LABELS, LABELS)]).eval()
    found = []
    for size in (3, len(encoded)):
        step.zero_grad()
        batches = list(example_evaluation_batches(encoded, micro_batch=size))
        total = sum(step.count(batch)[LABELS] for batch in batches)
        for batch in batches:
            step(batch, {LABELS: total}).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_entities_are_learnt_and_the_fine_tuning_found_again(world: Path, tmp_path: Path, model: str) -> None:
    result = scored(world, "ner", tmp_path, model, steps=25)
    assert result.score("conll2003", "entity_f1").value > 0.9
    assert scored(world, "ner", tmp_path, model, steps=25) == result
    told = result.report["told"]
    assert isinstance(told, Mapping) and told.keys() == {str(place) for place in range(16, 24)}


def test_answers_are_found_by_span(world: Path, tmp_path: Path) -> None:
    result = scored(world, "squad", tmp_path, steps=60, context=40, stride=8)
    assert result.score("squad_v1.1", "exact_match").value > 0.5
    assert result.score("squad_v1.1", "token_f1").value >= result.score("squad_v1.1", "exact_match").value
    again = scored(world, "squad", tmp_path / "again", steps=60, context=40, stride=8)
    assert again.report["told"] == result.report["told"]


def test_tags_and_answers_that_are_not_there_are_refused(tmp_path: Path) -> None:
    sentence = {"tokens": ["a", "b"], "ner_tags": ["O", "B-DOG"]}
    (tmp_path / "tags.jsonl").write_text(json.dumps(sentence), encoding="utf-8")
    with pytest.raises(DataError, match="tag 'B-DOG' is not one of the tags"):
        read_sentences(conll2003.TAGS, path=str(tmp_path / "tags.jsonl"))
    row = {"id": "1", "context": "a cat", "question": "?", "answers": {"text": ["dog"], "answer_start": [0]}}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(DataError, match="'dog' is not at character 0 of the context"):
        read_questions(path=str(tmp_path / "answers.jsonl"))


@pytest.mark.parametrize("suite", ["ner", "squad"])
def test_where_missing_data_may_lie_is_told(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STLM_KD_DATA", str(tmp_path))
    with pytest.raises(
        MissingResourceError, match=rf"{suite}: data of 1 of 1 tasks is missing\n  .*no train\.jsonl"
    ):
        SUITES[suite].check({"source": "local"})


def test_the_studies_settings() -> None:
    (words, *_), (spans, *_) = SUITES["ner"](), SUITES["squad"]()
    of = [
        (one.settings.learning_rate, one.settings.effective_batch, one.settings.epochs)
        for one in (words, spans)
    ]
    assert of == [(5e-5, 32, 3), (3e-5, 48, 2)]
    assert spans.stride == 128
