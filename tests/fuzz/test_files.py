"""Whatever data files and results of other runs hold, they are read, or refused in one message."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from stlm_kd.artifacts.record import read_record
from stlm_kd.artifacts.run_dir import list_runs
from stlm_kd.comparison.compare import compare
from stlm_kd.comparison.entries import read_rows as read_scores
from stlm_kd.data.sources.document_files import read
from stlm_kd.data.sources.files import text_files
from stlm_kd.data.sources.tables import read_rows
from stlm_kd.errors import CheckpointError, DataError
from tests.support.compared import whole_run
from tests.support.mutations import TIMES, mutated, wrong_answers


def tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


ROWS = [{"text": f"Row {i}: naïve, “quoted”\tand\nlong", "label": i % 2} for i in range(8)]
FILES: dict[str, bytes] = {
    "a.txt": b" = A = \n\ntext of a\n\n = B = \n\ntext of b\n",
    "a.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "a.json": json.dumps(ROWS).encode(),
    "a.csv": b'text,label\n"one, ""two""\nlines",1\nthree,0\n',
    "a.tsv": b"text\tlabel\none two\t1\nthree\t0\n",
}
FILES["a.jsonl.gz"], FILES["a.csv.xz"] = gzip.compress(FILES["a.jsonl"]), lzma.compress(FILES["a.csv"])
FILES["a.jsonl.zst"] = pyarrow.Codec("zstd").compress(FILES["a.jsonl"], asbytes=True)
MEMBERS = [(f"{i}.json", json.dumps({"label": i}).encode()) for i in range(3)]
FILES["a.tar"] = tar(member for i in range(3) for member in (MEMBERS[i], (f"{i}.txt", FILES["a.txt"])))
FILES["a.tar.gz"] = gzip.compress(FILES["a.tar"])
PUT = (
    b"", b"\x00", b"\xff\xfe", b'"', b"\n", b"\r", b",", b"\t", b"{", b"]", b"\\ud800", b"null", b"[" * 3000,
    b"9" * 5000, "é".encode()[:1],
)  # fmt: skip


def changed_bytes(content: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(content) + 1)
        content = content[:at] + draw.choice(PUT) + content[at + draw.choice((0, 0, 1, 9, len(content))) :]
    return content


@pytest.mark.parametrize(
    ("begin", "end"), [(0, 200), pytest.param(200, 2000 * TIMES, marks=pytest.mark.long)]
)
def test_a_data_file_that_was_changed_at_random(begin: int, end: int, tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert len(list(read_rows(tmp_path / "a.parquet", columns=["text"]))) == len(ROWS)
    files = {**FILES, "a.parquet": (tmp_path / "a.parquet").read_bytes()}

    def case(number: int) -> tuple[object, Callable[[], object]]:
        draw = random.Random(f"file {number}")
        name = draw.choice(list(files))
        path, content = tmp_path / name, changed_bytes(files[name], draw)
        path.write_bytes(content)
        if name == "a.txt" or draw.random() < 0.5:
            return (name, content), lambda: list(read(path, column="text", documents="article"))
        return (name, content), lambda: list(read_rows(path, columns=["text", "label"]))

    assert wrong_answers(case, begin, end) == []


@pytest.mark.parametrize(("begin", "end"), [(1, 15), pytest.param(15, 500 * TIMES, marks=pytest.mark.long)])
def test_results_of_another_run_that_were_changed_at_random(begin: int, end: int, tmp_path: Path) -> None:
    folder = Path(whole_run(tmp_path / "run"))
    compare([str(folder)])  # the time of imports is not that of a case
    good = {name: (folder / name).read_text("utf-8") for name in ("run.json", "results.json")}

    def case(number: int) -> tuple[object, Callable[[], object]]:
        draw = random.Random(f"run {number}")
        name = draw.choice(list(good))
        for other, text in good.items():
            (folder / other).write_text(text, "utf-8")
        if draw.random() < 0.3:
            changed = changed_bytes(good[name].encode(), draw)
        else:
            changed = json.dumps(mutated(json.loads(good[name]), draw)).encode("utf-8", "surrogatepass")
        (folder / name).write_bytes(changed)
        whole = number % 20 == 0  # a comparison takes most of a second
        return (name, changed[:1500]), lambda: (
            list_runs(tmp_path),
            compare([str(folder)]) if whole else read_scores([str(folder)]),
        )

    assert wrong_answers(case, begin, end) == []


def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "b.txt").symlink_to("/dev/zero")
    for name in ("a.txt", "b.txt"):
        with pytest.raises(DataError, match=f"{name}: a pipe or a device; give a file"):
            text_files(tmp_path / name)
    run = Path(whole_run(tmp_path / "run"))
    (run / "run.json").unlink()
    os.mkfifo(run / "run.json")
    with pytest.raises(CheckpointError, match=r"run.json: in the way is a pipe; move it away"):
        read_record(run / "run.json")
