"""The same corpus in every format is the same text; what a format forbids is named with file and row."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from stlm_kd.data.corpus import prepare
from stlm_kd.data.sources.formats import FORMATS, tar_shards
from stlm_kd.data.sources.sources import Source, documents
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import DataError

TEXTS = ["The otter slept .", "naïve 日本 \n\n text", 'one , "two"', "A cat .", "Short", "A cat ."] * 3


def tar(members: Iterable[tuple[str, bytes | str]]) -> bytes:
    """An archive; a text in place of the content is the target of a link."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def zst(content: bytes) -> bytes:
    """In two frames, as ``cat`` joins files."""
    half = len(content) // 2
    return b"".join(
        pa.Codec("zstd").compress(part, asbytes=True) for part in (content[:half], content[half:])
    )


def table(texts: list[str]) -> pa.Table:
    return pa.table({"id": range(len(texts)), "text": texts})


def parquet(texts: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(table(texts), file, row_group_size=2)
    return file.getvalue()


def arrow(texts: list[str]) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table(texts).schema) as writer:
        writer.write_table(table(texts), max_chunksize=2)
    return file.getvalue()


def quoted(texts: list[str]) -> bytes:
    return "".join(["text,id\n", *('"' + text.replace('"', '""') + '",7\n' for text in texts)]).encode()


ROWS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
WRITERS: dict[str, Callable[[list[str]], bytes]] = {
    ".jsonl": lambda texts: "".join(json.dumps({"text": text, "id": 7}) + "\n" for text in texts).encode(),
    ".json": lambda texts: json.dumps([{"text": text} for text in texts]).encode(),
    ".csv": quoted,
    ".tar": lambda texts: tar((f"a/{i:03}.txt", text.encode()) for i, text in enumerate(texts)),
    ".parquet": parquet,
    ".arrow": arrow,
}
WRITERS[".ndjson"] = WRITERS[".jsonl"]
ONE_LINE: dict[str, Callable[[list[str]], bytes]] = {
    ".txt": lambda texts: "\n".join(texts).encode(),
    ".tsv": lambda texts: "\n".join(["id\ttext", *(f"7\t{text}" for text in texts)]).encode(),
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zst,
}
NAMES = [
    f"{suffix}{packed}"
    for row in FORMATS
    for suffix in row.suffixes
    for packed in (PACKED if not row.compresses else ("",))
]


def write(folder: Path, name: str, texts: list[str]) -> None:
    """Two shards of a format."""
    suffix, _, packed = name[1:].partition(".")
    make = (WRITERS | ONE_LINE)[f".{suffix}"]
    folder.mkdir(parents=True)
    for number, some in enumerate((texts[:7], texts[7:])):
        content = PACKED[f".{packed}" if packed else ""](make(some))
        (folder / f"{number}{name}").write_bytes(content)


@pytest.mark.parametrize("name", NAMES)
def test_a_corpus_in_every_format_is_the_same_text(name: str, tmp_path: Path) -> None:
    texts = TEXTS if f".{name.split('.')[1]}" in WRITERS else [" ".join(text.split()) for text in TEXTS]
    write(tmp_path / "shards", name, texts)
    assert list(documents(Source(path=str(tmp_path / "shards"), documents="line"))) == texts


