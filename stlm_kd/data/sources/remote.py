"""Files from elsewhere as local ones: ``https://HOST/…#sha256=HEX``, and object stores such as ``s3://``.

What is fetched lies in ``data`` of the cache folder: a web file under its hash, the objects of a store under
their versions, with a note of which these were. A web file that was cut off is fetched on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from stlm_kd.activity import doing
from stlm_kd.artifacts.atomic import write_text
from stlm_kd.artifacts.hashing import cache_folder, known_sha256
from stlm_kd.data.sources.files import has_known_suffix, require_path, text_files
from stlm_kd.data.sources.formats import BY_SUFFIX
from stlm_kd.errors import DataError, MissingResourceError, StlmKdError, first_line, foreign_errors, one_line
from stlm_kd.sharing import web
from stlm_kd.sharing.limits import twin
from stlm_kd.sharing.names import expanded, user_path

STORES = {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs"}
"""Object stores by scheme, with the package of each for fsspec."""

_PART = ".part"
"""What is there of a file that is being fetched."""

_HASHED = re.compile(r"(https?://[^#\s]+)#sha256=([0-9a-fA-F]{64})")


def located(path: str) -> Path:
    """The file or folder that the value of a source names; of an address, its copy, fetched if need be.

    Raises:
        MissingResourceError: It cannot be reached, or a package or a hash is missing.
        DataError: The file does not have the hash of its address.
    """
    if "://" not in path:
        return expanded(path)
    require_address(path)
    if hashed := _HASHED.fullmatch(path):
        return _from_web(hashed[1], hashed[2].lower())
    return _from_store(path)


def cached(address: str) -> tuple[Path | None, int]:
    """The copy of what is at an address, if it is complete, and the bytes that are here; asks no server.

    Of a store: as it was listed when it was last fetched. Errors as ``require_address``.
    """
    require_address(address)
    if hashed := _HASHED.fullmatch(address):
        folder = _web_folder(hashed[2].lower())
        file, part = folder / _name_of(hashed[1]), folder / _PART
        held = file if file.is_file() and known_sha256(file) == hashed[2].lower() else None
        return held, next((one.stat().st_size for one in (held, part) if one and one.is_file()), 0)
    try:
        found = cache_folder() / "data" / _note_of(address).read_text("utf-8")
        return found, sum(path.stat().st_size for path in text_files(found, kinds=[[*BY_SUFFIX]]))
    except (OSError, MissingResourceError, DataError):  # never fetched, or deleted meanwhile
        return None, 0


def stated_hash(path: str) -> str | None:
    """The SHA-256 that an address states."""
    hashed = _HASHED.fullmatch(path)
    return hashed[2].lower() if hashed else None


def require_source(path: str) -> None:
    """Raise MissingResourceError if a path is missing, or an address lacks something; asks no server."""
    if "://" in path:
        require_address(path)
    else:
        require_path(path)


def check_source(path: str) -> None:
    """Raise DataError for a path or an address that names nothing that can be read anywhere."""
    if "://" in path:
        _check_address(path)
    elif not path.startswith("~"):  # whose user may be missing only here
        try:
            user_path(path)
        except MissingResourceError as error:
            raise DataError(str(error)) from error


def _check_address(address: str) -> None:
    """Raise DataError for an unknown scheme or kind of file, or without a hash."""
    scheme = address.partition("://")[0]
    if scheme == "https" or (scheme == "http" and urlsplit(address).hostname in web.LOOPBACK):
        if not _HASHED.fullmatch(address):
            raise DataError(
                f"{one_line(address)}: no hash found, and the content may change; expected #sha256=HEX at "
                "the end, 64 digits, which sha256sum FILE prints of a local copy"
            )
        if not has_known_suffix(Path(_name_of(address))):
            raise DataError(f"{one_line(address)}: unknown kind of file; expected a known ending")
    elif scheme not in STORES:
        known = ", ".join(("https", *STORES))
        raise DataError(f"{one_line(address)}: {scheme}:// found; expected one of {known}")


def require_address(address: str) -> None:
    """Raise DataError as ``check_source``, and MissingResourceError if the package of a store is missing."""
    _check_address(address)
    if (scheme := address.partition("://")[0]) in STORES:
        from fsspec import get_filesystem_class

        try:
            get_filesystem_class(scheme)
        except ImportError as error:
            package = STORES[scheme]
            message = f"{one_line(address)}: needs {package}, which is not installed; pip install {package}"
            raise MissingResourceError(message) from error


def _name_of(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name


def _web_folder(sha256: str) -> Path:
    return cache_folder() / "data" / sha256[:32]


def _note_of(address: str) -> Path:
    """The file that names the copy of a store's address below ``data``."""
    return cache_folder() / "data" / f"{hashlib.sha256(address.encode()).hexdigest()[:32]}.copy"


