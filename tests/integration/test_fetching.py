"""Recipes fetched with the git program from bare repositories, and over HTTP from a local server."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stlm_kd.errors import MissingResourceError, RecipeError, UsageError
from stlm_kd.sharing import git, web
from stlm_kd.sharing.address import GitAddress, WebAddress, parse_address
from stlm_kd.sharing.fetch import Fetched, fetch
from tests.support.hostile import FOLDER, GOOD

Tree = list[tuple[str, str, bytes]]
"""Mode, name and content: a blob's bytes, or the object's name."""


class Bare:
    """A bare repository whose commits are built of raw objects, so that they may be malicious."""

    def __init__(self, path: Path) -> None:
        self.path = path
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(path)], check=True)

    @property
    def address(self) -> GitAddress:
        return GitAddress(f"file://{self.path}")

    def git(self, *words: str, data: bytes = b"") -> str:
        me = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        ended = subprocess.run(
            ["git", f"--git-dir={self.path}", *words],
            input=data,
            capture_output=True,
            check=True,
            env=os.environ | me,
        )
        return ended.stdout.decode().strip()

    def blob(self, content: bytes) -> str:
        return self.git("hash-object", "-w", "--stdin", data=content)

    def tree(self, entries: Tree) -> str:
        """A tree as it stands, without git's checks; of mode 40000 and 160000 the content is a name."""
        rows = b""
        for mode, name, content in sorted(entries, key=lambda entry: entry[1]):
            oid = content.decode() if mode in ("40000", "160000") else self.blob(content)
            rows += f"{mode} ".encode() + os.fsencode(name) + b"\0" + bytes.fromhex(oid)
        return self.git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", data=rows)

    def commit(self, tree: str, *refs: str) -> str:
        commit = self.git("commit-tree", tree, "-m", "x")
        for ref in refs or ("refs/heads/main",):
            self.git("update-ref", ref, commit)
        return commit

    def add(self, files: Mapping[str, bytes], *refs: str, extra: Tree | None = None) -> str:
        data = self.tree(
            [("100644", name[5:], text) for name, text in files.items() if name.startswith("data/")]
        )
        top: Tree = [("100644", name, text) for name, text in files.items() if "/" not in name]
        return self.commit(self.tree([*top, ("40000", "data", data.encode()), *(extra or [])]), *refs)


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    return Bare(tmp_path / "repository.git")


def kept(cache: Path) -> list[str]:
    return sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.name != ".lock")


def test_a_git_repository_is_fetched_by_branch_tag_and_commit(bare: Bare, tmp_path: Path) -> None:
    first = bare.add(FOLDER, "refs/heads/main", "refs/tags/v1")
    bare.git("tag", "-m", "annotated", "v2", first, data=b"")
    second = bare.add({**FOLDER, "data/train.txt": b"Others.\n"}, "refs/heads/feature/x")
    cache = tmp_path / "cache"
    by_name = {
        name: fetch(GitAddress(bare.address.url, name), cache=cache)
        for name in (None, "main", "v1", "v2", "feature/x", second)
    }
    commits = {name: found.origin.revision for name, found in by_name.items() if found.origin is not None}  # type: ignore[union-attr]
    assert commits == {
        None: first,
        "main": first,
        "v1": first,
        "v2": first,
        "feature/x": second,
        second: second,
    }
    found = by_name["main"]
    assert found.hashes == {path: hashlib.sha256(text).hexdigest() for path, text in FOLDER.items()}
    assert found.file.read_text() == GOOD
    assert not (found.folder / ".git").exists()
    assert len([*cache.glob("[0-9a-f]*")]) == 2


def test_a_commit_in_the_cache_needs_no_repository_and_a_changed_file_is_fetched_again(
    bare: Bare, tmp_path: Path
) -> None:
    commit = bare.add(FOLDER)
    address = GitAddress(bare.address.url, commit)
    again = partial(fetch, address, cache=tmp_path / "cache")
    first: Fetched = again()
    moved = bare.path.rename(tmp_path / "elsewhere")
    assert again() == first
    first.file.write_text("task: mlm")
    with pytest.raises(MissingResourceError, match="cannot be fetched"):
        again()
    moved.rename(bare.path)
    assert again().file.read_text() == GOOD