def test_a_saved_data_set_is_the_same_text(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved", num_shards=3)
    assert list(documents(Source(path=str(tmp_path / "saved")))) == TEXTS


def test_token_stores_of_all_formats_are_the_same_bytes(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, size=290)
    contents = set()
    for name in (*WRITERS, ".jsonl.zst", ".tar.gz"):
        write(tmp_path / name, name, TEXTS)
        (made,) = prepare([Source(path=str(tmp_path / name))], tokenizer, tmp_path / f"stores{name}")
        files = sorted(made.store.folder.iterdir())
        contents.add(tuple((path.name, path.read_bytes()) for path in files))
    assert len(contents) == 1


def test_columns_beside_the_text_of_a_tar_shard(tmp_path: Path) -> None:
    members = []
    for i, text in enumerate(TEXTS[:4]):
        members += [(f"{i}.json", json.dumps({"language": "en" if i % 2 else "de"}).encode())]
        members += [(f"{i}.txt", text.encode()), (f"{i}.png", b"\xff")]
    (tmp_path / "a.tar").write_bytes(tar(members))
    path = str(tmp_path / "a.tar")
    assert list(documents(Source(path=path, where={"language": "en"}))) == TEXTS[1:4:2]
    assert list(documents(Source(path=path, column="language"))) == ["de", "en", "de", "en"]


GOOD = ("0.txt", b"good")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([GOOD, ("../1.txt", b"x")], r"member \.\./1\.txt: the name leaves the archive"),
        ([GOOD, ("/1.txt", b"x")], r"member /1\.txt: the name leaves the archive"),
        ([GOOD, ("a\\..\\1.txt", b"x")], r"the name leaves the archive"),
        ([GOOD, ("1.txt", "/etc/passwd")], r"member 1\.txt: a link found; expected plain files only"),
        ([GOOD, ("1.txt", b"x" * 2000)], r"member 1\.txt: 2,000 bytes; expected at most 1,000"),
        ([GOOD, ("1.txt", b"caf\xe9")], r"member 1\.txt: not UTF-8 \(unexpected end of data\)"),
        ([GOOD, ("1.json", b"{"), ("1.txt", b"x")], r"member 1: not JSON"),
        ([GOOD, ("1.json", b"[1]")], r"member 1: list found, expected a JSON object"),
        ([GOOD, ("1.json", b'{"text": "a"}'), ("1.txt", b"x")], r"member 1: column text is given twice"),
        ([GOOD, ("1.json", b'{"body": "a"}')], r"member 1: no column text; found: body"),
    ],
)
def test_a_bad_member_is_named(
    members: list[tuple[str, bytes | str]], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_shards, "MAX_MEMBER", 1000)
    (tmp_path / "a.tar").write_bytes(tar(members))
    with pytest.raises(DataError, match=rf"a\.tar: {message}" if message.startswith("member") else message):
        list(documents(Source(path=str(tmp_path / "a.tar"))))


def test_a_header_as_large_as_memory_is_refused(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("././@PaxHeader")
    entry.type, entry.size = tarfile.XHDTYPE, 1 << 33
    (tmp_path / "a.tar").write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    with pytest.raises(DataError, match=r"not a complete tar archive \(a header of 8,589,934,592 bytes\)"):
        list(documents(Source(path=str(tmp_path / "a.tar"))))


def test_what_follows_the_end_of_a_tar_shard_is_refused_with_its_place(tmp_path: Path) -> None:
    one = tar([("a.txt", b"one")])
    (tmp_path / "a.tar").write_bytes(one * 2)
    with pytest.raises(DataError, match=rf"more data after its end, at byte {len(one):,}"):
        list(documents(Source(path=str(tmp_path / "a.tar"))))


@pytest.mark.parametrize("name", [".tar", ".tar.gz", ".tar.xz", ".tar.zst", ".jsonl.zst"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, "last", "changed"])
def test_a_damaged_shard_is_named(share: float | str, name: str, tmp_path: Path) -> None:
    texts = [f"{text} {i * 7919}" for i, text in enumerate(TEXTS * 40)]
    write(tmp_path / "shards", name, texts)
    path = tmp_path / "shards" / f"1{name}"
    whole = path.read_bytes()
    if share == "last":
        broken = whole[:-4] if len(name) > 4 else whole.rstrip(b"\0")
    elif share == "changed":
        begin, end = (2048, 2052) if name == ".tar" else (300, 340)  # of a header; of compressed bytes
        broken = whole[:begin] + bytes(end - begin) + whole[end:]
    else:
        assert isinstance(share, float)
        broken = whole[: round(share * len(whole))] or b"no such file"
    path.write_bytes(broken)
    with pytest.raises(DataError, match=rf"1{name}: .*(corrupt or truncated|not a complete tar)"):
        list(documents(Source(path=str(tmp_path / "shards"))))


def test_shards_with_different_columns_or_encodings_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a", ".parquet", TEXTS)
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "a" / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet: no column text; found: body; name one of them"):
        list(documents(Source(path=str(tmp_path / "a"))))
    write(tmp_path / "b", ".jsonl", TEXTS)
    (tmp_path / "b" / "1.jsonl").write_text('{"text": "ä"}\n{"text": "é"}\n', encoding="latin-1")
    with pytest.raises(DataError, match=r"1\.jsonl:1: not UTF-8"):
        list(documents(Source(path=str(tmp_path / "b"))))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
def test_what_is_compressed_and_not_named_so_is_to_be_decompressed(tmp_path: Path, name: str) -> None:
    content = gzip.compress(b"hello")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=r":1: not UTF-8 .*; it is compressed, so decompress it$"):
        list(documents(Source(path=str(tmp_path / name))))
