"""What a classifier makes of words: against models whose answer is known, by hand, and against scipy."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from html.parser import HTMLParser

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lime.lime_base import LimeBase
from lime.lime_text import LimeTextExplainer
from scipy.stats import spearmanr

from stlm_kd.data.labelled.encoding import encode_texts, token_sources
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import DataError, MissingResourceError
from stlm_kd.eval.agreement.report import Predictions
from stlm_kd.eval.attribution.compare import compared, rank_correlation, top_overlap
from stlm_kd.eval.attribution.explain import (
    AttributionConfig,
    ClassifierOutputs,
    ReadConfig,
    classifier_outputs,
)
from stlm_kd.eval.attribution.integrated_gradients import integrated_gradients
from stlm_kd.eval.attribution.lime import lime_weights, linear_weights, perturbations
from stlm_kd.eval.attribution.select import Choice, chosen
from stlm_kd.eval.attribution.words import _segmenter, without, words_of
from stlm_kd.models.heads.classifiers import classifier_from_fields
from stlm_kd.reporting.attribution_page import attribution_page
from tests.support.planted import planted

PARTS = dict.fromkeys(["the", "a", "sailors", "rode", "clear", "of", "rocks", "breeze", "loose"], 0.0)
SENTENCE = "The sailors, (rode) the breeze -- clear of the rocks."


def examples(*texts: str, sources: tuple[str, ...] = ()) -> Examples:
    ids = tuple(f"e{place}" for place in range(len(texts)))
    labels = np.arange(len(texts)) % 2
    return Examples(tuple((text,) for text in texts), labels, ids, ("bad", "good"), sources)


def test_words_are_without_the_punctuation_around_them() -> None:
    words = words_of([SENTENCE, "e.g. don't; … (mother-in-law)"])
    assert [word.text for word in words if word.side == 1] == ["e.g", "don't", "mother-in-law"]
    assert [word.text for word in words if word.side == 0] == (
        ["The", "sailors", "rode", "the", "breeze", "clear", "of", "the", "rocks"]
    )
    assert [word.text for word in words_of(["?! ..."])] == ["?!", "..."]
    assert words_of(["", " "]) == ()


def test_a_text_without_words_keeps_its_punctuation() -> None:
    words = words_of([SENTENCE])
    kept = np.array([word.text not in ("The", "rode", "rocks") for word in words])
    assert without([SENTENCE], words, kept) == ("sailors, () the breeze -- clear of the.",)
    assert without([SENTENCE], words, np.zeros(9, np.bool_)) == (", () --.",)
    assert without([" a  b "], words_of([" a  b "]), np.ones(2, np.bool_)) == (" a  b ",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("我喜欢machine learning、很多。", ["我", "喜欢", "machine", "learning", "很多"]),
        ("今日は天気が良い。", ["今日は", "天気が", "良い"]),
        ("หนังเรื่องนี้ ดีมาก", ["หนัง", "เรื่อง", "นี้", "ดี", "มาก"]),
        ("(猫)", ["猫"]),
    ],
    ids=["Chinese with English", "Japanese", "Thai", "one word"],
)
def test_scripts_without_blanks_are_divided_into_words(text: str, words: list[str]) -> None:
    found = words_of(["cat", text])
    assert [word.text for word in found] == ["cat", *words]
    assert all(("cat", text)[word.side][word.begin : word.end] == word.text for word in found)


def test_a_script_without_blanks_needs_the_segmenter_and_others_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "budoux", None)
    _segmenter.cache_clear()
    assert len(words_of([SENTENCE])) == 9
    with pytest.raises(
        MissingResourceError, match=r"\(thai\), and the package budoux.*stlm-kd\[attributions\]"
    ):
        words_of(["ดี"])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(2, 600), st.integers(0, 5))
def test_no_perturbation_is_repeated(num_words: int, samples: int, seed: int) -> None:
    kept, counts = perturbations(num_words, samples=samples, seed=seed)
    assert len(np.unique(kept, axis=0)) == len(kept) == len(counts) == min(samples, 2**num_words)
    assert kept[0].all() and counts[0] == 1 and counts.sum() == pytest.approx(5000)
    again = perturbations(num_words, samples=samples, seed=seed)
    assert (kept == again[0]).all() and (counts == again[1]).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(61, 600))
def test_each_number_of_left_out_words_counts_as_the_package_draws_it(num_words: int, samples: int) -> None:
    kept, counts = perturbations(num_words, samples=samples, seed=0)
    by_left_out = np.bincount((~kept).sum(1), weights=counts)
    assert by_left_out == pytest.approx([1, *[4999 / num_words] * num_words])


def test_few_samples_of_many_words_leave_out_any_number() -> None:
    """Over draws, each word is kept as often as in the package, 39 times of 80."""
    kept = np.concatenate([perturbations(40, samples=9, seed=seed)[0][1:] for seed in range(300)])
    assert np.bincount((~kept).sum(1), minlength=41)[1:] == pytest.approx(60, abs=32)
    assert kept.mean() == pytest.approx(39 / 80, abs=0.02)


@pytest.mark.parametrize("num_words", [1, 2, 3, 5, 8, 9, 10, 20, 50])
def test_lime_weights_are_the_packages_for_short_and_long_texts(num_words: int) -> None:
    """Within four times the package's noise with as many samples, which is 0 where all are there."""
    parts = {"w0": 1.5, "w1": -1.0, "w2": 0.5}

    def predict(texts: Sequence[str]) -> npt.NDArray[np.float64]:
        sums = np.array([sum(parts.get(word, 0.0) for word in text.split()) for text in texts])
        second = 1 / (1 + np.exp(-sums))
        return np.stack([1 - second, second], 1)

    text = " ".join(f"w{place}" for place in range(num_words))
    own = lime_weights(
        lambda perturbed: predict([one for (one,) in perturbed]),
        (text,),
        words_of([text]),
        1,
        samples=500,
        features=None,
        seed=0,
    )
    explained = LimeTextExplainer(bow=False, random_state=0).explain_instance(
        text, predict, labels=(1,), num_features=num_words, num_samples=5000
    )
    package = np.array([weight for _, weight in sorted(explained.as_map()[1])])
    assert own == pytest.approx(package, abs=0.004 if num_words < 10 else 0.012)
    if num_words < 3:  # here the ridge penalty is felt, in the package too
        assert own == pytest.approx([[0.122], [0.304, -0.244]][num_words - 1], abs=1e-3)