def test_hooks_filters_submodules_and_links_of_a_repository_have_no_effect(
    bare: Bare, tmp_path: Path
) -> None:
    hook = bare.path / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
    commit = bare.add(FOLDER)
    extra: Tree = [
        ("100644", ".gitattributes", b"* filter=lfs export-subst ident\n"),
        ("100644", ".gitmodules", b'[submodule "x"]\n\tpath = x\n\turl = ./x\n'),
        ("160000", "x", commit.encode()),
        ("120000", "link", b"/etc"),
        ("100755", "run.sh", b"#!/bin/sh\n"),
    ]
    bare.add({**FOLDER, "data/big.txt": pointer, "data/id.txt": b"$Id$ $Format:%H$\n"}, extra=extra)
    found = fetch(bare.address, cache=tmp_path / "cache")
    assert set(found.hashes) == {*FOLDER, "data/big.txt", "data/id.txt"}
    assert (found.folder / "data/id.txt").read_text() == "$Id$ $Format:%H$\n"
    assert not (tmp_path / "ran").exists()


def _bomb(bare: Bare) -> Tree:
    """Ten times ten times … the same folder, 10^10 files."""
    tree = bare.tree([("100644", "x.txt", b"x")])
    for _ in range(10):
        tree = bare.tree([("40000", f"d{i}", tree.encode()) for i in range(10)])
    return [("40000", "bomb", tree.encode())]


