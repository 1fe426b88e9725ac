"""Text at an address: fetched once, by its hash, on from where it broke off; stores by fsspec."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

import stlm_kd
from stlm_kd.artifacts.hashing import CACHE
from stlm_kd.data.sources import remote
from stlm_kd.data.sources.sources import Source, documents, fingerprint
from stlm_kd.errors import DataError, MissingResourceError, RecipeError
from stlm_kd.pipeline.plan import plan
from stlm_kd.recipe import load
from tests.support.road import distilled

TEXTS = [f"Text {i * 7919} ." for i in range(2000)]
CONTENT = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class _Site(BaseHTTPRequestHandler):
    """One file; ``plan`` says how many bytes of each answer arrive, and whether ranges are understood."""

    requests: list[str | None] = []  # noqa: RUF012
    cuts: list[int] = []  # noqa: RUF012
    ranges = True
    before = b""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.requests.append(wanted)
        begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0  # type: ignore[index]  # always one
        if self.path.endswith("gone.jsonl"):
            self.send_error(404)
            return
        body = (self.before or CONTENT)[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    for name, value in (("requests", []), ("cuts", []), ("ranges", True), ("before", b"")):
        monkeypatch.setattr(_Site, name, value)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def read(path: str) -> list[str]:
    return list(documents(Source(path=path)))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_taken_up_and_the_file_fetched_once(
    ranges: bool, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Site, "ranges", ranges)
    _Site.cuts += [1000, 30_000]
    address = f"{site}/a.jsonl#sha256={SHA256}"
    assert read(address) == TEXTS
    assert _Site.requests == [None, "bytes=1000-", f"bytes={31_000 if ranges else 30_000}-"]
    assert read(address) == TEXTS and len(_Site.requests) == 3


def test_a_command_goes_on_where_another_ended(site: str) -> None:
    _Site.cuts += [1000, 0]
    address = f"{site}/a.jsonl#sha256={SHA256}"
    with pytest.raises(MissingResourceError, match=r"broke off after 0 of .*what is there already is kept"):
        read(address)
    assert read(address) == TEXTS
    assert _Site.requests == [None, "bytes=1000-", "bytes=1000-"]


def test_another_content_is_refused_and_a_beginning_of_another_file_forgotten(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{site}/a.jsonl#sha256={SHA256}"
    monkeypatch.setattr(_Site, "before", CONTENT.replace(b"Text", b"Took"))
    with pytest.raises(DataError, match=rf"a\.jsonl: sha256 [0-9a-f]{{64}} found, expected {SHA256}"):
        read(address)
    _Site.cuts += [1000, 0]
    with pytest.raises(MissingResourceError):
        read(address)
    monkeypatch.setattr(_Site, "before", b"")
    assert read(address) == TEXTS


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://host/a.jsonl", r"no hash found, .*expected #sha256=HEX at the end"),
        ("https://host/a.jsonl#sha256=12", r"no hash found"),
        (f"https://host/a.pdf#sha256={SHA256}", r"unknown kind of file"),
        (f"http://host/a.jsonl#sha256={SHA256}", r"http:// found; expected one of https, s3, gs, abfs"),
        ("ftp://host/a.jsonl", r"ftp:// found; expected one of"),
        ("a" * 300 + ".txt", r"not the name of a file; expected no NUL, at most 255 bytes"),
    ],
)
def test_an_address_that_names_nothing_is_a_fault_of_the_recipe(
    address: str, message: str, place: Path
) -> None:
    with pytest.raises(RecipeError, match=message) as refused:
        plan("plain.yaml", [f"data.train={address}"])
    assert refused.value.faults[0].place.startswith("data.train")
    with pytest.raises(DataError, match=message):
        read(address)


def test_an_address_that_needs_a_package_is_said_in_the_plan(place: Path) -> None:
    message = "needs s3fs, which is not installed; pip install s3fs"
    (fault,) = plan("plain.yaml", ["data.train=s3://bucket/a"]).missing
    assert fault.place == "data.train.path" and message in fault.message
    with pytest.raises(MissingResourceError, match=message):
        read("s3://bucket/a")


def test_a_file_that_is_not_there(site: str) -> None:
    with pytest.raises(MissingResourceError, match="status 404"):
        read(f"{site}/gone.jsonl#sha256={SHA256}")


def test_a_recipe_reads_an_address_and_its_lock_states_the_hash(
    site: str, place: Path, tmp_path: Path
) -> None:
    address = f"{site}/a.jsonl#sha256={SHA256}"
    run = distilled("plain", f"data.train={address}", "train.steps=2", "eval=[]", output_dir=tmp_path)
    assert f"sha256: sha256:{SHA256}" in (run / "recipe.lock").read_text()
    assert load(str(run / "recipe.yaml")).data.train[0].value == address


def test_a_listing_fetches_no_address_and_get_does(
    site: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    address = f"{site}/a.jsonl#sha256={SHA256}"
    asked = ("plain.yaml", [f"data.train={address}", "eval=[]"])

    def listed() -> tuple[str, int | None]:
        found = {one.name: (one.state, one.num_bytes) for one in stlm_kd.list_data(*asked)}
        return found[address]

    assert listed() == ("not fetched", None)
    _Site.cuts += [1000, 0]
    with pytest.raises(MissingResourceError, match=r"1 data sets cannot be fetched\n  data\.train: .*broke"):
        stlm_kd.get_data(*asked)
    assert listed() == ("in part", 1000) and len(_Site.requests) == 2
    assert [one.state for one in stlm_kd.get_data(*asked) if one.name == address] == ["cached"]
    assert listed() == ("cached", len(CONTENT)) and len(_Site.requests) == 3


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fsspec.AbstractFileSystem]:
    """A store in memory, in place of one that needs a network."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setitem(remote.STORES, "memory", "fsspec")
    remote._from_store.cache_clear()
    memory = fsspec.filesystem("memory")
    yield memory
    memory.store.clear()
    remote._from_store.cache_clear()


