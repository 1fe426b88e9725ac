"""Reading text: every format gives the same documents, and every fault is named with its place."""

import gzip
import json
import lzma
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from stlm_kd.artifacts import hashing
from stlm_kd.data.sources import document_files, files
from stlm_kd.data.sources.ahead import Part, in_turn
from stlm_kd.data.sources.document_files import Documents, Separator
from stlm_kd.data.sources.limits import Limit
from stlm_kd.data.sources.sources import Source, documents, fingerprint
from stlm_kd.errors import DataError, MissingResourceError
from stlm_kd.sharing.pins import Pins, using

TEXTS = ["The otter slept .", "naïve 日本 \n\n text", " leading and trailing "]
ARTICLES = " \n = Du Fu = \n \n A poet . \n \n = = Life = = \n \n Born . \n \n = York = \n \n A city . \n"


def jsonl(texts: list[str], column: str = "text") -> str:
    return "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts))


def write_parquet(path: Path, texts: list[str | None], column: str = "text") -> None:
    pq.write_table(pa.table({"id": list(range(len(texts))), column: texts}), path)


def written(path: Path, content: str) -> Source:
    openers: dict[str, Callable[..., object]] = {".gz": gzip.open, ".xz": lzma.open}
    with openers.get(path.suffix, open)(path, "wt", encoding="utf-8") as file:  # type: ignore[attr-defined]  # openers of several types
        file.write(content)
    return Source(path=str(path))


def read(source: Source) -> list[str]:
    return list(documents(source))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz", "a.ndjson", "A.JSONL"])
def test_json_lines_keep_each_text_as_it_is(tmp_path: Path, name: str) -> None:
    assert read(written(tmp_path / name, jsonl(TEXTS))) == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz"])
def test_plain_text_is_read_compressed_or_not(tmp_path: Path, name: str) -> None:
    assert read(written(tmp_path / name, ARTICLES))[1] == "= York = \n \n A city ."


def test_parquet_keeps_each_text_and_skips_blank_ones(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [TEXTS[0], "", *TEXTS[1:], "  "], column="body")
    assert read(Source(path=str(tmp_path / "a.parquet"), column="body")) == TEXTS


def test_a_null_in_place_of_a_text_is_refused_by_its_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [TEXTS[0], None])
    written(tmp_path / "a.jsonl", jsonl([TEXTS[0]]) + '{"text": null}\n')
    for name, place in (("a.parquet", ": row 2"), ("a.jsonl", ":2")):
        with pytest.raises(DataError, match=f"{name}{place}, column text: null found, expected text; fill"):
            read(Source(path=str(tmp_path / name)))


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    written(tmp_path / "b" / "1.jsonl", jsonl(["third"]))
    written(tmp_path / "c.txt.xz", "fourth")
    written(tmp_path / "a.txt", "first")
    written(tmp_path / "README.md", "not text to train on")
    written(tmp_path / ".hidden" / "z.txt", "hidden")
    write_parquet(tmp_path / "b" / "0.parquet", ["second"])
    assert read(Source(path=str(tmp_path))) == ["first", "second", "third", "fourth"]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("article", ["= Du Fu = \n \n A poet . \n \n = = Life = = \n \n Born .", "= York = \n \n A city ."]),
        ("line", ["= Du Fu =", "A poet .", "= = Life = =", "Born .", "= York =", "A city ."]),
        ("blank-line", ["= Du Fu =", "A poet .", "= = Life = =", "Born .", "= York =", "A city ."]),
        ("file", [ARTICLES.strip()]),
    ],
)
def test_plain_text_is_cut_as_asked(tmp_path: Path, how: Documents, expected: list[str]) -> None:
    written(tmp_path / "a.txt", ARTICLES)
    assert read(Source(path=str(tmp_path / "a.txt"), documents=how)) == expected


def test_a_paragraph_may_have_several_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "one\ntwo\n\n\nthree\n").value
    assert read(Source(path=path, documents="blank-line")) == ["one\ntwo", "three"]


def test_text_without_titles_is_one_document_by_default(tmp_path: Path) -> None:
    novel = "CHAPTER I\n\nIt rained.\n a = b = c\n= x = \nIt stopped."
    assert read(written(tmp_path / "a.txt", novel)) == [novel]


