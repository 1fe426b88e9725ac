"""A Hugging Face Hub on the loopback interface: repositories, faults on order, and a log of all requests.

It was written from the code of its clients (``huggingface_hub``, ``transformers``, ``datasets``), so it shows
what they request, not what the real Hub answers::

    with Hub() as hub:
        first = hub.add("model", "org/name", {"config.json": "{}"}, tag="v1")
        second = hub.add("model", "org/name", {"config.json": '{"a": 1}'})     # a second commit on main
        hub.fault("GET .*safetensors", cut=1000, times=1)                      # the connection breaks once
        subprocess.run([...], env=hub.environment(tmp_path))                   # HF_ENDPOINT is read on import
        hub.requests                                                           # ["HEAD /org/name/… 307", …]

Tokens: ``READ`` may read what is private, ``WRITE`` may also write, as user ``tester``; those in a
repository's ``allowed`` may read it; others are invalid. Not served: Xet (``HF_HUB_DISABLE_XET`` is set),
spaces, buckets.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

import yaml
from aiohttp import web

Kind = Literal["model", "dataset"]
Content = bytes | str | Path

READ, WRITE, USER = "hf_reader", "hf_writer", "tester"
PAGE = 1000
"""Entries on one page of a listing."""

_LARGE = {".safetensors", ".bin", ".pt", ".parquet", ".gz", ".xz", ".zip", ".npz", ".model"}
"""Suffixes of files that are stored with LFS, whatever their size."""


@dataclass(frozen=True)
class Blob:
    """A file's content; ``large`` ones are stored with LFS."""

    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        """Git's hash; of a large file, that of its LFS pointer."""
        data = self.content
        if self.large:
            head = "version https://git-lfs.github.com/spec/v1"
            data = f"{head}\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid

    def listed(self, path: str) -> dict[str, Any]:
        """Its entry of ``/tree``."""
        size = len(self.content)
        lfs = {"lfs": {"oid": self.sha256, "size": size, "pointerSize": 134}} if self.large else {}
        return {"type": "file", "oid": self.oid, "size": size, "path": path, **lfs}

    def sibling(self, path: str, *, details: bool) -> dict[str, Any]:
        """Its entry in a repository's information."""
        if not details:
            return {"rfilename": path}
        size = len(self.content)
        lfs = {"lfs": {"sha256": self.sha256, "size": size, "pointerSize": 134}} if self.large else {}
        return {"rfilename": path, "blobId": self.oid, "size": size, **lfs}


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    sha: str
    files: Mapping[str, Blob]

    def card(self) -> dict[str, Any]:
        """The front matter of README.md."""
        readme = self.files.get("README.md")
        match = re.match(rb"---\r?\n(.*?)\r?\n---", readme.content, re.S) if readme else None
        try:
            data = yaml.safe_load(match[1]) if match else None
        except yaml.YAMLError:
            data = None
        return data if isinstance(data, dict) else {}


@dataclass
class Repo:
    """A repository: its commits, and those that branches and tags name."""

    kind: Kind
    id: str
    private: bool = False
    gated: bool = False
    disabled: bool = False
    allowed: set[str] = field(default_factory=set)
    moved_to: str | None = None
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[int, tuple[str, str]] = field(default_factory=dict)

    def commit(self, files: Mapping[str, Blob], *, branch: str = "main") -> Commit:
        """Add a commit to a branch; its name depends on content and history alone."""
        facts = [
            self.id,
            self.branches.get(branch),
            sorted((path, blob.etag) for path, blob in files.items()),
        ]
        sha = hashlib.sha1(json.dumps(facts).encode()).hexdigest()
        self.commits[sha] = Commit(sha, dict(files))
        self.branches[branch] = sha
        return self.commits[sha]

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag, or a commit's (possibly short) name."""
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = self.branches.get(revision) or self.tags.get(revision)
        if sha is None and re.fullmatch("[0-9a-f]{7,40}", revision):
            sha = next((known for known in self.commits if known.startswith(revision)), None)
        return self.commits.get(sha or "")

    def info(self, commit: Commit, *, details: bool = False) -> dict[str, Any]:
        """Its information at a commit; ``details`` include sizes and hashes of the files."""
        card = commit.card()
        bases = card.get("base_model")
        tags = [
            *map(str, card.get("tags") or []),
            *([card["library_name"]] if "library_name" in card else []),
            *(
                f"base_model:{one}"
                for one in (bases if isinstance(bases, list) else [bases] if bases else [])
            ),
        ]
        date = "2026-01-01T00:00:00.000Z"
        return {
            "_id": hashlib.md5(self.id.encode()).hexdigest()[:24],
            "id": self.id,
            **({"modelId": self.id} if self.kind == "model" else {}),
            "author": self.id.partition("/")[0],
            "sha": commit.sha,
            "lastModified": date,
            "createdAt": date,
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "disabled": self.disabled,
            "downloads": 0,
            "likes": 0,
            "tags": tags,
            "cardData": card,
            "siblings": [blob.sibling(path, details=details) for path, blob in sorted(commit.files.items())],
        }