def test_a_store_is_read_as_a_folder_is(store: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for number in range(3):
        rows = "".join(json.dumps({"text": f"Text {number} {i} ."}) + "\n" for i in range(3))
        for name in (f"memory://bucket/shards/a/{number}.jsonl", str(here / f"{number}.jsonl")):
            with fsspec.open(name, "w") as file:
                file.write(rows)
    store.pipe("/bucket/shards/README.md", b"not data")
    address = "memory://bucket/shards"
    assert remote.cached(address) == (None, 0)
    assert read(address) == read(str(here))
    copy, size = remote.cached(address)
    assert copy is not None and size == sum(len(path.read_bytes()) for path in here.iterdir())
    assert fingerprint(Source(path=address)) == fingerprint(Source(path=str(here)))
    assert read(f"{address}/a/1.jsonl") == [f"Text 1 {i} ." for i in range(3)]
    with pytest.raises(MissingResourceError, match="none of 1 objects is of a known kind"):
        read(f"{address}/README.md")
    with pytest.raises(MissingResourceError, match="none of 0 objects"):
        read("memory://bucket/nothing")


def test_objects_that_a_file_system_may_take_for_one_lie_apart(store: fsspec.AbstractFileSystem) -> None:
    names = ["A/2.jsonl", "B.jsonl", "a/1.jsonl", "b.jsonl"]
    for name in names:
        store.pipe(f"/bucket/{name}", json.dumps({"text": name}).encode())
    assert read("memory://bucket") == names
    folder = remote.located("memory://bucket")
    found = [path.relative_to(folder).as_posix().lower() for path in folder.rglob("*.jsonl")]
    assert len({path.partition("/")[0] for path in found}) == len(names)


def test_an_object_whose_name_leaves_the_folder_is_refused(store: fsspec.AbstractFileSystem) -> None:
    store.pipe("/bucket/shards/0.jsonl", b'{"text": "a"}')
    store.store["/bucket/shards/../../x.jsonl"] = store.store["/bucket/shards/0.jsonl"]
    with pytest.raises(DataError, match=r"x\.jsonl leaves its folder"):
        read("memory://bucket/shards")
