"""Data sets of a Hub on the loopback interface, at their commits, over HTTP."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from tests.support.hub import Hub
from tests.support.hub_world import World

READ_SPLITS = """
import json, sys
from pathlib import Path
from stlm_kd.errors import StlmKdError
from stlm_kd.sharing import pins
from stlm_kd.sharing.data_sets.tables import read_split
from stlm_kd.sharing.names import hub_name
rows = []
for row in sys.argv[1:]:
    name, configuration, split = row.split(",")
    try:
        info = pins.current().resolve(hub_name(name, "dataset"))
        table = read_split(info, configuration or None, split)
        rows.append(" ".join(table["text"]))
    except StlmKdError as error:
        rows.append(f"{type(error).__name__}: {error}")
print(json.dumps(rows))
"""
CARD = """---
configs:
- {config_name: raw, data_files: [{split: train, path: raw/train-*}, {split: test, path: raw/test-*}]}
- {config_name: other, data_files: [{split: train, path: other/*}]}
---
"""


def table(*texts: str) -> bytes:
    """A Parquet file with a column ``text``."""
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": texts}), buffer)
    return buffer.getvalue()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Hub() as hub:
        yield World(hub, tmp_path)


def read(world: World, *rows: str, **variables: str) -> list[str]:
    """The texts of ``name,configuration,split``, or the errors."""
    found: list[str] = world.python(READ_SPLITS, *rows, **variables)
    return found


def test_a_commit_is_read_whatever_else_is_cached(world: World) -> None:
    files = {
        "README.md": CARD,
        "raw/train-0.parquet": table("old", "rows"),
        "raw/test-0.parquet": table("test"),
    }
    old = world.hub.add("dataset", "org/data", files | {"other/x.parquet": table("other")}, tag="v1")
    new = world.hub.add("dataset", "org/data", {"raw/train-0.parquet": table("new")})
    wanted = [
        f"org/data@{old},raw,train",
        "org/data,raw,train",
        "org/data@v1,raw,test",
        f"org/data@{new},raw,test",
    ]
    texts = ["old rows", "new", "test", "test"]
    assert read(world, *wanted) == texts
    assert not [request for request in world.requests if "/main" in request], "only commits"

    assert read(world, *wanted) == texts
    assert len(world.requests) == 2, "what main and v1 mean; the rest is prepared"
    assert read(world, *reversed(wanted), HF_HUB_OFFLINE="1") == texts[::-1]
    assert not world.requests
    world.hub.fault(".*", status=503)
    started = time.monotonic()
    found = read(world, *wanted, f"org/data@{old},other,train")
    assert time.monotonic() - started < 60
    assert found[:4] == texts
    assert found[4].startswith(f"HubUnreachable: org/data@{old} (configuration other): not in the cache")
    assert len(world.requests) == 1
    assert world.stderr.count("\n") == 1


def test_what_can_be_read_is_known_before_it_is_read(world: World) -> None:
    code = """
import json, sys
from stlm_kd.sharing.data_sets.tables import is_available
from stlm_kd.sharing.names import hub_name
rows = (row.split(",") for row in sys.argv[1:])
print(json.dumps([is_available(hub_name(name, "dataset"), configuration) for name, configuration in rows]))
"""
    commit = world.hub.add("dataset", "org/data", {"train.parquet": table("a")})
    rows = ("org/data,default", f"org/data@{commit},other", "org/absent,default")
    assert world.python(code, *rows) == [True, True, False]
    read(world, "org/data,,train")
    assert world.python(code, *rows, HF_HUB_OFFLINE="1") == [True, False, False]
    world.hub.fault(".*", status=503)
    assert world.python(code, *rows[::-1]) == [False, False, True]


def test_faults_of_data_are_named(world: World) -> None:
    files = {"README.md": CARD, "raw/train-0.parquet": table("a"), "raw/test-0.parquet": table("b")}
    commit = world.hub.add("dataset", "org/data", files | {"other/x.parquet": table("c")})
    world.hub.add("dataset", "org/gated", files, gated=True)
    world.hub.add("dataset", "org/wrong", {"data.parquet": table("x")})
    world.hub.add("dataset", "org/text", {"data.parquet": b"not a table", "README.md": "text"})
    world.hub.fault("GET /_cdn/.*data.parquet", corrupt=True, times=1)
    found = read(
        world,
        *("org/data,nope,train", "org/data,,train", "org/data,raw,dev", "org/gated,raw,train"),
        *("org/wrong,,train", "org/text,,train", "org/absent,,train", "org/data@v9,raw,train"),
    )
    expected = [
        "DataError: org/data: no configuration 'nope'; it has raw, other",
        "DataError: org/data: a configuration must be named (name); it has raw, other",
        "DataError: org/data: no split 'dev'; it has test, train",
        "MissingResourceError: org/gated@*: a gated data set, and you are not logged in; accept its terms ",
        "MissingResourceError: org/wrong@*: data.parquet is not the file that was published: sha256 ",
        "DataError: org/text@*: ",
        "MissingResourceError: org/absent: no such public data set on the Hub; check the name",
        "MissingResourceError: org/data@v9: no such revision",
    ]
    for message, start in zip(found, expected, strict=True):
        head, star, tail = start.partition("@*")
        assert message.startswith(head), message
        assert not star or message.partition("@")[2][40:].startswith(tail), message

    blob = world.home / "hf/hub/datasets--org--data/snapshots" / commit / "raw/train-0.parquet"
    blob.resolve().write_bytes(blob.read_bytes()[:-1] + b"x")
    (message,) = read(world, "org/data,raw,train")
    assert "raw/train-0.parquet is not the file that was published" in message
    assert f"delete {blob.resolve()} and run the command again" in message
    assert f"delete {world.home}/hf/datasets/org___data/raw/0.0.0/{commit} too" in message


def test_the_only_configuration_needs_no_name(world: World) -> None:
    world.hub.add("dataset", "org/Only", {"train.parquet": table("a")})
    card = "---\nconfigs:\n- {config_name: raw, data_files: raw/*}\n---\n"
    world.hub.add("dataset", "org/named", {"README.md": card, "raw/train-0.parquet": table("b")})
    rows = ["org/Only,,train", "org/named,raw,train"]
    assert read(world, *rows) == ["a", "b"]
    assert read(world, *rows, "org/named,,train", HF_HUB_OFFLINE="1") == ["a", "b", "b"]


def test_a_folder_of_the_same_name_is_never_read(world: World) -> None:
    world.hub.add("dataset", "org/data", {"train.parquet": table("from the Hub")})
    (world.home / "org/data").mkdir(parents=True)
    (world.home / "org/data/train.txt").write_text("from the folder")
    (found,) = read(world, "org/data,,train")
    assert found == "from the Hub" or "hides it from this release" in found
