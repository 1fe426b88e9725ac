"""Read files of one commit of a git repository, or add a commit of files to a branch, without a checkout.

The ``git`` program fetches one commit into a bare repository; the files are then read as objects. So no hook,
filter, submodule, LFS pointer or link of the repository has any effect. A commit is likewise written as
objects and pushed. Git may not ask for a password.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from subprocess import PIPE

from stlm_kd.errors import MissingResourceError, RecipeError, RecipeFault
from stlm_kd.sharing.limits import MAX_BYTES, MB, Entry, checked_listing, shown
from stlm_kd.sharing.names import is_commit

_DEADLINE = 120.0
"""Seconds for one call of git."""

_MAX_LISTING = 4 * MB
_WHO = "tell git who you are (git config --global user.email YOU@HOST)"
_CURES = {
    "auto-detect": _WHO,  # a name or an address
    "auto-detection is disabled": _WHO,
}
_SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.bigFileThreshold": "16m",  # larger objects are not held in memory
    "advice.pushUpdateRejected": "false",
    "fetch.fsckObjects": "true",
    "fetch.unpackLimit": "1",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "submodule.recurse": "false",
}


def commit_of(url: str, revision: str | None) -> str:
    """The commit that a branch or tag names (None: HEAD).

    Raises:
        MissingResourceError: Git or the repository cannot be reached, or has no such branch or tag.
    """
    if revision is not None and is_commit(revision):
        return revision
    names = ["HEAD"] if revision is None else [f"refs/{kind}/{revision}" for kind in ("heads", "tags")]
    asked = [*names, *(f"{name}^{{}}" for name in names)]
    lines = _git(["ls-remote", "--", url, *asked], url=url).decode("ascii", "replace").split("\n")
    found = {name: commit for commit, _, name in (line.partition("\t") for line in lines) if name}
    commit = next((found[name] for name in reversed(asked) if name in found), None)
    if commit is None or not is_commit(commit):
        raise MissingResourceError(
            f"git+{url}: no branch or tag {revision or 'HEAD'} there; expected one, or a commit of 40 digits"
        )
    return commit


def download(url: str, commit: str, folder: Path, *, origin: str) -> None:
    """Write the files of a recipe at a commit into a folder.

    Raises:
        MissingResourceError: Git, the repository or the commit cannot be reached.
        RecipeError: Names, numbers or sizes beyond the limits.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        repository = f"--git-dir={temporary}"
        _git(["init", "--quiet", "--bare", "--template=", temporary], url=url)
        fetched = ["fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--", url, commit]
        _git([repository, *fetched], url=url)
        listing = _git([repository, "ls-tree", "-r", "-z", "-l", "--full-tree", commit], url=url)
        rows = listing.split(b"\0")[:-1]
        for entry in checked_listing(map(_entry, rows), origin):
            assert entry.size is not None, "checked"
            target = folder / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            name = entry.hashed.removeprefix("git:")
            limit = entry.size
            target.write_bytes(_git([repository, "cat-file", "blob", name], url=url, limit=limit))


def publish(
    url: str,
    files: Mapping[str, Path],
    *,
    branch: str | None,
    tag: str | None,
    message: str,
    obsolete: Callable[[Iterable[str]], Iterable[str]],
    check_only: bool = False,
) -> str:
    """Add a commit with these files to a branch (None: the main one), as the user of ``git``; return it.

    Args:
        url: The repository.
        files: Where the content of each path is; other files of the branch stay.
        branch: The branch, which need not exist.
        tag: A new tag for the commit.
        message: The commit's message.
        obsolete: The files to remove from those of the branch; what it raises stops the push.
        check_only: Whether git does all but the push itself.

    Raises:
        MissingResourceError: The repository cannot be reached or refuses, the tag exists, or another commit
            came first.
    """
    run = partial(_git, url=url, doing="pushed to")
    with tempfile.TemporaryDirectory() as folder:
        repository = f"--git-dir={folder}"
        run(["init", "--quiet", "--bare", "--template=", folder])
        name, parent = _tip(run, url, branch, tag)
        here = []
        if parent:
            run([repository, "fetch", "--quiet", "--depth=1", "--no-tags", "--", url, parent])
            run([repository, "read-tree", parent])
            here = run([repository, "ls-files", "-z"]).decode("utf-8", "surrogateescape").split("\0")[:-1]
        removed = [f"0 {'0' * 40}\t{path}\0" for path in obsolete(here)]
        listed = "".join(f"{path.absolute()}\n" for path in files.values()).encode()
        blobs = run([repository, "hash-object", "-w", "--no-filters", "--stdin-paths"], data=listed)
        pairs = zip(blobs.decode().split(), files, strict=True)
        rows = [*removed, *(f"100644 {blob}\t{path}\0" for blob, path in pairs)]
        content = "".join(rows).encode("utf-8", "surrogateescape")
        run([repository, "update-index", "-z", "--index-info"], data=content)
        tree = run([repository, "write-tree"]).decode().strip()
        commit, onto = parent, ["-p", parent] if parent else []
        if not parent or tree != run([repository, "rev-parse", f"{parent}^{{tree}}"]).decode().strip():
            commit = run([repository, "commit-tree", tree, *onto, "-m", message]).decode().strip()
        refs = [f"{commit}:refs/heads/{name}", *([f"{commit}:refs/tags/{tag}"] if tag else [])]
        try:
            dry = ["--dry-run"] if check_only else []
            run([repository, "push", "--quiet", "--atomic", "--no-verify", *dry, "--", url, *refs])
        except MissingResourceError as error:
            if _tip(run, url, name, None)[1] == parent:
                raise
            raise MissingResourceError(
                f"git+{url}: another commit came first on {name}; nothing was pushed; push again"
            ) from error
    return commit


