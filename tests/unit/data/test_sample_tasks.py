"""The sample's labelled tasks: disjoint splits, balanced labels, the same everywhere, and not too easy."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from scipy.optimize import minimize

from stlm_kd.data.synthetic import SPLITS, TASKS, sample_rows, tasks
from stlm_kd.data.synthetic.pairs import minimal_pairs
from stlm_kd.errors import DataError


@pytest.mark.parametrize("task", TASKS)
def test_the_splits_share_no_sentence_and_each_is_balanced(task: str) -> None:
    split = {name: sample_rows(task, name, count=600) for name in SPLITS}
    sentences = [row["sentence"] for rows in split.values() for row in rows]
    assert len(set(sentences)) == 1200
    for rows in split.values():
        assert Counter(row["label"] for row in rows) == {0: 300, 1: 300}
        assert [row["idx"] for row in rows] == list(range(600))


@pytest.mark.parametrize("task", TASKS)
def test_a_longer_list_begins_with_the_shorter_one(task: str) -> None:
    assert sample_rows(task, "validation", count=200)[:51] == sample_rows(task, "validation", count=51)


@pytest.mark.parametrize("task", TASKS)
def test_seeds_give_different_sentences(task: str) -> None:
    first, other = (sample_rows(task, "train", count=50, seed=seed) for seed in (0, 1))
    assert first == sample_rows(task, "train", count=50, seed=0)
    assert first != other


@pytest.mark.parametrize(
    ("task", "expected"),
    [("acceptability", "d234a3caae5779a3"), ("sentiment", "dbd0714996599839")],
)
def test_every_version_of_python_makes_the_same_sentences(task: str, expected: str) -> None:
    rows = sample_rows(task, "train", count=300)
    text = "\n".join(f"{row['label']} {row['sentence']}" for row in rows)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == expected


def test_no_accepted_sentence_is_a_broken_one_elsewhere() -> None:
    pairs = minimal_pairs(9000)
    good = {pair.good for pair in pairs}
    assert not good & {pair.bad for pair in pairs}


def test_no_sentence_praises_and_blames() -> None:
    rows = [row for split in SPLITS for row in sample_rows("sentiment", split, count=3000)]
    assert len({row["sentence"] for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("The otter is good.", 1),
        ("The otter is never good.", 0),
        ("The otter is not very awful.", 1),
        ("The kings despise a lamb.", 0),
        ("Nobody thinks that the otter is good.", 0),
        ("Few people think that Tom mocks the hen.", 1),
        ("The otter is good, but Tom hates the hen.", 0),
        ("Although the otter is bad, the hen is fine.", 1),
        ("The otter does not enjoy the hen, although the hen is fine.", 0),
    ],
)
def test_the_reading_that_checks_the_labels_reads_as_intended(sentence: str, label: int) -> None:
    assert reading(sentence) == label


def test_every_sentiment_is_what_a_reader_makes_of_the_sentence() -> None:
    for row in sample_rows("sentiment", "train", count=2000):
        assert reading(str(row["sentence"])) == row["label"], row


GOOD = {"good", "lovely", "splendid", "charming", "delightful", "superb", "pleasant", "wonderful", "fine"}
GOOD |= {"admire", "adore", "praise", "enjoy", "admires", "adores", "praises", "enjoys"}
BAD = {"bad", "awful", "dreadful", "dull", "horrid", "ugly", "terrible", "dismal", "poor"}
BAD |= {"despise", "hate", "mock", "detest", "despises", "hates", "mocks", "detests"}


def reading(sentence: str) -> int:
    """The label from the text alone: the main clause's word of praise or blame, and its turns."""
    text = sentence.lower().rstrip(".")
    if text.startswith("although"):
        text = text.split(", ")[1]
    elif ", although" in text:
        text = text.split(", although")[0]
    elif ", but" in text:
        text = text.split(", but ")[1]
    words = text.split()
    (opinion,) = [word for word in words if word in GOOD | BAD]
    turns = sum(word in {"not", "never", "hardly", "nobody"} for word in words)
    turns += text.startswith(("few people", "no guest"))
    return int((opinion in GOOD) == (turns % 2 == 0))


@pytest.mark.parametrize(
    ("task", "most_of_one_word", "most"), [("acceptability", 0.6, 0.7), ("sentiment", 0.6, 0.75)]
)
def test_words_alone_do_not_decide(task: str, most_of_one_word: float, most: float) -> None:
    train, held_out = (
        sample_rows(task, name, count=count) for name, count in (("train", 2000), ("validation", 600))
    )
    bags = [
        [set(str(row["sentence"]).lower().strip(".").split()) for row in rows] for rows in (train, held_out)
    ]
    words = sorted(set().union(*bags[0]))
    counts = [np.array([[word in bag for word in words] for bag in half], float) for half in bags]
    signs = [np.array([2 * int(row["label"]) - 1 for row in rows]) for rows in (train, held_out)]
    agree = (counts[0].T @ (signs[0] > 0) + (1 - counts[0]).T @ (signs[0] < 0)) / len(signs[0])
    assert np.maximum(agree, 1 - agree).max() < most_of_one_word
    weights = logistic(counts[0], signs[0])
    right = ((counts[1] @ weights > 0) == (signs[1] > 0)).mean()
    assert 0.54 < right < most  # learnable, but not by words alone


def logistic(x_NW: np.ndarray, signs_N: np.ndarray) -> np.ndarray:
    """The weights of a ridge-penalised logistic regression."""

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs_N * (x_NW @ weights)
        slope = -signs_N / (1 + np.exp(margins))
        return np.logaddexp(0, -margins).sum() + 0.5 * weights @ weights, x_NW.T @ slope + weights

    return minimize(loss, np.zeros(x_NW.shape[1]), jac=True, method="L-BFGS-B").x


def test_more_sentences_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [(("A.", 1), ("B.", 0))] * 30
    monkeypatch.setattr(tasks, "_MOST_MISSES", 20)
    monkeypatch.setitem(tasks.TASKS, "sentiment", lambda seed: iter(few))
    monkeypatch.setattr(tasks, "_split_of", lambda text: "train")
    with pytest.raises(DataError, match="train has only 2 distinct sentences"):
        sample_rows("sentiment", "train", count=3)