@pytest.mark.parametrize(
    ("says", "extra"),
    [
        ("a link", lambda bare: [("120000", "teacher.yaml", b"/etc/passwd")]),
        ("a link", lambda bare: [("120000", "results.json", b"../../secret")]),
        ("repository of its own", lambda bare: [("160000", "x.yaml", b"1" * 40)]),
        ("same name", lambda bare: [("120000", "DATA", b"/etc")]),
        ("same name", lambda bare: [("100644", "Recipe.yaml", b"task: mlm")]),
        ("backslash", lambda bare: [("100644", "data\\..\\x.yaml", b"x")]),
        ("control", lambda bare: [("100644", "\x1b[2J.yaml", b"x")]),
        ("control", lambda bare: [("100644", "\udcff.yaml", b"x")]),
        ("more than 4,194,304 bytes", _bomb),
        ("expected at most 262,144", lambda bare: [("100644", "x.yaml", b"#" * 300_000)]),
    ],
)  # fmt: skip
def test_a_malicious_tree_is_refused(says: str, extra: object, bare: Bare, tmp_path: Path) -> None:
    assert callable(extra)
    bare.add(FOLDER, extra=extra(bare))
    with pytest.raises(RecipeError, match=says):
        fetch(bare.address, cache=tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


@pytest.mark.parametrize("name", [".git", "..", ".", ".GIT"])
def test_a_tree_that_git_forbids_is_refused_by_git_itself(name: str, bare: Bare, tmp_path: Path) -> None:
    inner = bare.tree([("100644", "config", b"x")])
    bare.add(FOLDER, extra=[("40000", name, inner.encode())])
    with pytest.raises((MissingResourceError, RecipeError)):
        fetch(bare.address, cache=tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


def test_an_address_may_name_no_other_program_and_this_disk_only_as_file(
    bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare.add(FOLDER)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    (tmp_path / "gitconfig").write_text(f'[url "{bare.address.url}"]\n\tinsteadOf = https://h.org/r\n')
    with pytest.raises(MissingResourceError, match=r"file.*not allowed"):
        fetch(GitAddress("https://h.org/r"), cache=tmp_path / "cache")
    with pytest.raises(MissingResourceError, match="not allowed"):
        git.commit_of("ext::sh -c touch% ran", "main")
    with pytest.raises(MissingResourceError, match="no branch or tag nothing there"):
        fetch(GitAddress(bare.address.url, "nothing"), cache=tmp_path / "cache")
    with pytest.raises(MissingResourceError, match=r"no other\.yaml there; found recipe\.yaml"):
        fetch(GitAddress(bare.address.url, None, "other.yaml"), cache=tmp_path / "cache")
    assert kept(tmp_path / "cache") == []
    assert fetch(bare.address, cache=tmp_path / "cache").file.is_file()


class _Site(BaseHTTPRequestHandler):
    """Answers by the name of the file."""

    def do_GET(self) -> None:
        kind = self.path.rpartition("/")[2].removesuffix(".yaml")
        if kind in ("file", "ftp", "other", "loop"):
            targets = {"file": "file:///etc/passwd", "ftp": "ftp://host/x.yaml", "loop": self.path}
            self.send_response(302)
            self.send_header("Location", targets.get(kind, "http://192.0.2.1/x.yaml"))
            self.end_headers()
            return
        if kind == "headers":
            with suppress(OSError):
                while True:
                    self.wfile.write(b"H")
                    self.wfile.flush()
                    threading.Event().wait(0.1)
            return
        self.send_response(404 if kind == "missing" else 200)
        body = GOOD.encode()
        if kind == "cut":
            self.send_header("Content-Length", str(len(body) + 5))
        self.end_headers()
        if kind == "endless":
            try:
                while True:
                    self.wfile.write(b"#" * 65536)
            except OSError:
                return
        for index in range(len(body) if kind == "slow" else 0):
            self.wfile.write(body[index : index + 1])
            self.wfile.flush()
            threading.Event().wait(0.1)
        if kind == "silent":
            threading.Event().wait(2)
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_web_address_needs_the_hash_of_its_content(site: str, tmp_path: Path) -> None:
    hashed = hashlib.sha256(GOOD.encode()).hexdigest()
    url = f"{site}/tiny.yaml"
    with pytest.raises(UsageError, match=f"give {url}#sha256={hashed}"):
        fetch(WebAddress(url), cache=tmp_path, local_servers=True)
    with pytest.raises(RecipeError, match=f"sha256 {hashed} found; expected {'0' * 64}"):
        fetch(WebAddress(url, "0" * 64), cache=tmp_path, local_servers=True)
    assert kept(tmp_path) == []
    found = fetch(WebAddress(url, hashed), cache=tmp_path, local_servers=True)
    assert (found.file.name, found.file.read_text()) == ("tiny.yaml", GOOD)


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("file", MissingResourceError, "file:///etc/passwd' is not allowed"),
        ("ftp", RecipeError, "a redirect to ftp://host/x.yaml"),
        ("other", RecipeError, "a redirect to http://192.0.2.1/x.yaml"),
        ("loop", MissingResourceError, "cannot be fetched"),
        ("missing", MissingResourceError, "status 404"),
        ("cut", MissingResourceError, "broke off"),
        ("endless", RecipeError, "more than 262,144 bytes"),
        ("slow", MissingResourceError, "not complete after"),
        ("headers", MissingResourceError, "not complete after"),
        ("silent", MissingResourceError, "timed out"),
    ],
)
def test_a_web_address_that_misbehaves_is_refused(
    name: str, error: type[Exception], says: str, site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_DEADLINE", 0.5 if says == "not complete after" else 60)
    monkeypatch.setattr(web, "_SILENCE", 0.5)
    with pytest.raises(error, match=says):
        fetch(WebAddress(f"{site}/{name}.yaml", "0" * 64), cache=tmp_path, local_servers=True)
    assert kept(tmp_path) == []


def test_http_is_refused_without_the_permission_of_a_test(site: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="http:// found; expected https://"):
        fetch(WebAddress(f"{site}/tiny.yaml", "0" * 64), cache=tmp_path)
    with pytest.raises(UsageError):
        parse_address(f"{site}/tiny.yaml")
