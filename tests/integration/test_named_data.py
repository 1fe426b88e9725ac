"""Named data sets: file by file from a Hub on the loopback interface, and from mirrors here."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tests.support.hub import Hub
from tests.support.hub_world import World

READ = """
import itertools, json, sys
from stlm_kd.data.sources.sources import Source, documents
from stlm_kd.errors import StlmKdError
found = []
for given in map(json.loads, sys.argv[1:]):
    most = given.pop("most", None)
    try:
        source = Source(**given)
        texts = documents(source)
        read = list(itertools.islice(texts, most))
        texts.close()
        made = source.entry.parts(source.value, **source.options)
        found.append([read, source.identity(), [part.name for part in made]])
    except StlmKdError as error:
        found.append(f"{type(error).__name__}: {error}")
print(json.dumps(found))
"""
LIBRARY = """
import json, sys
from datasets import load_dataset
found = []
for name, configuration, split in map(json.loads, sys.argv[1:]):
    table = load_dataset(name, configuration, split=split)
    found.append([text for text in table["text"] if text.strip()])
print(json.dumps(found))
"""
CARD = """---
configs:
- config_name: web
  data_files: [{split: train, path: [more/*.parquet, "data/train-*"]}, {split: held, path: data/held*}]
- {config_name: other, data_files: [{split: train, path: "other/*"}]}
---
"""


def table(*texts: str, group: int = 2) -> bytes:
    """A Parquet file of the texts and another column, in groups of rows."""
    buffer = io.BytesIO()
    columns = {"text": [*texts], "length": [len(text) for text in texts]}
    parquet.write_table(pyarrow.table(columns), buffer, row_group_size=group)
    return buffer.getvalue()


def json_lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text, "at": "2026-01-01"}) + "\n" for text in texts).encode()


def texts_of(shard: str) -> list[str]:
    return [f"{shard} {number}" for number in range(5)]


SHARDS = {f"data/train-0000{number}-of-00004.parquet": texts_of(f"d{number}") for number in range(4)}
FILES: dict[str, Any] = {
    "README.md": CARD,
    **{name: table(*texts) for name, texts in SHARDS.items()},
    "more/a.parquet": table("m", " ", "n"),
    "data/held.parquet": table(*texts_of("h"), " "),
    "other/train.parquet": table("o"),
}
LINES: dict[str, Any] = {
    "train.jsonl": json_lines("a", " ", "b"),
    "test.jsonl.gz": gzip.compress(json_lines("c")),
}
ORDER = ["m", "n", *(text for texts in SHARDS.values() for text in texts)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Hub() as hub:
        yield World(hub, tmp_path)


def read(world: World, *sources: dict[str, Any], **variables: str) -> list[Any]:
    found: list[Any] = world.python(READ, *map(json.dumps, sources), **variables)
    return found


def downloads(world: World) -> set[str]:
    """The large files that were sent."""
    sent = (line.split()[1] for line in world.requests if line.startswith("GET /_cdn/"))
    return {name.partition("?name=")[2] for name in sent}


def test_only_the_files_that_are_read_are_fetched_and_the_rows_are_the_librarys(world: World) -> None:
    commit = world.hub.add("dataset", "org/web", FILES)
    web = {"hub": "org/web", "name": "web"}
    (one,) = read(world, web | {"most": 4})
    assert not isinstance(one, str), one
    texts, identity, parts = one
    assert texts == ORDER[:4]
    assert identity == ["hub", "org/web", "web", "train", "text", commit]
    assert parts == ["more/a.parquet", *SHARDS]
    assert downloads(world) == {"data/train-00000-of-00004.parquet", "more/a.parquet"}

    world.hub.add("dataset", "org/web", {next(iter(SHARDS)): table("moved")})
    again = read(world, web | {"most": 9, "revision": commit})
    assert again[0][0] == ORDER[:9] and downloads(world) == {"data/train-00001-of-00004.parquet"}
    offline = read(
        world, web | {"most": 9, "revision": commit}, web | {"revision": commit}, HF_HUB_OFFLINE="1"
    )
    assert offline[0][0] == ORDER[:9] and not world.requests
    assert offline[1].startswith(
        f"HubUnreachable: org/web@{commit}: not in the cache, and offline mode is on"
    )

    held = {"hub": "org/web", "name": "web", "split": "held", "revision": commit}
    whole, of_held = read(world, web | {"revision": commit}, held)
    assert (whole[0], of_held[0]) == (ORDER, texts_of("h"))
    assert read(world, held | {"split": "dev"}) == ["DataError: org/web: no split 'dev'; it has held, train"]
    world.hub.add("dataset", "org/lines", LINES)
    lines: list[dict[str, Any]] = [{"hub": "org/lines", "split": split} for split in ("train", "test")]
    sources = [web, web | {"split": "held"}, web | {"name": "other"}, *lines]
    ours = read(world, *sources)
    asked = ([one["hub"], one.get("name"), one.get("split", "train")] for one in sources)
    theirs = world.python(LIBRARY, *map(json.dumps, asked))
    assert [one[0] for one in ours] == theirs
    assert theirs == [["m", "n", "moved", *ORDER[7:]], texts_of("h"), ["o"], ["a", "b"], ["c"]]
    assert read(world, *sources) == ours, "prepared by the library meanwhile"


def test_a_connection_that_breaks_is_taken_up_again_and_a_changed_file_is_refused(world: World) -> None:
    big = table(*(f"{number} {number * 7919}" for number in range(20_000)), group=1000)
    world.hub.add("dataset", "org/big", {"train-0.parquet": big, "train-1.parquet": table("b", "c")})
    world.hub.fault("GET /_cdn/.*train-0", cut=len(big) // 2, times=1)
    world.hub.fault("GET /_cdn/.*train-1", corrupt=True, times=1)
    (found,) = read(world, {"hub": "org/big", "most": 20_000})
    assert len(found[0]) == 20_000 and found[0][-1] == f"19999 {19999 * 7919}"
    (found,) = read(world, {"hub": "org/big"})
    assert found.startswith("MissingResourceError: org/big@") and "train-1.parquet is not the file" in found


def test_files_that_only_the_library_reads_are_prepared_by_it(world: World) -> None:
    rows = {"train.csv": "text,at\none,1\ntwo,2\n", "README.md": "text"}
    world.hub.add("dataset", "org/table", rows)
    (found,) = read(world, {"hub": "org/table"})
    assert found[0] == ["one", "two"] and found[2] == ["train"]