def test_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read(Source(path=str(tmp_path / "a.txt"))) == ["one\ntwo"]


def test_variables_in_a_path_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "a.txt", "text")
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    assert read(Source(path="$SOME_FOLDER/a.txt")) == ["text"]
    monkeypatch.delenv("SOME_FOLDER")
    with pytest.raises(MissingResourceError, match="variable SOME_FOLDER is not set"):
        read(Source(path="${SOME_FOLDER}/a.txt"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', r"a\.jsonl:2: not JSON"),
        ('["a"]', r"a\.jsonl:2: list found, expected a JSON object with a text field"),
        ('{"body": "x", "id": 1}', r"a\.jsonl:2: no column text; found: body, id"),
        ('{"text": 3}', r"a\.jsonl:2, column text: int found, expected text"),
        ('{"text": "é\\ud800"}', r"a\.jsonl:2, column text: a lone surrogate at character 1"),
        ("[" * 100_000, r"a\.jsonl:2: not JSON"),
    ],
)
def test_a_bad_json_line_is_named_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(written(tmp_path / "a.jsonl", f'{{"text": "good"}}\n{line}\n'))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz"])
def test_a_compressed_file_cut_short_is_refused(tmp_path: Path, name: str) -> None:
    source = written(tmp_path / name, "".join(f"line {number * 7919}\n" for number in range(5000)))
    whole = (tmp_path / name).read_bytes()
    for broken in (
        whole[: len(whole) // 2],
        b"not compressed at all",
        whole[:40] + b"\xff" * 40 + whole[80:],
    ):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(DataError, match=r"corrupt or truncated after \d+ complete lines"):
            read(source)


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
@pytest.mark.parametrize("line", [1, 2, 91, 5000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_bytes_that_are_not_utf_8_are_refused_by_their_line(
    end: bytes, line: int, ending: str, tmp_path: Path
) -> None:
    lines = ["Zoë met a cat , once upon a time in a small town .".encode()] * 5000
    lines[line - 1] = b"caf\xe9 , then \xff\xfe"
    path = tmp_path / f"a.txt{ending}"
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[ending]
    path.write_bytes(pack(end.join(lines)))
    with pytest.raises(DataError, match=rf"a\.txt{ending}:{line}: not UTF-8 \(invalid continuation byte\)"):
        read(Source(path=str(path)))


def test_a_broken_archive_is_told_from_another_encoding(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(b"a line\n" * 100 + b"caf\xe9\n"))
    whole[-8] ^= 1  # of the checksum
    (tmp_path / "a.txt.gz").write_bytes(whole)
    with pytest.raises(DataError, match="corrupt or truncated after 100 complete lines"):
        read(Source(path=str(tmp_path / "a.txt.gz")))


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["text"] * 100)
    whole = (tmp_path / "a.parquet").read_bytes()
    for broken in (whole[:-20], b"PAR1", whole[:30]):
        (tmp_path / "a.parquet").write_bytes(broken)
        with pytest.raises(DataError, match="not a complete Parquet file"):
            read(Source(path=str(tmp_path / "a.parquet")))


def test_a_missing_parquet_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["text"], column="body")
    with pytest.raises(DataError, match="no column text; found: body, id"):
        read(Source(path=str(tmp_path / "a.parquet")))


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(["a", "b", " ", "\n", "<", "<e>", "<<e>>", "\n<e>", "aba"]), max_size=14),
    separator=st.sampled_from(["<e>", "a", "aba", "\n", "\n\n", "b\n", "<e>\n", "aa"]),
)
def test_a_separator_cuts_as_the_whole_text_would_be_split(pieces: list[str], separator: str) -> None:
    text = "".join(pieces)
    found = document_files.cut(text.splitlines(keepends=True), documents=Separator(separator), place="here")
    assert [*found] == [part.strip() for part in text.split(separator) if part.strip()]


