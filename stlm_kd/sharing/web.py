"""Read one small file over https: bounded in size and time, redirected only to https."""

from __future__ import annotations

import threading
import time
from http.client import HTTPException, HTTPMessage
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from stlm_kd.errors import MissingResourceError, RecipeError, RecipeFault
from stlm_kd.sharing.limits import shown

_SILENCE, _DEADLINE = 10.0, 60.0
"""Seconds without a byte, and for the whole file."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


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
    if parts.scheme == "https" or (local and parts.scheme == "http" and parts.hostname in _LOOPBACK):
        return
    message = f"a redirect to {shown(url)}" if url != origin else f"{parts.scheme}:// found"
    raise RecipeError(origin, [RecipeFault("", f"{message}; expected https://")])
