"""Labelled examples: every format gives the same, labels become classes, and every fault is named."""

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stlm_kd.data.labelled.examples import Examples, LabelledSource, draw_fraction, fingerprint, read_examples
from stlm_kd.errors import DataError, MissingResourceError

ROWS = [
    {"idx": 7, "premise": 'A "big", old\tdog', "hypothesis": "A dog", "label": "entailment"},
    {"idx": 3, "premise": "Two\nlines , 日本", "hypothesis": "", "label": "neutral"},
    {"idx": 5, "premise": "No", "hypothesis": "Yes", "label": "contradiction"},
]
PAIRS = ("premise", "hypothesis")


def jsonl(path: Path, rows: Sequence[dict[str, object]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def table(path: Path, rows: Sequence[dict[str, object]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def parquet(path: Path, rows: Sequence[dict[str, object]]) -> str:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return str(path)


def single(path: Path, labels: Sequence[object]) -> LabelledSource:
    rows = [{"sentence": f"text {i}", "label": label} for i, label in enumerate(labels)]
    return LabelledSource(path=jsonl(path / "single.jsonl", rows))


@pytest.mark.parametrize(
    ("write", "name"), [(jsonl, "a.jsonl"), (jsonl, "a.jsonl.gz"), (table, "a.csv"), (parquet, "a.parquet")]
)
def test_every_format_gives_the_same_examples(write: object, name: str, tmp_path: Path) -> None:
    assert callable(write)
    found = read_examples(LabelledSource(path=write(tmp_path / name, ROWS), text=PAIRS))
    assert found.texts == tuple((row["premise"], row["hypothesis"]) for row in ROWS)
    assert found.label_names == ("contradiction", "entailment", "neutral")
    assert found.labels.tolist() == [1, 2, 0]
    assert found.ids == ("7", "3", "5")


def test_quotes_mean_nothing_between_tabs(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('sentence\tlabel\n"He left\t1\nit\'s 5" long\t0\n')
    found = read_examples(LabelledSource(path=str(tmp_path / "a.tsv")))
    assert found.texts == (('"He left',), ("it's 5\" long",))
    assert found.ids == ("0", "1")


@pytest.mark.parametrize(
    ("labels", "names", "expected_names", "expected"),
    [
        ([2, 10, 2], (), ("2", "10"), [0, 1, 0]),
        (["2", "10", "2"], (), ("2", "10"), [0, 1, 0]),
        ([1.0, 0.0], (), ("0", "1"), [1, 0]),
        ([True, False], (), ("false", "true"), [1, 0]),
        (["no", "yes"], ("yes", "no"), ("yes", "no"), [1, 0]),
        ([1, 0], ("yes", "no"), ("yes", "no"), [1, 0]),
        ([3, 1], ("1", "2", "3"), ("1", "2", "3"), [2, 0]),
        ([-1, 1], ("-1", "1"), ("-1", "1"), [0, 1]),
    ],
)
def test_labels_become_places_among_the_names(
    labels: list[object], names: tuple[str, ...], expected_names: tuple[str, ...], expected: list[int],
    tmp_path: Path,
) -> None:  # fmt: skip
    found = read_examples(single(tmp_path, labels), labels=names)
    assert found.label_names == expected_names
    assert found.labels.tolist() == expected


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, -1], (), r"single\.jsonl:2, column label: the label is -1, which marks hidden labels"),
        ([0, -1], ("a", "b"), "the label is -1"),
        (["yes", "noo"], ("yes", "no"), r"label noo is not one of the classes \(did you mean no\?\)"),
        ([0, 2], ("yes", "no"), "label 2 is not one of the classes"),
        ([0, 1], ("1", "2"), "label 0 is not one of the classes"),
        ([0, None], (), "no label"),
        ([0, " "], (), "expected the name or number"),
        ([0, 0.5], (), r"0\.5 found, expected the name or number of a class"),
        ([1, 1], (), "every label is 1"),
        ([1, 1], ("1",), "labels: 1 found; expected at least two different names"),
        ([0, 1], ("a", "b", "a"), "labels: a, b, a found; expected at least two different"),
        ([], (), "no example in it"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    labels: list[object], names: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read_examples(single(tmp_path, labels), labels=names)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-1.0, -1.0], "hidden labels of test sets"),
        ([1.0, "high"], "'high' found, expected a number"),
        ([1.0, float("nan")], "expected a finite number"),
        ([1.0, None], "null found"),
        ([1.0, 1e300], "expected a finite number"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(labels: list[object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_examples(single(tmp_path, labels), regression=True)


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    found = read_examples(single(tmp_path, [3.8, "-1", 0]), regression=True)
    assert found.is_regression
    assert found.labels.dtype == np.float32
    assert found.labels.tolist() == [np.float32(3.8), -1.0, 0.0]


def test_faults_of_a_table_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('sentence,label\nok,1\n"two\nlines",0\nshort\n')
    with pytest.raises(DataError, match=r"a\.csv:5: 1 values found, but line 1 names 2 columns"):
        read_examples(LabelledSource(path=str(tmp_path / "a.csv")))
    (tmp_path / "b.csv").write_text('sentence,label\n"open,1\n')
    with pytest.raises(DataError, match=r"b\.csv:2: not a row of a table"):
        read_examples(LabelledSource(path=str(tmp_path / "b.csv")))


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column sentence; found: hypothesis, idx, label, premise"):
        read_examples(LabelledSource(path=jsonl(tmp_path / "a.jsonl", ROWS)))
    with pytest.raises(DataError, match="no column sentence; found: hypothesis"):
        read_examples(LabelledSource(path=table(tmp_path / "a.csv", ROWS)))


@pytest.mark.parametrize("value", [5, None, ["a"]])
def test_text_that_is_none_is_refused(value: object, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"sentence": value, "label": 1}])
    with pytest.raises(DataError, match=r"a\.jsonl:1, column sentence: .* expected text"):
        read_examples(LabelledSource(path=path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of path, hub and sample"),
        ({"path": "a", "hub": "b"}, "exactly one of path, hub and sample"),
        ({"path": "a", "text": ("a", "b", "c")}, "3 columns of text"),
        ({"path": "a", "text": ("label",)}, "named twice"),
        ({"sample": "sentimant"}, "did you mean sentiment"),
        ({"sample": "sentiment", "split": "test"}, "a sample has the splits train and validation"),
        ({"sample": "sentiment", "size": 0}, "expected a positive number"),
    ],
)
def test_a_source_that_names_nothing_readable_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        LabelledSource(**fields)  # type: ignore[arg-type]  # wrong on purpose


def test_other_files_and_missing_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(
        DataError,
        match=r"known: jsonl, ndjson, csv, tsv and json \(each also \.gz, \.xz or \.zst\), parquet and arrow",
    ):
        read_examples(LabelledSource(path=str(tmp_path / "a.txt")))
    with pytest.raises(MissingResourceError, match="no such file"):
        read_examples(LabelledSource(path=str(tmp_path / "b.csv")))


def test_ids_that_are_not_different_are_numbers_over_all_sources(tmp_path: Path) -> None:
    first = LabelledSource(path=jsonl(tmp_path / "a.jsonl", ROWS), text=PAIRS)
    second = LabelledSource(path=jsonl(tmp_path / "b.jsonl", ROWS[:2]), text=PAIRS)
    both = read_examples(first, second)
    assert both.ids == ("0", "1", "2", "3", "4")
    assert both.texts == read_examples(first).texts + read_examples(second).texts
    with pytest.raises(DataError, match="single texts and of pairs"):
        read_examples(first, LabelledSource(sample="sentiment"))


def test_the_fingerprint_is_of_the_content_and_the_columns(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    moved = jsonl(tmp_path / "b.jsonl", ROWS)
    other = jsonl(tmp_path / "c.jsonl", ROWS[:2])
    sources = [
        LabelledSource(path=path), LabelledSource(path=other), LabelledSource(path=path, text=PAIRS),
        LabelledSource(path=path, label="gold"), LabelledSource(sample="sentiment"),
        LabelledSource(sample="acceptability"), LabelledSource(sample="sentiment", split="validation"),
        LabelledSource(sample="sentiment", size=7),
    ]  # fmt: skip
    assert len({fingerprint(source) for source in sources}) == len(sources)
    assert fingerprint(LabelledSource(path=path)) == fingerprint(LabelledSource(path=moved))
    assert fingerprint(LabelledSource(sample="sentiment", size=6000)) == fingerprint(sources[4])


def made(labels: Sequence[int]) -> Examples:
    count = len(labels)
    texts = tuple((f"text {i}",) for i in range(count))
    return Examples(texts, np.array(labels, np.int64), tuple(map(str, range(count))), ("a", "b", "c"))


@given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=60),
    shares=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    seed=st.integers(0, 5),
)
def test_fractions_are_nested_and_hold_the_same_share_of_each_class(
    labels: list[int], shares: tuple[float, float], seed: int
) -> None:
    drawn = []
    for share in sorted(shares):
        sizes = [labels.count(place) for place in range(3)]
        if any(size and share * size < 0.5 for size in sizes):
            with pytest.raises(DataError, match=r"leaves none of the \d+ of class"):
                draw_fraction(made(labels), share, seed=seed)
            return
        part = draw_fraction(made(labels), share, seed=seed)
        assert [
            abs(part.counts()[name] - share * size) <= 0.5 for name, size in zip("abc", sizes, strict=True)
        ]
        assert [int(i) for i in part.ids] == sorted(int(i) for i in part.ids)
        assert all(part.texts[at] == (f"text {i}",) for at, i in enumerate(part.ids))
        drawn.append(set(part.ids))
    assert drawn[0] <= drawn[1]
    assert len(draw_fraction(made(labels), 1.0, seed=seed)) == len(labels)


def test_what_a_refused_fraction_asks_for_is_enough() -> None:
    examples = made([0] * 700 + [1] * 7)
    with pytest.raises(DataError, match=r"use at least 51 examples, a fraction of at least 0\.071429"):
        draw_fraction(examples, 0.07, seed=0)
    assert draw_fraction(examples, 0.071429, seed=0).counts() == {"a": 50, "b": 1, "c": 0}


def test_a_fraction_of_numbers_is_drawn_plainly() -> None:
    texts = tuple((str(i),) for i in range(100))
    numbers = Examples(texts, np.arange(100, dtype=np.float32), tuple(map(str, range(100))), ())
    tenth, half = (draw_fraction(numbers, share, seed=3) for share in (0.1, 0.5))
    assert (len(tenth), len(half)) == (10, 50)
    assert set(tenth.ids) < set(half.ids)
    assert tenth.labels.tolist() == [float(i) for i in tenth.ids]
    assert set(draw_fraction(numbers, 0.1, seed=4).ids) != set(tenth.ids)


@pytest.mark.parametrize(("task", "size"), [("cola", 8551), ("rte", 2490), ("stsb", 5749)])
def test_glue_is_read_whole(task: str, size: int, shared_data: Path) -> None:
    text = ("sentence",) if task == "cola" else ("sentence1", "sentence2")
    path = shared_data / "glue" / task / "train.jsonl.gz"
    found = read_examples(LabelledSource(path=str(path), text=text), regression=task == "stsb")
    assert len(found) == size
    assert found.ids[:2] == ("0", "1")
    assert found.label_names == (() if task == "stsb" else ("0", "1"))
    with pytest.raises(DataError, match="hidden labels of test sets"):
        hidden = LabelledSource(path=str(path.with_name("test.jsonl.gz")), text=text)
        read_examples(hidden, regression=task == "stsb")