@pytest.mark.filterwarnings("ignore:.*(ill-conditioned|Singular)")  # few samples
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(2, 80), st.integers(1, 12), st.integers(0, 1000))
def test_selected_words_and_their_weights_are_the_packages(
    num_words: int, samples: int, features: int, seed: int
) -> None:
    kept, counts = perturbations(num_words, samples=samples, seed=seed)
    values = np.random.default_rng(seed).random((len(kept), 2))
    chosen = min(features, num_words)
    _, found, _, _ = LimeBase(lambda weights: weights).explain_instance_with_data(
        kept.astype(float), values, counts, 1, chosen, "none" if chosen == num_words else "auto"
    )
    package = np.zeros(num_words)
    package[[word for word, _ in found]] = [weight for _, weight in found]
    assert linear_weights(kept, values[:, 1], counts, features) == pytest.approx(package, abs=1e-9)


@pytest.mark.parametrize("place", [1, 2, 8])
@pytest.mark.parametrize("strength", [2.0, -1.0])
def test_both_methods_find_the_planted_word(place: int, strength: float) -> None:
    words = words_of([SENTENCE])
    model, tokenizer = planted({**PARTS, words[place].text: strength})
    asked = AttributionConfig(("lime", "integrated-gradients"), Choice(ids=("e0", "e1")), samples=200)
    found = classifier_outputs("m", model, tokenizer, examples(SENTENCE, "a"), ReadConfig(), asked)
    for method in asked.methods:
        weights = np.array(found.weights[method]["e0"].values)
        assert np.abs(weights).argmax() == place
        assert np.sign(weights[place]) == np.sign(strength)
        others = np.delete(np.abs(weights), place)
        assert others.max() < 0.15 * abs(weights[place])
        assert found.weights[method]["e1"].values == pytest.approx((0.0,), abs=1e-9)


