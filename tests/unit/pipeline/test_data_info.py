"""What a single source is: a file that is not whole is one message."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from stlm_kd.errors import StlmKdError
from stlm_kd.pipeline.checks.data_info import data_info


def table() -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["a" * 100] * 50, "n": [1] * 50}), buffer)
    return buffer.getvalue()


def shard() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("a.txt", "b.txt"):
            archive.addfile(entry := tarfile.TarInfo(name), io.BytesIO(bytes(entry.size)))
    return buffer.getvalue()


WHOLE = {
    "a.parquet": table(),
    "a.tar": shard(),
    "a.tar.gz": gzip.compress(shard()),
    "a.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 3000),
    "a.txt.xz": lzma.compress(b"a text" * 3000),
    "a.txt.zst": pyarrow.compress(b"a text" * 3000, codec="zstd", asbytes=True),
}
FACTS = {
    "a.parquet": (50, ("text", "n")),
    "a.tar": (2, ()),
    "a.tar.gz": (2, ()),
    "a.jsonl.gz": (None, ("text",)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_is_told_if_it_is_whole_and_named_if_it_is_not(name: str, tmp_path: Path) -> None:
    path, content = tmp_path / name, WHOLE[name]
    path.write_bytes(content)
    found = data_info(str(path))
    assert (found.splits[""].rows, found.columns) == FACTS.get(name, (None, ()))
    assert found.splits[""].num_bytes == len(content)
    part = content[: 700 if name == "a.tar" else len(content) // 2]
    footer = content[:-200] + b"\xff" * 190 + content[-10:]
    for damaged in (part, footer) if name == "a.parquet" else (part,):
        path.write_bytes(damaged)
        with pytest.raises(StlmKdError, match=rf"{name}: (not a complete|corrupt or truncated)"):
            data_info(str(path))


def test_an_address_is_told_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STLM_KD_CACHE", str(tmp_path))
    address = f"https://host/a.txt#sha256={'0' * 64}"
    with pytest.raises(StlmKdError, match=f"{address}: not fetched yet; stlm-kd data get"):
        data_info(address)
    with pytest.raises(StlmKdError, match=r"https://host/a\.txt: no hash found"):
        data_info("https://host/a.txt")
