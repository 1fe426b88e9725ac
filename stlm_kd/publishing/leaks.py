"""What may not leave this machine in any file that is pushed: secrets, and names of its folders and user."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from stlm_kd.errors import RecipeFault
from stlm_kd.sharing.limits import MAX_BYTES, MB

_SECRETS = {
    "a token of the Hub": r"\b(?:hf_[A-Za-z0-9]{20,}|aGZf[A-Za-z0-9+/]{27,})",
    "an API key": r"(?<![\w-])sk-[A-Za-z0-9_-]{20,}",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "a token of GitLab": r"\bglpat-[\w-]{20,}",
    "a token of Slack": r"\bxox[abeprs]-[0-9A-Za-z-]{10,}",
    "a key of AWS": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a key of Google": r"\bAIza[\w-]{35}",
    "a JSON web token": r"\beyJ[\w-]{10,}\.[\w-]*\.[\w-]{10,}",
    "a password in an address": r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]+:[^\s/:@]+@",
    "a key or password": (
        r"(?i)(?:api_?key|secret_?access_?key|passw(?:or)?d)[\"']?\s?[:=]\s?[\"']?[\w/+.-]{20,}"
    ),
    "a private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY",
}
_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|API_?KEY|ACCESS_?KEY)(_ID)?$")
_SECRET_SIZE = 16
"""Variables of these names with values of this many characters hold secrets, such as WANDB_API_KEY."""

_HOMES = rb"(?:/home|/Users|C:\\{1,2}Users)[/\\]+[\w.-]+[/\\]"
_SHARED_USERS = {"root", "user", "admin", "ubuntu", "runner", "student", "teacher", "test", "tester", "model"}
"""User names that say nothing of a person, or are words of results."""

_FACTS = ("results.json", "recipe.lock", "README.md", "config.json", "tokenizer_config.json")
"""Files that programs wrote, in which names of folders and users have no place."""


def leaks(files: Mapping[str, Path], *, folders: Iterable[Path] = (), known: str = "") -> list[RecipeFault]:
    """A fault for each secret, folder of this machine and user name in some files; the secret is not in it.

    Args:
        files: Where the content of each path is.
        folders: Folders of this machine beside the user's home and the current one.
        known: Text that everybody may read, such as the address: a user name in it is no secret.
    """
    secrets = {what: pattern.encode() for what, pattern in _SECRETS.items()}
    token = _token() or ""
    if len(token) > 7:
        secrets["the token that you use"] = re.escape(token.encode())
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SECRET_SIZE and value != token:
            secrets[f"the value of {name}"] = re.escape(os.fsencode(value))
    places = {"a folder of this machine": b"|".join([*_folders(folders), _HOMES])}
    user = Path.home().name
    if len(user) > 2 and user not in _SHARED_USERS and user not in known:
        places["your user name on this machine"] = rb"\b%s\b" % re.escape(user.encode())
    faults = []
    for name, path in files.items():
        try:
            content = _content(path)
        except ValueError as error:
            faults.append(RecipeFault(name, f"{error}; write it again, or remove it"))
            continue
        for patterns, cure in (
            (secrets, "revoke it, and remove it from the file"),
            (places if name in _FACTS else {}, "use names that mean the same elsewhere, and make it again"),
        ):
            found = _found(content, patterns)
            faults += [RecipeFault(name, f"{what} in line {line}; {cure}") for what, line in found]
    return faults


def _found(content: bytes, patterns: dict[str, bytes]) -> Iterator[tuple[str, int]]:
    """What is in a content, each once, with its line."""
    for what, pattern in patterns.items():
        if match := re.search(pattern, content):
            yield what, content.count(b"\n", 0, match.start()) + 1


def _content(path: Path) -> bytes:
    """A file's bytes, decompressed as far as they can be and up to ``MAX_BYTES``; of safetensors the header.

    The header holds all of its text.
    """
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            size = int.from_bytes(file.read(8), "little")
            if size > min(path.stat().st_size - 8, MAX_BYTES):
                raise ValueError("damaged: no header of safetensors")
            return file.read(size)
        if path.suffix != ".gz":
            return file.read()
        found = bytearray()
        with suppress(OSError, EOFError, zlib.error), gzip.open(file) as unpacked:
            while len(found) < MAX_BYTES and (block := unpacked.read1(MB)):
                found += block
        return bytes(found)


def _folders(more: Iterable[Path]) -> list[bytes]:
    found = {str(path.absolute()) for path in (Path.home(), Path.cwd(), *more)} - {"/"}
    return [re.escape(path.encode()) + rb"(?![\w-])" for path in sorted(found)]


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()