def test_lime_is_the_weighted_ridge_regression_over_all_perturbations() -> None:
    parts = {"a": 0.5, "b": -1.0, "c": 2.0, "d": 0.0}
    texts = ("a b c d",)
    words = words_of(texts)

    def predict(perturbed: object) -> np.ndarray:  # type: ignore[type-arg]  # of any numbers
        sums = np.array([sum(parts[word] for word in text.split()) for (text,) in perturbed])  # type: ignore[attr-defined]  # texts
        second = 1 / (1 + np.exp(-sums))
        return np.stack([1 - second, second], 1)

    kept = np.array([[place >> bit & 1 for bit in range(4)] for place in range(16)], float)
    values = predict([(" ".join(w for w, k in zip("abcd", row, strict=True) if k),) for row in kept])[:, 1]
    similar = np.sqrt(np.exp(-((100 * (1 - np.sqrt(kept.mean(1)))) ** 2) / 25**2))
    left_out = (4 - kept.sum(1)).astype(int)
    similar *= [1 if not k else 4999 / (4 * math.comb(4, k)) for k in left_out]  # as often as lime draws them
    centred = kept - np.average(kept, axis=0, weights=similar)
    left = centred.T @ (similar[:, None] * centred) + np.eye(4)
    expected = np.linalg.solve(left, centred.T @ (similar * (values - np.average(values, weights=similar))))
    asked = {"samples": 500, "seed": 3}
    found = lime_weights(predict, texts, words, 1, features=None, **asked)  # type: ignore[arg-type]  # options of several types
    assert found == pytest.approx(expected, abs=1e-9)
    other_class = lime_weights(predict, texts, words, 0, features=None, **asked)  # type: ignore[arg-type]  # likewise
    assert other_class == pytest.approx(-expected, abs=1e-9)
    two = lime_weights(predict, texts, words, 1, features=2, **asked)  # type: ignore[arg-type]  # likewise
    assert list(np.flatnonzero(two)) == [1, 2]


def test_integrated_gradients_of_a_sum_are_its_parts() -> None:
    parts = {"a": 0.5, "b": -1.0, "c": 2.0, "d": 0.0}
    model, tokenizer = planted(parts)
    texts = ("b, a c a.",)
    found = integrated_gradients(model, tokenizer, texts, words_of(texts), 1, steps=5, context=32)
    assert found.values == pytest.approx([-1.0, 0.5, 2.0, 0.5], abs=1e-5)
    assert (found.change, found.missing) == pytest.approx((2.0, 0.0), abs=1e-5)
    cut = integrated_gradients(model, tokenizer, texts, words_of(texts), 0, steps=5, context=5)
    assert cut.values == pytest.approx([1.0, -0.5, 0.0, 0.0], abs=1e-5)


def test_integrated_gradients_add_up_from_the_masked_text() -> None:
    tokenizer = train_tokenizer([SENTENCE] * 3, "bpe", 280, masked=True)
    fields = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = classifier_from_fields(
        {**fields, "initializer_range": 0.3}, tokenizer, labels=("x", "y", "z"), context=48, seed=0
    ).eval()
    texts = ("The sailors left.", "The breeze!")
    words = words_of(texts)
    found = integrated_gradients(model, tokenizer, texts, words, 2, steps=60, context=48)
    row = encode_texts([texts], tokenizer, context=48, multiple=1).rows(np.zeros(1, np.int64))
    sources = token_sources(texts, tokenizer, context=48)
    in_words = torch.tensor(
        [s is not None and any(c.isalpha() for c in texts[s[0]][s[1] : s[2]]) for s in sources]
    )
    masked = torch.where(in_words, tokenizer.mask_token_id, row.input_ids)
    odds = []
    for ids in (row.input_ids, masked):
        with torch.no_grad():
            logits = model(input_ids=ids, token_type_ids=row.token_type_ids).logits[0].double()
        odds.append(float(logits[2] - torch.logsumexp(logits[:2], 0)))
    assert found.change is not None and found.missing is not None
    assert found.change == pytest.approx(odds[0] - odds[1], abs=1e-5)
    assert sum(found.values) == pytest.approx(found.change + found.missing, abs=1e-5)
    assert abs(found.missing) < 0.02 * abs(found.change)
    assert len(in_words) > len(words) + 5, "words of several tokens"


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("texts", [("the cat sat on",), ("the cat", "a mat and a dog ran on a log")])
def test_tokens_stand_where_their_characters_are(masked: bool, texts: tuple[str, ...]) -> None:
    tokenizer = train_tokenizer(
        ["the cat sat on a mat and a dog ran on a log"] * 3, "bpe", 280, masked=masked
    )
    for context in (32, 9):
        ids = encode_texts([texts], tokenizer, context=context).tokens
        sources = token_sources(texts, tokenizer, context=context)
        assert len(sources) == len(ids)
        for token, source in zip(ids, sources, strict=True):
            if source is None:
                assert int(token) in tokenizer.all_special_ids
            else:
                side, begin, end = source
                assert tokenizer.decode([int(token)]).strip() == texts[side][begin:end].strip()