def test_documents_between_end_tokens(tmp_path: Path) -> None:
    text = "One cat sat.\n\nIt ran home.\n<|endoftext|>\nTwo dogs sat.\n<|endoftext|>\n"
    source = written(tmp_path / "a.txt", text)
    apart, *others = (
        Source(path=source.value, documents=how)
        for how in (Separator("<|endoftext|>"), Separator("."), "article", "line")
    )
    assert read(apart) == ["One cat sat.\n\nIt ran home.", "Two dogs sat."]
    assert len({fingerprint(one) for one in (apart, *others)}) == 4


def test_a_separator_that_divides_nothing_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "a.txt", "one<|endoftext|>two").value
    with caplog.at_level("WARNING", "stlm_kd"):
        assert len(read(Source(path=path, documents=Separator("<|endoftext|>")))) == 2
        assert not caplog.messages
        assert len(read(Source(path=path, documents=Separator("<|end|>")))) == 1
    assert "separator '<|end|>' does not occur: 1 files, 1 documents" in caplog.text
    with pytest.raises(DataError, match="an empty separator"):
        Source(path=path, documents=Separator(""))


def test_a_line_or_document_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_CHARACTERS", 100)
    monkeypatch.setattr(document_files, "MAX_CHARACTERS", 100)
    with pytest.raises(DataError, match=r"a\.txt:1: a line of more than 100"):
        read(written(tmp_path / "a.txt", "x" * 101))
    with pytest.raises(DataError, match=r"more than 100 characters.*line or blank-line"):
        read(written(tmp_path / "b.txt", "some words\n" * 20))
    assert len(read(Source(path=str(tmp_path / "b.txt"), documents="line"))) == 20


def test_a_missing_file_is_an_environment_fault(tmp_path: Path) -> None:
    for ask in (read, fingerprint):
        with pytest.raises(MissingResourceError, match=r"nothing\.txt: no such file"):
            ask(Source(path=str(tmp_path / "nothing.txt")))


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(DataError, match="unknown kind of file; known: txt, jsonl"):
        read(Source(path=str(tmp_path / "a.pdf")))
    with pytest.raises(DataError, match="1 files, but none of a known kind"):
        read(Source(path=str(tmp_path)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: an empty folder"):
        read(Source(path=str(tmp_path / "empty")))


@pytest.mark.parametrize("content", ["", " \n\n \n"])
def test_empty_text_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="no text in it"):
        read(written(tmp_path / "a.txt", content))
    with pytest.raises(DataError, match="no text in it"):
        read(written(tmp_path / "a.jsonl", jsonl([content])))


def test_a_source_is_exactly_one_of_three() -> None:
    for make in (lambda: Source(), lambda: Source(path="a.txt", hub="a/b")):
        with pytest.raises(DataError, match="exactly one of path, hub and sample"):
            make()
    with pytest.raises(DataError, match=r"sample trian: not a known sample \(did you mean train\?\)"):
        Source(sample="trian")
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match="expected 0 or more"):
            Source(path="a.txt", weight=weight)
    with pytest.raises(DataError, match="expected a positive number"):
        Source(sample="train", size=0)
    with pytest.raises(DataError, match=r"path a\.txt: colum is not an option \(did you mean column\?\)"):
        Source(path="a.txt", colum="body")


def test_a_fingerprint_is_of_content_and_of_how_it_is_read(tmp_path: Path) -> None:
    source = written(tmp_path / "a.txt", "text")
    moved = written(tmp_path / "b.txt", "text")
    assert fingerprint(source) == fingerprint(moved)
    assert fingerprint(Source(path=source.value, domain="news", weight=2.0)) == fingerprint(source)
    others = [
        written(tmp_path / "c.txt", "texts"),
        written(tmp_path / "a.jsonl", "text"),
        Source(path=source.value, documents="line"),
        Source(path=source.value, column="body"),
        Source(path=str(tmp_path)),
    ]
    assert len({fingerprint(other) for other in [source, *others]}) == 6


def test_the_sample_is_read_by_split_and_size() -> None:
    sources = [Source(sample="train", size=3000), Source(sample="validation", size=3000)]
    texts = [read(source) for source in sources]
    assert all(0 < sum(map(len, some)) <= 3000 for some in texts)
    assert texts[0] != texts[1]
    sources.append(Source(sample="train", size=4000))
    assert len({fingerprint(source) for source in sources}) == 3
    assert fingerprint(Source(sample="train", size=3000)) == fingerprint(sources[0])