def _tip(run: Callable[..., bytes], url: str, branch: str | None, tag: str | None) -> tuple[str, str]:
    """The name of a branch (None: of the main one) and its commit, "" if there is none."""
    asked = ["HEAD", f"refs/heads/{branch or 'main'}", *([f"refs/tags/{tag}"] if tag else [])]
    lines = run(["ls-remote", "--symref", "--", url, *asked]).decode("ascii", "replace").splitlines()
    rows = (line.partition("\t") for line in lines)
    found = {name: value for value, _, name in rows if is_commit(value)}
    symbolic = next((line for line in lines if line.startswith("ref: refs/heads/")), "")
    if tag and f"refs/tags/{tag}" in found:
        raise MissingResourceError(f"git+{url}: the tag {tag} exists; tags do not move, so choose another")
    name = branch or symbolic.removeprefix("ref: refs/heads/").partition("\t")[0] or "main"
    return name, found.get("HEAD" if branch is None else f"refs/heads/{name}", "")


def _entry(row: bytes) -> Entry:
    """An entry of ``ls-tree -l``: mode, type, object, size, tab, path."""
    facts, _, path = row.partition(b"\t")
    mode, _, name, size = facts.decode("ascii").split()
    is_file = mode in ("100644", "100755")
    return Entry(
        path.decode("utf-8", "surrogateescape"),
        int(size) if size.isdecimal() else None,
        f"git:{name}",
        is_file,
    )


def _git(
    arguments: Sequence[str],
    *,
    url: str,
    limit: int = _MAX_LISTING,
    data: bytes = b"",
    doing: str = "fetched",
) -> bytes:
    """The output of git for an input; it writes files of at most ``MAX_BYTES`` and asks the user nothing."""
    settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
    bounded = ["/bin/sh", "-c", 'ulimit -f "$0" && exec git "$@"', str(MAX_BYTES // 512)]
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as given:
        given.write(data)
        given.seek(0)
        process = subprocess.Popen(
            [*bounded, *settings, *arguments],
            stdin=given,
            stdout=PIPE,
            stderr=errors,
            env=_environment(url),
            start_new_session=True,
        )
        timer = threading.Timer(_DEADLINE, _kill, [process])
        timer.start()
        with process:
            try:
                assert process.stdout is not None, "a pipe"
                output = process.stdout.read(limit + 1)
                if len(output) > limit:
                    message = f"more than {limit:,} bytes from git"
                    raise RecipeError(f"git+{url}", [RecipeFault("", message)])
                code = process.wait()
            finally:
                timer.cancel()
                _kill(process)
        errors.seek(0)
        lines = errors.read(4096).decode("utf-8", "replace").strip().splitlines()
    if code != 0:
        killed = f"git ended with {code}, or took more than {_DEADLINE:.0f} s"
        told = next((line for line in lines if line.startswith("fatal: ")), lines[-1] if lines else killed)
        cure = next((cure for words, cure in _CURES.items() if words in told), "check the address")
        raise MissingResourceError(f"git+{url}: cannot be {doing} ({shown(told)}); {cure}")
    return output


_KEPT = re.compile(
    r"GIT_(AUTHOR|COMMITTER|SSL|HTTP)_\w+|GIT_CONFIG_(GLOBAL|SYSTEM|NOSYSTEM)|GIT_EXEC_PATH|(?!GIT_).*"
)
"""Variables that do not redirect git to another repository, index or set of objects."""


def _environment(url: str) -> dict[str, str]:
    """The environment without variables that redirect git, and with those that silence it.

    Only a ``file://`` address, which a user wrote, may be on this disk.
    """
    return {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)} | {
        "GIT_ALLOW_PROTOCOL": "file" if url.startswith("file://") else "https:ssh",
        "GIT_ASKPASS": "false",
        "SSH_ASKPASS": "false",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=10",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "LC_ALL": "C",
    }


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End git, if it is not known to have ended, and the programs that it started."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