def teacher(losses: list[float], labels: list[int]) -> Predictions:
    """Of two classes, with these losses on the labels."""
    sure = np.log(np.expm1(losses))
    logits = np.array([[s, 0.0] if label else [0.0, s] for s, label in zip(sure, labels, strict=True)])
    return Predictions(
        "t", tuple(f"e{i}" for i in range(len(labels))), np.array(labels), logits, ("bad", "good")
    )


def test_easy_and_hard_examples_are_those_of_least_and_most_loss() -> None:
    held = examples("a", "b", "c", "d", "e", "f", sources=("x", "x", "y", "y", "x", ""))
    told = teacher([0.5, 0.1, 2.0, 0.9, 0.2, 3.0], held.labels.tolist())
    assert chosen(told, held, Choice(2, which="easy")) == ("e1", "e4")
    assert chosen(told, held, Choice(3, which="hard")) == ("e5", "e2", "e3")
    assert chosen(told, held, Choice(4, which="easy-and-hard")) == ("e4", "e2", "e1", "e5")
    assert chosen(told, held, Choice(which="easy", classes=("good",))) == ("e1", "e3", "e5")
    assert chosen(told, held, Choice(which="easy", sources=("y",))) == ("e3", "e2")
    assert chosen(told, held, Choice(ids=("e3", "e0"))) == ("e3", "e0")
    drawn = chosen(told, held, Choice(3, seed=1))
    assert list(drawn) == sorted(set(drawn)) and len(drawn) == 3
    assert drawn == chosen(told, held, Choice(3, seed=1))
    assert {chosen(told, held, Choice(3, seed=seed)) for seed in range(9)} > {drawn}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(ids=("e0", "e9")), "example e9: none of 3 examples has this id"),
        (Choice(ids=("e0", "e2")), "example e2: its text has no word"),
        (
            Choice(classes=("god",)),
            r"class god: no example has it \(did you mean good\?\); known: bad, good",
        ),
        (Choice(sources=("x",)), "source x: no example has it; they have no column of that name"),
        (Choice(classes=("good",)), "1 of 3 examples have the given classes and sources"),
    ],
)
def test_examples_that_are_not_there_are_refused(choice: Choice, message: str) -> None:
    held = examples("a", "b", " ")
    with pytest.raises(DataError, match=message):
        chosen(teacher([1.0, 1.0, 1.0], [0, 1, 0]), held, choice)


WEIGHTS = st.lists(st.tuples(*[st.integers(-4, 4).map(float)] * 2), min_size=1, max_size=9)


@settings(max_examples=80)
@given(WEIGHTS)
def test_the_rank_correlation_is_scipys(pairs: list[tuple[float, float]]) -> None:
    first, second = (list(column) for column in zip(*pairs, strict=True))
    found = rank_correlation(first, second)
    if len(pairs) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


ORDERS = st.integers(1, 8).flatmap(lambda size: st.tuples(*[st.permutations(range(1, size + 1))] * 2))


@settings(max_examples=50)
@given(ORDERS, st.integers(1, 4))
def test_the_overlap_is_that_of_sorted_lists(orders: tuple[list[int], list[int]], top: int) -> None:
    first, second = ([-size if size % 2 else size for size in order] for order in orders)
    size = len(first)
    found = top_overlap(first, second, top)
    one, other = ({place for place in range(size) if order[place] > size - top} for order in orders)
    assert found == (None if size <= top else len(one & other) / top)


def test_words_without_weight_are_not_among_the_heaviest() -> None:
    assert top_overlap([0, 3, 0, 0], [0, -1, 0, 0], 3) == 1
    assert top_overlap([0, 3, 0, 0], [0, -1, 0.5, 0], 3) == 0.5
    assert top_overlap([0, 0, 0, 0], [0, 0, 0, 0], 3) is None


