"""Files over https, redirected only to https: small ones into memory, large ones to the disk, resumed."""

from __future__ import annotations

import shutil
import threading
import time
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from stlm_kd.activity import advanced, doing
from stlm_kd.artifacts.hashing import CACHE
from stlm_kd.errors import MissingResourceError, RecipeError, RecipeFault
from stlm_kd.sharing.limits import shown

_SILENCE, _DEADLINE = 10.0, 60.0
"""Seconds without a byte, and for the whole file."""

_RESERVE = 1 << 26
"""Bytes of a disk that a download leaves free."""

_NO_SUCH_RANGE = 416

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def read(url: str, *, limit: int, local: bool = False) -> bytes:
    """The content at an https address.

    Args:
        url: The address.
        limit: Maximum number of bytes.
        local: Whether http on this machine is allowed, for tests.

    Raises:
        MissingResourceError: It cannot be reached, takes too long, or breaks off.
        RecipeError: More bytes than the limit, or a redirect to something else than https.
    """
    _refuse_other_schemes(url, url, local)
    found: list[bytes] = []
    errors: list[BaseException] = []

    def download() -> None:
        try:
            found.append(_download(url, limit, local))
        except BaseException as error:
            errors.append(error)

    # A thread of its own, since no timeout covers a name that is not resolved or headers that come slowly.
    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    thread.join(_DEADLINE)
    if errors:
        raise errors.pop()  # no name for it here: a cycle through this frame would keep its sockets open
    if not found:
        raise MissingResourceError(f"{url}: not complete after {_DEADLINE:.0f} s; try later")
    return found[0]


def _download(url: str, limit: int, local: bool) -> bytes:
    end = time.monotonic() + _DEADLINE  # ends the thread of a read that was given up
    request = Request(url, headers={"User-Agent": "stlm-kd", "Accept-Encoding": "identity"})
    try:
        with build_opener(_Redirects(url, local)).open(request, timeout=_SILENCE) as response:
            stated = response.headers.get("Content-Length", "")
            content = bytearray()
            while block := response.read1(1 << 16):
                content += block
                if len(content) > limit:
                    raise RecipeError(url, [RecipeFault("", f"more than {limit:,} bytes; not a recipe")])
                if time.monotonic() > end:
                    raise TimeoutError(f"not complete after {_DEADLINE:.0f} s")
    except (OSError, HTTPException, ValueError) as error:
        reason = f"status {error.code}, {error.msg}" if isinstance(error, HTTPError) else str(error)
        raise MissingResourceError(
            f"{url}: cannot be fetched ({shown(reason)}); check the address"
        ) from error
    if stated.isdecimal() and len(content) < int(stated):
        raise MissingResourceError(
            f"{url}: broke off after {len(content):,} of {stated} bytes; fetch it again"
        )
    return bytes(content)


def download(url: str, part: Path) -> None:
    """Fetch a file of any size, and go on where an earlier attempt ended.

    http is allowed on this machine. The caller checks the content: a server may have changed it meanwhile.

    Args:
        url: The address.
        part: The file; what it holds is taken for the beginning.

    Raises:
        MissingResourceError: It cannot be reached, breaks off and nothing more comes, or does not fit.
        RecipeError: A redirect to something else than https.
    """
    _refuse_other_schemes(url, url, local=True)
    is_local = urlsplit(url).hostname in LOOPBACK
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            with doing(f"fetching {url}"):
                _fetch_on(url, part, before, is_local)
            return
        except (OSError, HTTPException, ValueError) as error:
            reason = f"status {error.code}, {error.msg}" if isinstance(error, HTTPError) else str(error)
            if before and isinstance(error, HTTPError) and error.code == _NO_SUCH_RANGE:
                part.unlink()  # not the beginning of what is there now
                continue
            if isinstance(error, HTTPError) or not part.exists() or part.stat().st_size <= before:
                raise MissingResourceError(
                    f"{url}: cannot be fetched ({shown(reason)}); check the address, or try later: what is "
                    "there already is kept"
                ) from error


def _fetch_on(url: str, part: Path, before: int, is_local: bool) -> None:
    """Append what is missing; the whole file if the server does not tell where its answer begins."""
    headers = {"User-Agent": "stlm-kd", "Accept-Encoding": "identity"}
    if before:
        headers["Range"] = f"bytes={before}-"
    try:
        response = build_opener(_Redirects(url, is_local)).open(
            Request(url, headers=headers), timeout=_SILENCE
        )
    except HTTPError as error:
        if error.code == _NO_SUCH_RANGE and error.headers.get("Content-Range") == f"bytes */{before}":
            return  # nothing is missing
        raise
    with response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {before}-"
        )
        stated = response.headers.get("Content-Length", "")
        expected = int(stated) if stated.isdecimal() else None
        require_room(expected or 0, part.parent, url)
        with part.open("ab" if goes_on else "wb") as file:
            count = 0
            while block := response.read1(1 << 20):
                require_room(_RESERVE, part.parent, url)  # the server may state no size, or a wrong one
                file.write(block)
                count += len(block)
                advanced()
    if expected is not None and count < expected:
        raise ConnectionError(f"broke off after {count:,} of {expected:,} bytes")


def require_room(size: int, folder: Path, name: str) -> None:
    """Raise MissingResourceError if a file does not fit on the disk."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise MissingResourceError(
            f"{name}: {size:,} bytes, but {free:,} are free at {folder}; free some space, or set {CACHE} to "
            "a folder on another disk"
        )


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to https only."""

    max_redirections = 5

    def __init__(self, url: str, local: bool) -> None:
        self.url, self.local = url, local

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        _refuse_other_schemes(newurl, self.url, self.local)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refuse_other_schemes(url: str, origin: str, local: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" or (local and parts.scheme == "http" and parts.hostname in LOOPBACK):
        return
    message = f"a redirect to {shown(url)}" if url != origin else f"{parts.scheme}:// found"
    raise RecipeError(origin, [RecipeFault("", f"{message}; expected https://")])