def test_a_file_is_hashed_once_for_each_of_its_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    real = hashing.sha256
    monkeypatch.setattr(hashing, "sha256", lambda path: (hashed.append(path), real(path))[1])
    source = written(tmp_path / "a.txt", "One text .\n")
    first = [fingerprint(source) for _ in range(3)]
    assert len(set(first)) == len(hashed) == 1
    written(tmp_path / "a.txt", "Two texts .\n")
    assert fingerprint(source) != first[0]
    written(tmp_path / "b.txt", "Ten texts .\n")
    shutil.copyfile(tmp_path / "b.txt", tmp_path / "a.txt")
    os.utime(tmp_path / "a.txt", ns=(2, 2))
    assert fingerprint(source) == fingerprint(Source(path=str(tmp_path / "b.txt")))
    assert len(hashed) == 4


@pytest.fixture
def dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the ``datasets`` library, in which nobody/notes lies as if it came from the Hub."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub" / "datasets--nobody--notes" / "refs").mkdir(parents=True)
    written(tmp_path / "hub" / "datasets--nobody--notes" / "refs" / "main", COMMIT)
    folder = tmp_path / "notes"
    folder.mkdir()
    for split, texts in (("train", TEXTS), ("test", ["held out"]), ("validation", ["one", None])):
        columns = {"id": [*range(len(texts))], "body": [*texts]}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    datasets.load_dataset(str(folder), cache_dir=str(cache))
    (made,) = [path.parent for path in cache.rglob("dataset_info.json")]
    shutil.move(made, cache / "nobody___notes" / "default" / "0.0.0" / COMMIT)
    shutil.rmtree(folder)
    return cache


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_data_set_is_read_by_split_and_column(dataset_cache: Path) -> None:
    assert read(Source(hub="nobody/notes", column="body")) == TEXTS
    assert read(Source(hub="nobody/notes", split="test", column="body")) == ["held out"]
    with pytest.raises(DataError, match="nobody/notes, split validation: row 2, column body: null found"):
        read(Source(hub="nobody/notes", split="validation", column="body"))


def test_a_hub_fingerprint_holds_the_commit(dataset_cache: Path) -> None:
    source = Source(hub="nobody/notes", column="body")
    before = fingerprint(source)
    assert fingerprint(source) == before
    assert fingerprint(Source(hub="nobody/notes", column="body", split="test")) != before
    written(dataset_cache.parent / "hub" / "datasets--nobody--notes" / "refs" / "main", COMMIT[::-1])
    with using(Pins()):
        assert fingerprint(source) != before


def test_another_commit_than_the_cached_one_is_refused_offline(dataset_cache: Path) -> None:
    assert read(Source(hub="nobody/notes", column="body", revision=COMMIT)) == TEXTS
    with pytest.raises(MissingResourceError, match=f"{'f' * 40}: not in the cache"):
        read(Source(hub="nobody/notes", column="body", revision="f" * 40))


def test_an_unknown_split_column_or_configuration_is_refused(dataset_cache: Path) -> None:
    with pytest.raises(DataError, match="no column text; found: body, id"):
        read(Source(hub="nobody/notes"))
    with pytest.raises(DataError, match="dev"):
        read(Source(hub="nobody/notes", split="dev", column="body"))
    with pytest.raises(MissingResourceError, match="configuration other"):
        read(Source(hub="nobody/notes", name="other", column="body"))


def test_what_is_not_cached_is_said_in_one_line_when_offline(dataset_cache: Path) -> None:
    for ask in (read, fingerprint):
        with pytest.raises(
            MissingResourceError, match=r"nobody/nothing: not in the cache, and offline"
        ) as caught:
            ask(Source(hub="nobody/nothing"))
        assert "\n" not in str(caught.value)


def test_wikitext_has_as_many_articles_as_its_authors_say(shared_data: Path) -> None:
    # Merity et al., "Pointer Sentinel Mixture Models" (2017), table 1.
    for split, articles in (("train", 600), ("valid", 60), ("test", 60)):
        path = shared_data / "lm" / "wikitext-2" / f"{split}.txt.gz"
        assert len(read(Source(path=str(path)))) == articles