def explained(
    parts: dict[str, float], *, features: int | None = None, like: ClassifierOutputs | None = None
) -> ClassifierOutputs:
    model, tokenizer = planted(parts)
    held = examples(
        SENTENCE,
        "a rocks clear",
        "the breeze rode the rocks",
        "a of a the of sailors rode a clear a loose of",
    )
    asked = AttributionConfig(
        ("lime", "integrated-gradients"), Choice(examples=4), samples=300, features=features
    )
    return classifier_outputs("m", model, tokenizer, held, ReadConfig(), asked, like=like)


def test_agreement_of_explanations_is_that_of_its_examples() -> None:
    rng = np.random.default_rng(0)
    one, other = ({word: float(rng.normal()) for word in PARTS} for _ in range(2))
    first = explained(one)
    second = explained(other, like=first)
    lime, gradients = compared(first, second, top=2).explanations
    for found in (lime, gradients):
        own, others = first.weights[found.method], second.weights[found.method]
        expected = [spearmanr(own[i].values, others[i].values).statistic for i in own]
        assert [row.correlation for row in found.examples] == pytest.approx(expected)
        assert found.correlation is not None and found.correlation.value == pytest.approx(np.mean(expected))
        assert found.correlation.stderr == pytest.approx(np.std(expected, ddof=1) / 2)
        assert found.correlation.low < found.correlation.value < found.correlation.high
        sizes = [len(weights.values) for weights in own.values()]
        assert found.by_chance == pytest.approx(np.mean([2 / size for size in sizes]))
    assert gradients.teacher_again is None and gradients.teacher_missing == pytest.approx(0, abs=1e-5)
    again = {row.id: row.teacher_again for row in lime.examples}
    assert again["e1"] == again["e2"] == 1, "all perturbations are there, so that nothing is drawn"
    assert again["e0"] is not None and 0.5 < again["e0"] < 1
    assert first.to_json() == explained(one).to_json()
    itself = compared(first, explained(one, like=first), top=2).explanations[0]
    assert itself.correlation is not None and itself.correlation.value == 1 == itself.correlation.low


def test_the_page_shows_every_model_and_number_and_escapes_all_texts() -> None:
    evil = '<script>alert("x")</script> & <b onload=y>rode'
    model, tokenizer = planted({**PARTS, "rode": 2.0})
    weaker, _ = planted({**PARTS, "rode": -1.0})
    held = examples(evil, "the breeze of rocks", "a rode")
    asked = AttributionConfig(("integrated-gradients",), Choice(ids=("e0", "e1")))
    first = classifier_outputs("<i>teacher</i>", model, tokenizer, held, ReadConfig(), asked)
    second = classifier_outputs("stud&ent", weaker, tokenizer, held, ReadConfig(), asked, like=first)
    found = compared(first, second, top=2)
    texts = dict(zip(held.ids, held.texts, strict=True))
    page = attribution_page([first, second], [found], texts)
    parser = Seen()
    parser.feed(page)
    assert {"script", "b", "i"}.isdisjoint(parser.tags)
    assert not any(name in ("src", "href", "onload") for name, _ in parser.attributes)
    words = [text for text in parser.texts if "alert" in text]
    assert len(words) == 3, "coloured once for each model, and once among the numbers"
    assert "<i>teacher</i>" in parser.texts and "stud&ent" in parser.texts
    titles = [value for name, value in parser.attributes if name == "title"]
    assert "+2.0000" in titles and "-1.0000" in titles
    colours = [str(value) for name, value in parser.attributes if name == "style"]
    assert {"background:#fd8d3c", "background:#6baed6", "background:#ffffff"} == set(colours)
    assert attribution_page([first, second], [found], texts) == page


class Seen(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_answers_survive_json() -> None:
    found = explained({**PARTS, "rocks": 1.0}, features=2)
    assert max(sum(w != 0 for w in one.values) for one in found.weights["lime"].values()) == 2
    read = ClassifierOutputs.from_json(found.to_json(), name="m")
    assert read.to_json() == found.to_json()
    assert read.weights == found.weights and math.isfinite(read.predictions.logits.sum())
