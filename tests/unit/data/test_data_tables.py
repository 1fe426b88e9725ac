"""Tables: any of them is read as it is, or refused with its place; never otherwise."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stlm_kd.data.labelled.examples import LabelledSource, read_examples
from stlm_kd.data.labelled.question_answering import read_questions
from stlm_kd.data.labelled.token_labels import read_sentences
from stlm_kd.data.sources.files import read_errors
from stlm_kd.data.sources.sources import Source, documents, fingerprint
from stlm_kd.data.sources.tables import read_rows
from stlm_kd.errors import DataError, MissingResourceError, StlmKdError

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def one_kind_of_newline(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    """Different column names, and rows of as many texts."""
    names = draw(st.lists(TEXT, min_size=1, max_size=4, unique_by=one_kind_of_newline))
    return names, draw(st.lists(st.lists(TEXT, min_size=len(names), max_size=len(names)), max_size=5))


@MANY
@given(table=tables())
def test_a_table_that_the_csv_module_wrote_is_read_as_it_was(
    table: tuple[list[str], list[list[str]]], tmp_path: Path
) -> None:
    names, rows = ([*map(one_kind_of_newline, table[0])], table[1])
    written = io.StringIO(newline="")
    csv.writer(written).writerows([names, *rows])
    (tmp_path / "a.csv").write_text(written.getvalue(), encoding="utf-8", newline="")
    if written.getvalue().startswith("\ufeff"):
        return  # a mark of the encoding, which is no text
    found = [[row[name] for name in names] for _, row in read_rows(tmp_path / "a.csv", columns=names)]
    assert found == [[*map(one_kind_of_newline, row)] for row in rows]


@MANY
@given(
    rows=st.lists(
        st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n"), max_size=8)] * 2)
    )
)
def test_tab_separated_values_are_what_stands_between_tabs(
    rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "a.tsv").write_text(
        "x\ty\n" + "".join(f"{x}\t{y}\n" for x, y in rows), encoding="utf-8", newline=""
    )
    found = [(row["x"], row["y"]) for _, row in read_rows(tmp_path / "a.tsv", columns=["x", "y"])]
    assert found == rows


def test_a_tsv_file_that_seems_to_be_quoted_is_read_as_it_stands_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.tsv").write_text('x\ty\n"said"\tb\n"he ""said"" it"\tc\n"a ""b"" c"\td\n')
    found = [row["x"] for _, row in read_rows(tmp_path / "a.tsv", columns=["x"])]
    assert found == ['"said"', '"he ""said"" it"', '"a ""b"" c"']
    (said,) = caplog.messages
    assert "a.tsv:3: a value in quotes" in said
    (tmp_path / "b.tsv").write_text("x\n" + '"[{' + '""a"": ""b"", ' * 100_000)  # no closing quote
    assert len([*read_rows(tmp_path / "b.tsv", columns=["x"])]) == 1


def labelled(path: Path) -> object:
    return read_examples(LabelledSource(path=str(path)))


def texts(path: Path) -> object:
    return [*documents(Source(path=str(path)))]


def questions(path: Path) -> object:
    return read_questions(path=str(path))


def sentences(path: Path) -> object:
    return read_sentences(("O", "B-PER"), path=str(path))


PLAIN = [
    b"sentence,label\n",
    b"sentence\tlabel\n",
    b'"',
    b",",
    b"\t",
    b"\n",
    b"\r",
    b"\x00",
    b"\xff",
    b"a",
    b"1",
]


@MANY
@given(
    parts=st.lists(st.sampled_from(PLAIN) | st.binary(max_size=6), max_size=12),
    ending=st.sampled_from(
        ["csv", "tsv", "jsonl", "json", "json.gz", "parquet", "arrow", "csv.gz", "jsonl.xz"]
    ),
)
def test_any_bytes_are_read_or_refused(parts: list[bytes], ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"".join(parts))
    for reads in (labelled, questions, sentences, texts):
        try:
            assert reads(path)
        except StlmKdError as error:
            assert str(path) in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "answer_start", "a"]), inner)
    ),
    max_leaves=6,
)
ANSWERS = st.fixed_dictionaries(
    {
        "text": st.lists(st.sampled_from(["cat", "", None, 1]), max_size=2),
        "answer_start": st.lists(st.sampled_from([0, 2, -1, None, 1.0, True]), max_size=2),
    }
)
COLUMNS = {
    "sentence": JSON,
    "label": JSON,
    "id": JSON,
    "question": JSON | st.just("who?"),
    "context": JSON | st.just("a cat"),
    "answers": JSON | ANSWERS,
    "tokens": JSON | st.lists(TEXT, max_size=2),
    "ner_tags": JSON | st.lists(st.sampled_from(["O", 1, None, 7]), max_size=2),
    "text": JSON,
}


@MANY
@given(rows=st.lists(st.fixed_dictionaries({}, optional=COLUMNS), min_size=1, max_size=3))
def test_any_json_is_read_or_refused(rows: list[dict[str, object]], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for reads in (labelled, questions, sentences, texts):
        try:
            assert reads(path)
        except StlmKdError as error:
            assert str(path) in str(error)


def test_a_value_may_be_as_long_as_a_line_in_every_kind_of_table(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = "word " * 30_000
    (tmp_path / "a.csv").write_text(f'sentence,label\n"{long}",a\nshort,b\n')
    (tmp_path / "a.tsv").write_text(f"sentence\tlabel\n{long}\ta\nshort\tb\n")
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"sentence": long, "label": "a"}) + '\n{"sentence": "short", "label": "b"}\n'
    )
    for kind in ("csv", "tsv", "jsonl"):
        found = read_examples(LabelledSource(path=str(tmp_path / f"a.{kind}")))
        assert found.texts == ((long,), ("short",))
    assert csv.field_size_limit() == before


TWICE = {
    "a.csv": b"sentence,label,sentence\nx,1,y\n",
    "a.tsv": b"sentence\tsentence\tlabel\nx\ty\t1\n",
    "a.jsonl": b'{"sentence": "x", "label": 1, "sentence": "y"}\n',
}


@pytest.mark.parametrize("name", TWICE)
def test_a_column_that_is_named_twice_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(TWICE[name])
    with pytest.raises(DataError, match=rf"{name}:1: column sentence is named twice"):
        read_examples(LabelledSource(path=str(tmp_path / name)))


def test_a_parquet_column_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    table = pa.table([["x"], ["y"], [1]], names=["sentence", "sentence", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column sentence is named twice"):
        read_examples(LabelledSource(path=str(tmp_path / "a.parquet")))


def test_columns_that_are_not_read_may_have_one_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",,sentence,label\n0,0,x,1\n1,1,y,0\n")
    assert read_examples(LabelledSource(path=str(tmp_path / "a.csv"))).texts == (("x",), ("y",))


GOOD = {"id": "q", "question": "who?", "context": "a cat", "answers": {"text": ["cat"], "answer_start": [2]}}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("question", None, "column question: null found; expected text"),
        ("context", None, "column context: null found; expected text"),
        ("id", None, "column id: null found"),
        ("answers", None, "column answers: null found; expected a mapping"),
        ("answers", {"text": ["cat", "a"], "answer_start": [2]}, "2 text and 1 answer_start found"),
        ("answers", {"text": ["cat"], "answer_start": [None]}, "answer_start: null found"),
        ("answers", {"text": [None], "answer_start": [2]}, "text: null found"),
        ("answers", {"text": ["cat"], "answer_start": [-3]}, "answer_start: -3 found"),
        ("answers", {"text": ["cat"], "answer_start": [1]}, "is not at character 1 of the context"),
        ("answers", {"text": [], "answer_start": []}, "no answer"),
    ],
)
def test_a_question_that_lacks_something_is_named(
    column: str, value: object, message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(
        json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "id": "r", column: value}) + "\n"
    )
    with pytest.raises(DataError, match=rf"a\.jsonl:2.*{message}"):
        read_questions(path=str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("tokens", "tags", "message"),
    [
        (["a", "b"], ["O"], r"2 words \(tokens\) and 1 tags"),
        (["a", None], ["O", "O"], "column tokens: null found"),
        (None, ["O"], "column tokens: null found; expected a list"),
        (["a"], None, "column ner_tags: null found; expected a list"),
        (["a"], [None], "tag null is not one of the tags"),
    ],
)
def test_a_sentence_whose_words_and_tags_do_not_fit_is_named(
    tokens: object, tags: object, message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"tokens": tokens, "ner_tags": tags}) + "\n")
    with pytest.raises(DataError, match=rf"a\.jsonl:1.*{message}"):
        read_sentences(("O",), path=str(tmp_path / "a.jsonl"))


def test_the_honest_twins_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD) + "\n")
    (question,) = read_questions(path=str(tmp_path / "a.jsonl"))
    assert (question.question, question.passage, question.answers) == ("who?", "a cat", (("cat", 2),))
    (tmp_path / "b.jsonl").write_text(json.dumps({"tokens": ["a", "b"], "ner_tags": ["O", 0]}) + "\n")
    found = read_sentences(("O",), path=str(tmp_path / "b.jsonl"))
    assert (found.words, found.tags) == ((("a", "b"),), ((0, 0),))


TWO = {"text": ["one, two", 'a "b"\nc', "007"], "n": [1, 2, 3]}
WRITERS = {
    "a.csv": lambda path: path.write_text('n,text\n1,"one, two"\n2,"a ""b""\nc"\n3,007\n'),
    "a.json": lambda path: path.write_text(json.dumps([{"text": text} for text in TWO["text"]], indent=1)),
    "b.json": lambda path: path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TWO["text"])),
    "a.arrow": lambda path: shutil.copy(saved(path.parent) / "data-00000-of-00001.arrow", path),
    "saved": lambda path: saved(path.parent),
}


def saved(folder: Path, rows: Mapping[str, Sequence[object]] = TWO) -> Path:
    """Those rows as the ``datasets`` library saves them after it reordered them."""
    place = folder / "saved"
    reversed_rows = Dataset.from_dict({name: values[::-1] for name, values in rows.items()})
    reversed_rows.select(range(len(rows["text"]))[::-1]).save_to_disk(str(place))
    return place


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_table_is_a_source_of_text(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    assert texts(tmp_path / name) == TWO["text"]
    with pytest.raises(DataError, match=r"no column body; found: .*text"):
        [*documents(Source(path=str(tmp_path / name), column="body"))]


def test_a_saved_data_set_is_that_of_its_files_and_has_one_split(tmp_path: Path) -> None:
    place = saved(tmp_path)
    before = fingerprint(Source(path=str(place)))
    (place / "cache-0123.arrow").write_bytes((place / "data-00000-of-00001.arrow").read_bytes())
    assert fingerprint(Source(path=str(place))) == before and texts(place) == TWO["text"]
    both = DatasetDict({name: Dataset.from_dict({"text": [name]}) for name in ("train", "test")})
    both.save_to_disk(str(tmp_path / "both"))
    assert texts(tmp_path / "both" / "test") == ["test"]
    with pytest.raises(DataError, match=r"both: a saved data set with the splits test, train; give the fold"):
        texts(tmp_path / "both")
    for name in ("../a.arrow", "/a.arrow", "a.txt", 1):
        (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(DataError, match=r"state\.json: not of a saved data set"):
            texts(place)
    (place / "state.json").write_text("[]")
    with pytest.raises(DataError, match=r"state\.json: not of a saved data set"):
        texts(place)


def test_tables_beside_text_do_not_belong_to_it(tmp_path: Path) -> None:
    (tmp_path / "meta.csv").write_text("text\nnot this\n")
    assert texts(tmp_path) == ["not this"]
    (tmp_path / "a.txt").write_text("this")
    assert texts(tmp_path) == ["this"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,n\none, two,1\n", r"a\.csv:2: 3 values found, but line 1 names 2 columns"),
        ("a.json", b'[{"text": "cut', r"a\.json: not JSON .*; expected an array of objects, or one object"),
        ("a.json", b'[{"text": "a"}, 3]', r"a\.json: row 2: int found, expected a JSON object"),
        ("a.json", b'[{"text": 3}]', r"a\.json: row 1, column text: int found, expected text"),
        ("a.json", b'[{"text": "x", "text": "y"}]', r"a\.json: column text is named twice"),
        ("a.json", b"[]", r"a\.json: no text in it"),
        ("a.arrow", b"ARROW1 and more", r"a\.arrow: not a complete Arrow stream file"),
        ("a.arrow", b"", r"a\.arrow: not a complete Arrow stream file"),
    ],
)  # fmt: skip
def test_a_malformed_table_is_one_message(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        texts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_an_error_of_the_system_or_of_a_library_is_one_message() -> None:
    for raised, expected, message in (
        (ValueError("two\nlines"), DataError, r"^here: malformed \(two\); correct it or fetch it again$"),
        (KeyError("text"), DataError, "malformed"),
        (
            FileNotFoundError(2, "No such file"),
            MissingResourceError,
            r"^here: cannot be read \(No such file\)",
        ),
        (DataError("as it is"), DataError, "^as it is$"),
    ):
        with pytest.raises(expected, match=message), read_errors("here"):
            raise raised