def test_novels_come_one_by_one(shared_data: Path) -> None:
    texts = read(Source(path=str(shared_data / "lm" / "english_novels" / "valid.jsonl.xz")))
    assert len(texts) == 4 and min(map(len, texts)) > 100_000


def test_a_mirror_in_plain_text_gives_the_rows_that_the_library_reads_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import load_dataset

    monkeypatch.setenv("STLM_KD_DATA", str(tmp_path))
    for folder in ("org/plain", "lm/wikitext-2"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "train.txt").write_text("one \n\n two\nthree")
    file = str(tmp_path / "org/plain/train.txt")
    theirs = load_dataset("text", data_files=file, split="train", cache_dir=str(tmp_path / "c"))["text"]
    ours = Source(hub="org/plain")
    assert list(documents(ours)) == [text for text in theirs if text.strip()] == ["one ", " two", "three"]
    kept = Source(hub="Salesforce/wikitext", name="wikitext-2-v1")
    assert list(documents(kept)) == ["one \n", " two\n", "three"], "as the rows of the Hub"
    assert len({fingerprint(one) for one in (ours, kept, Source(path=file, documents="line"))}) == 3
    for wrong in ({"column": "body"}, {"where": {"body": "x"}}):
        with pytest.raises(DataError, match=r"train\.txt: no column body; found: text"):
            list(documents(Source(hub="org/plain", **wrong)))


@pytest.mark.parametrize(
    "name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz", "a.jsonl.xz", "a.jsonl.zst", "a.parquet"]
)
def test_the_bytes_of_a_text_are_told_before_it_is_read(name: str, tmp_path: Path) -> None:
    words = [f"wörd{number * 7919 % 10007}" for number in range(40)]
    texts = [" ".join([*words[number % 40 :], str(number)]) for number in range(5000)]
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"text": texts, "other": [*range(len(texts))]}), path)
    else:
        content = ("\n".join(texts) if ".txt" in name else jsonl(texts, "text")).encode()
        codec = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": _zst}.get(path.suffix, bytes)
        path.write_bytes(codec(content))
    expected = sum(len(text.encode()) for text in texts)
    assert Source(path=str(path)).expected_bytes() == pytest.approx(expected, rel=0.1)
    assert Source(path=str(path), limit=Limit("bytes", 7)).expected_bytes() == 7


def _zst(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.txt.xz"])
def test_a_file_that_is_no_such_file_has_no_known_size(name: str, tmp_path: Path) -> None:
    for content in (b"", b"no such file"):
        (tmp_path / name).write_bytes(content)
        assert not Source(path=str(tmp_path / name)).expected_bytes()


@pytest.mark.parametrize("read", [1, 4, 6, 11, 99])
def test_at_most_the_next_part_is_fetched_and_what_fails_is_raised_when_it_is_read(read: int) -> None:
    fetched: list[int] = []

    def fetch(number: int) -> None:
        if number == 3:
            raise DataError("3 is damaged")
        fetched.append(number)

    def texts(number: int) -> Iterator[str]:
        if number not in fetched:
            fetch(number)
        yield from [f"{number} text"] * 5

    parts = [Part(str(n), partial(texts, n), partial(fetch, n), 30) for n in range(4)]
    found = in_turn(parts, len)
    if read == 99:
        with pytest.raises(DataError, match="3 is damaged"):
            list(found)
    else:
        assert list(islice(found, read)) == [f"{n // 5} text" for n in range(read)]
    for thread in threading.enumerate():
        if thread.name == "fetching":
            thread.join()
    assert fetched == list(range({1: 1, 4: 2, 6: 2, 11: 3, 99: 3}[read]))


def test_an_option_that_no_file_can_use_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n')
    assert [*documents(Source(path=str(tmp_path / "b.jsonl"), documents="line"))] == ["one"]
    assert [*documents(Source(path=str(tmp_path / "a.txt"), column="body"))] == ["one\ntwo"]
    found = [message.partition(": ")[2] for message in caplog.messages]
    assert [text.partition(",")[0] for text in found] == [
        "documents cuts plain text",
        "column body is of tables",
    ]
    caplog.clear()
    assert len([*documents(Source(path=str(tmp_path), documents="line", column="text"))]) == 3
    assert not caplog.messages