def _from_web(url: str, sha256: str) -> Path:
    folder = _web_folder(sha256)
    file = folder / _name_of(url)
    folder.mkdir(parents=True, exist_ok=True)
    with doing(f"waiting for another command that fetches {url}", pace="waits"):
        lock = FileLock(folder / ".lock").acquire()
    with lock:
        if file.is_file() and known_sha256(file) == sha256:
            return file
        part = folder / _PART
        found = known_sha256(part) if part.is_file() else ""  # a command may have ended before it was moved
        while found != sha256:
            is_begun = part.exists()  # perhaps by a command that found another version
            web.download(url, part)
            found = known_sha256(part)
            if found != sha256:
                part.unlink()
                if not is_begun:
                    raise DataError(f"{url}: sha256 {found} found, expected {sha256}; give the right address")
        part.replace(file)
    return file


@cache
def _from_store(address: str) -> Path:
    """A copy of an object, or of all with a known ending below a prefix, as it is listed now."""
    from fsspec.core import url_to_fs

    def as_ours(error: BaseException) -> StlmKdError:
        return MissingResourceError(f"{address}: cannot be read ({first_line(error)}); check the address")

    with foreign_errors(as_ours), doing(f"fetching {address}"):
        store, root = url_to_fs(address)
        listed: Mapping[str, Mapping[str, Any]] = store.find(root, detail=True)
        names = {name: _inside(name, root, address) for name in sorted(listed)}
        wanted = {name: inner for name, inner in names.items() if has_known_suffix(Path(inner))}
        if not wanted:
            raise MissingResourceError(
                f"{address}: none of {len(names)} objects is of a known kind; check it"
            )
        versions = [(name, store.ukey(name)) for name in wanted]
        name_of_all = hashlib.sha256(repr((address, versions)).encode()).hexdigest()
        folder = cache_folder() / "data" / name_of_all[:32]
        folder.mkdir(parents=True, exist_ok=True)
        places = _places(wanted)
        with doing(f"waiting for another command that fetches {address}", pace="waits"):
            lock = FileLock(folder / ".lock").acquire()
        with lock:
            for name, inner in places.items():
                file = folder / inner
                if not file.is_file():
                    web.require_room(int(listed[name].get("size") or 0), folder, name)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    store.get_file(name, str(folder / _PART))
                    (folder / _PART).replace(file)
            found = folder / places[root] if root in places else folder
            write_text(_note_of(address), found.relative_to(folder.parent).as_posix())
    return found


def _places(wanted: Mapping[str, str]) -> Mapping[str, str]:
    """The files of objects: their names, in numbered folders if a file system may take two for one."""
    spelt: dict[str, tuple[str, bool]] = {}
    if not any(twin(inner, spelt) for inner in wanted.values()):
        return wanted
    return {name: f"{number:09d}/{inner}" for number, (name, inner) in enumerate(wanted.items())}


def _inside(name: str, root: str, address: str) -> str:
    """An object's path below the prefix."""
    inner = PurePosixPath(name).name if name == root else name.removeprefix(f"{root.rstrip('/')}/")
    if inner.startswith("/") or not {"", ".", ".."}.isdisjoint(inner.split("/")) or "\\" in inner:
        raise DataError(f"{address}: the name of {one_line(name)} leaves its folder; rename the object")
    return inner