@dataclass
class Fault:
    """What goes wrong with requests whose ``METHOD path`` matches a pattern.

    Attributes:
        pattern: Regular expression, searched for in e.g. ``GET /org/name/resolve/main/file``.
        times: How often; None means always.
        status: Status code of the answer; 429 comes with the Hub's rate-limit headers.
        wait: Seconds before the answer.
        cut: Close the connection after so many bytes of the body.
        corrupt: Change a byte in the middle of the body.
        headers: Headers to replace in the answer.
        body: Body in place of the right one.
        retry_after: Seconds told with 429.
        act: Called before the answer, to change what the Hub has.
    """

    pattern: str
    times: int | None = None
    status: int | None = None
    wait: float = 0.0
    cut: int | None = None
    corrupt: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    retry_after: int = 1
    act: Callable[[], object] | None = None


class _Refused(Exception):
    """An error as the Hub reports it: mostly in headers."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        code_header = {"X-Error-Code": code} if code else {}
        told = {"X-Error-Message": message, **code_header, **headers}
        self.response = web.json_response({"error": message}, status=status, headers=told)


class Hub:
    """Repositories and the server; a context manager that serves in a thread."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        """``METHOD path status`` of each request, in order; without status while it is not answered."""
        self._uploads: dict[str, bytes] = {}
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

    # Calls for tests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def add(
        self,
        kind: Kind,
        repo: str,
        files: Mapping[str, Content],
        *,
        tag: str | None = None,
        branch: str = "main",
        keep: bool = True,
        pull_request: tuple[str, str] | None = None,
        **settings: Any,
    ) -> str:
        """Commit files to a repository, which is created if it does not exist; return the commit.

        Args:
            kind: Kind of repository.
            repo: Its id.
            files: Content by path; paths are not checked, so that hostile ones can be served.
            tag: Tag of the new commit.
            branch: Its branch.
            keep: Whether other files of the branch stay.
            pull_request: Title and author of an open pull request whose branch (``refs/pr/NUMBER``) this is.
            settings: Of the repository: ``private``, ``gated``, ``disabled``, ``allowed``, ``moved_to``.
        """
        found = self.repos.setdefault((kind, repo), Repo(kind, repo))
        for name, value in settings.items():
            setattr(found, name, set(value) if name == "allowed" else value)
        if pull_request is not None:
            found.branches.setdefault(branch, found.branches["main"])
            found.pull_requests[int(branch.rpartition("/")[2])] = pull_request
        before = found.at(branch) if keep else None
        rows = dict(before.files) if before is not None else {}
        commit = found.commit(rows | {path: _blob(path, data) for path, data in files.items()}, branch=branch)
        if tag is not None:
            found.tags[tag] = commit.sha
        return commit.sha

    def fault(self, pattern: str, **what: Any) -> None:
        """Order a fault (see ``Fault``); the first that matches a request counts."""
        self.faults.append(Fault(pattern, **what))

    def environment(self, home: Path, *, token: str | None = None, **extra: str) -> dict[str, str]:
        """The environment of a process that uses this Hub and no mirror, with all caches below ``home``."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        clean.pop("STLM_KD_DATA", None)
        own = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "hf"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return clean | own | ({"HF_TOKEN": token} if token else {}) | extra

    # Serving

    def __enter__(self) -> Hub:
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: self._loop.run_until_complete(self._serve(ready)), daemon=True
        )
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{rest:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._port = runner.addresses[0][1]
        ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        place = f"{request.method} {unquote(request.raw_path)}"
        fault = next((one for one in self.faults if one.times != 0 and re.search(one.pattern, place)), None)
        number = len(self.requests)
        self.requests.append(place)
        if fault is not None:
            fault.times = None if fault.times is None else fault.times - 1
            if fault.act is not None:
                fault.act()
            await asyncio.sleep(fault.wait)
        try:
            if fault is not None and fault.status is not None:
                limit = {"RateLimit": f'"resolvers";r=0;t={fault.retry_after}'}
                limit["Retry-After"] = str(fault.retry_after)
                headers = limit if fault.status == 429 else {}
                raise _Refused(fault.status, "", f"fault {fault.status}", **headers)
            response = await self._route(request)
        except _Refused as refused:
            response = refused.response
        self.requests[number] += f" {response.status}"
        return response if fault is None else await self._spoil(request, response, fault)

    async def _spoil(self, request: web.Request, response: web.Response, fault: Fault) -> web.StreamResponse:
        response.headers.update(fault.headers)
        body = bytearray(fault.body if fault.body is not None else response.body or b"")  # type: ignore[arg-type]
        if fault.corrupt and body:
            body[len(body) // 2] ^= 0xFF
        stream = web.StreamResponse(status=response.status, headers=response.headers)
        stream.content_length = len(body)
        with suppress(ConnectionResetError):  # the client no longer waits
            await stream.prepare(request)
            if request.method != "HEAD":
                await stream.write(bytes(body[: fault.cut]))
                if fault.cut is not None and fault.cut < len(body) and request.transport is not None:
                    request.transport.close()
        return stream

    async def _route(self, request: web.Request) -> web.Response:
        path = request.raw_path.partition("?")[0]
        for pattern, name in _ROUTES:
            if match := re.fullmatch(pattern, path):
                given = {key: unquote(value) for key, value in match.groupdict("").items()}
                given = {key: value for key, value in given.items() if value}
                if "kind" in given:
                    given["kind"] = given["kind"].removesuffix("s")
                answer: web.Response = await getattr(self, name)(request, **given)
                return answer
        raise _Refused(404, "", f"this Hub has no {request.method} {path}")

    # Access

    def _token(self, request: web.Request) -> str | None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        known = {"", READ, WRITE}.union(*(repo.allowed for repo in self.repos.values()))
        if given not in known:
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        return given or None

    def _repo(self, request: web.Request, kind: str, repo: str, *, write: bool = False) -> Repo:
        """The repository, if the token may read it (and write to it)."""
        token = self._token(request)
        found = self.repos.get((kind, repo))
        if found is not None and found.moved_to:
            there = request.raw_path.replace(repo, found.moved_to, 1)
            raise _Refused(307, "", f"moved to {found.moved_to}", Location=there)
        if found is None or (found.private and token not in {READ, WRITE, *found.allowed}):
            if token is None:  # the Hub does not say whether it exists
                raise _Refused(401, "RepoNotFound", "Invalid username or password.")
            raise _Refused(404, "RepoNotFound", "Repository not found")
        if found.disabled:
            raise _Refused(403, "", "Access to this resource is disabled.")
        if write and token != WRITE:
            raise _Refused(401 if token is None else 403, "", f"you may not write to {repo}")
        return found

    def _readable(self, request: web.Request, kind: str, repo: str, revision: str) -> Commit:
        """A commit whose files the token may read: those of a gated repository are for ``allowed`` tokens."""
        found = self._repo(request, kind, repo)
        token = self._token(request)
        if found.gated and token not in found.allowed:
            text = f"Access to {kind} {repo} is restricted"
            raise _Refused(
                401 if token is None else 403, "GatedRepo", f"{text}; ask for it at {self.url}/{repo}"
            )
        return self._at(found, revision)

    @staticmethod
    def _at(repo: Repo, revision: str) -> Commit:
        commit = repo.at(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Reading

    async def info(self, request: web.Request, kind: str, repo: str, revision: str = "main") -> web.Response:
        found = self._repo(request, kind, repo)
        return web.json_response(found.info(self._at(found, revision), details="blobs" in request.query))

    async def search(self, request: web.Request, kind: str) -> web.Response:
        """Repositories by ``search``, ``author`` and ``filter``; private ones for those who may read them."""
        token, asked = self._token(request), request.query
        wanted = {one for value in asked.getall("filter", []) for one in value.split(",") if one}
        rows = [
            info
            for repo in self.repos.values()
            if repo.kind == kind and repo.moved_to is None and (commit := repo.at("main")) is not None
            for info in [repo.info(commit)]
            if not repo.private or token in {READ, WRITE, *repo.allowed}
            if asked.get("search", "").lower() in repo.id.lower()
            if wanted <= set(info["tags"]) and asked.get("author") in (None, info["author"])
        ]
        return web.json_response(rows[: int(asked.get("limit", PAGE))])

    async def tree(
        self, request: web.Request, kind: str, repo: str, revision: str, path: str = ""
    ) -> web.Response:
        commit = self._at(self._repo(request, kind, repo), revision)
        rows = _listing(
            commit, path.strip("/"), recursive=request.query.get("recursive", "").lower() == "true"
        )
        if path and not rows:
            raise _Refused(404, "EntryNotFound", f"{path} does not exist on {revision}")
        start = int(request.query.get("cursor", 0))
        response = web.json_response(rows[start : start + PAGE])
        if start + PAGE < len(rows):
            more = request.url.update_query(cursor=str(start + PAGE))
            response.headers["Link"] = f'<{self.url}{more.raw_path_qs}>; rel="next"'
        return response

    async def paths_info(self, request: web.Request, kind: str, repo: str, revision: str) -> web.Response:
        commit = self._at(self._repo(request, kind, repo), revision)
        as_json = request.content_type == "application/json"
        asked = (await request.json())["paths"] if as_json else (await request.post()).getall("paths", [])
        rows = {row["path"]: row for row in _listing(commit, "", recursive=True)}
        return web.json_response([rows[str(path)] for path in asked if str(path) in rows])

    async def refs(self, request: web.Request, kind: str, repo: str) -> web.Response:
        found = self._repo(request, kind, repo)
        rows = {
            part: [{"name": name, "ref": f"refs/{where}/{name}", "targetCommit": sha} for name, sha in names]
            for part, where, names in [
                ("branches", "heads", found.branches.items()),
                ("tags", "tags", found.tags.items()),
            ]
        }
        return web.json_response({**rows, "converts": []})

    async def discussions(self, request: web.Request, kind: str, repo: str) -> web.Response:
        found = self._repo(request, kind, repo)
        rows = [
            {
                "title": title,
                "num": number,
                "author": {"name": author},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "status": "open",
                "isPullRequest": True,
                "repo": {"name": repo, "type": kind},
            }
            for number, (title, author) in found.pull_requests.items()
        ]
        return web.json_response({"discussions": rows, "count": len(rows), "start": 0})

    async def resolve(
        self, request: web.Request, repo: str, revision: str, path: str, kind: str = "model"
    ) -> web.Response:
        """A file: a large one on "another host" (localhost), a small one by way of ``/api/resolve-cache``."""
        commit = self._readable(request, kind, repo, revision)
        blob = commit.files.get(path)
        if blob is None:
            raise _Refused(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit.sha})
        there = f"/api/resolve-cache/{kind}s/{repo}/{commit.sha}/{quote(path)}"
        if blob.large:
            there = f"http://localhost:{self._port}/_cdn/{blob.sha256}?name={quote(path)}"
        headers = {
            "X-Repo-Commit": commit.sha,
            "X-Linked-Size": str(len(blob.content)),
            "X-Linked-Etag": f'"{blob.etag}"',
            "ETag": f'"{blob.etag}"',
            "Location": there,
        }
        return web.Response(status=302 if blob.large else 307, headers=headers)

    async def resolved(
        self, request: web.Request, kind: str, repo: str, revision: str, path: str
    ) -> web.Response:
        commit = self._readable(request, kind, repo, revision)
        blob = commit.files[path]
        return _body(request, blob.content, {"ETag": f'"{blob.etag}"', "X-Repo-Commit": commit.sha})

    async def cdn(self, request: web.Request, sha: str) -> web.Response:
        """Large files, on a host that must not get tokens."""
        if "Authorization" in request.headers:
            raise _Refused(400, "", "a token was sent to another host")
        commits = (commit for repo in self.repos.values() for commit in repo.commits.values())
        blobs = (blob for commit in commits for blob in commit.files.values())
        found = next((blob for blob in blobs if blob.large and blob.sha256 == sha), None)
        if found is None:
            raise _Refused(404, "", "no such object")
        return _body(request, found.content, {"ETag": f'"{sha}"'})

    # Writing

    async def whoami(self, request: web.Request) -> web.Response:
        token = self._token(request)
        if token is None:
            raise _Refused(401, "", "Invalid username or password.")
        access = {"displayName": "test", "role": "write" if token == WRITE else "read"}
        user = {"type": "user", "id": "0" * 24, "name": USER, "fullname": USER, "isPro": False, "orgs": []}
        return web.json_response(user | {"auth": {"type": "access_token", "accessToken": access}})

    async def create(self, request: web.Request) -> web.Response:
        token = self._token(request)
        if token != WRITE:
            raise _Refused(401 if token is None else 403, "", "a token that may write is needed")
        asked = await request.json()
        kind: Kind = asked.get("type") or "model"
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        if (kind, name) in self.repos:
            error = {"error": f"You already created this {kind} repo", "url": self._page(kind, name)}
            return web.json_response(error, status=409, headers={"X-Error-Message": error["error"]})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.add(kind, name, {".gitattributes": "*.safetensors filter=lfs\n"}, private=private)
        return web.json_response({"url": self._page(kind, name), "name": name, "id": name})

    async def validate(self, request: web.Request) -> web.Response:
        match = re.match(r"---\r?\n(.*?)\r?\n---", (await request.json())["content"], re.S)
        try:
            valid = match is None or isinstance(yaml.safe_load(match[1]) or {}, dict)
        except yaml.YAMLError:
            valid = False
        errors = [] if valid else [{"message": "metadata must be a mapping"}]
        return web.json_response({"errors": errors, "warnings": []}, status=200 if valid else 400)

    async def preupload(self, request: web.Request, kind: str, repo: str, revision: str) -> web.Response:
        existing = self._at(self._repo(request, kind, repo, write=True), revision).files
        rows = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if _is_large(file["path"], file["size"]) else "regular",
                "shouldIgnore": False,
                "oid": existing[file["path"]].etag if file["path"] in existing else None,
            }
            for file in (await request.json())["files"]
        ]
        return web.json_response({"files": rows})

    async def lfs_batch(self, request: web.Request, repo: str, kind: str = "model") -> web.Response:
        self._repo(request, kind, repo, write=True)
        rows = []
        for one in (await request.json())["objects"]:
            upload = {"upload": {"href": f"{self.url}/_upload/{one['oid']}", "header": {}}}
            actions = {} if one["oid"] in self._uploads else {"actions": upload}
            rows.append({"oid": one["oid"], "size": one["size"], **actions})
        return web.json_response({"transfer": "basic", "objects": rows})

    async def upload(self, request: web.Request, sha: str) -> web.Response:
        content = await request.read()
        if hashlib.sha256(content).hexdigest() != sha:
            raise _Refused(400, "", "the content does not have this hash")
        self._uploads[sha] = content
        return web.Response()

    async def push(self, request: web.Request, kind: str, repo: str, revision: str) -> web.Response:
        """A commit, as lines of JSON: a header, then files and deletions; 412 if its parent is stale."""
        found = self._repo(request, kind, repo, write=True)
        files = dict(self._at(found, revision).files)
        for line in map(json.loads, (await request.read()).splitlines()):
            key, value = line["key"], line["value"]
            if key == "header" and not found.branches[revision].startswith(value.get("parentCommit") or ""):
                raise _Refused(412, "", "A commit has happened since. Please refresh and try again.")
            if key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), large=False)
            elif key == "lfsFile":
                if value["oid"] not in self._uploads:
                    raise _Refused(400, "", f"{value['path']}: not uploaded")
                files[value["path"]] = Blob(self._uploads[value["oid"]], large=True)
            elif key == "deletedFile" and files.pop(value["path"], None) is None:
                raise _Refused(404, "EntryNotFound", "A file with this name doesn't exist")
            elif key == "deletedFolder":
                files = {path: blob for path, blob in files.items() if not path.startswith(value["path"])}
        sha = found.commit(files, branch=revision).sha
        url = f"{self._page(kind, repo)}/commit/{sha}"
        return web.json_response(
            {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": "", "pullRequestUrl": None}
        )

    async def tag(self, request: web.Request, kind: str, repo: str, revision: str) -> web.Response:
        """``POST tag/REVISION`` creates a tag; ``DELETE tag/NAME`` removes it."""
        found = self._repo(request, kind, repo, write=True)
        if request.method == "DELETE":
            found.tags.pop(revision, None)
            return web.json_response({})
        name = (await request.json())["tag"]
        if name in found.tags:
            raise _Refused(409, "", f"Tag reference exists already: {name}")
        found.tags[name] = self._at(found, revision).sha
        return web.json_response({})

    def _page(self, kind: str, repo: str) -> str:
        return f"{self.url}/{'' if kind == 'model' else f'{kind}s/'}{repo}"


_KIND, _ID, _REV = r"(?P<kind>models|datasets)", r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
_API = rf"/api/{_KIND}/{_ID}"
_DATA = r"(?:/(?P<kind>datasets))?"
_ROUTES = [
    (r"/_cdn/(?P<sha>[0-9a-f]{64})", "cdn"),
    (r"/_upload/(?P<sha>[0-9a-f]{64})", "upload"),
    (r"/api/whoami-v2", "whoami"),
    (r"/api/repos/create", "create"),
    (r"/api/validate-yaml", "validate"),
    (rf"/api/resolve-cache/{_KIND}/{_ID}/{_REV}/(?P<path>.+)", "resolved"),
    (rf"/api/{_KIND}", "search"),
    (rf"{_API}/revision/{_REV}", "info"),
    (rf"{_API}/tree/{_REV}(?:/(?P<path>.+))?", "tree"),
    (rf"{_API}/paths-info/{_REV}", "paths_info"),
    (rf"{_API}/refs", "refs"),
    (rf"{_API}/discussions", "discussions"),
    (rf"{_API}/preupload/{_REV}", "preupload"),
    (rf"{_API}/commit/{_REV}", "push"),
    (rf"{_API}/tag/{_REV}", "tag"),
    (_API, "info"),
    (rf"/api/{_KIND}/(?P<repo>[^/]+)", "info"),
    (rf"{_DATA}/{_ID}\.git/info/lfs/objects/batch", "lfs_batch"),
    (rf"{_DATA}/{_ID}/resolve/{_REV}/(?P<path>.+)", "resolve"),
    (rf"/(?P<repo>[^/]+)/resolve/{_REV}/(?P<path>.+)", "resolve"),
]


def _is_large(path: str, size: int) -> bool:
    return Path(path).suffix in _LARGE or size > 10_000_000


def _blob(path: str, content: Content) -> Blob:
    data = content.read_bytes() if isinstance(content, Path) else content
    data = data.encode() if isinstance(data, str) else data
    return Blob(data, _is_large(path, len(data)))


def _listing(commit: Commit, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders below a folder, as ``/tree`` lists them."""
    prefix = f"{folder}/" if folder else ""
    rows: dict[str, dict[str, Any]] = {}
    for path, blob in sorted(commit.files.items()):
        if path.startswith(prefix):
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                name = prefix + "/".join(parts[:depth])
                oid = hashlib.sha1(name.encode()).hexdigest()
                rows.setdefault(name, {"type": "directory", "oid": oid, "size": 0, "path": name})
            if recursive or len(parts) == 1:
                rows[path] = blob.listed(path)
    return [rows[name] for name in sorted(rows)]


def _body(request: web.Request, content: bytes, headers: Mapping[str, str]) -> web.Response:
    """The content, or the requested range of it."""
    told = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if match is None:
        return web.Response(body=content, headers=told)
    start, end = int(match[1]), min(int(match[2] or len(content) - 1) + 1, len(content))
    told["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
    return web.Response(status=206, body=content[start:end], headers=told)
