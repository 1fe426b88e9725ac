"""Rows of tar shards: members ``KEY.txt`` and ``KEY.json`` next to each other are one row, as in WebDataset.

``KEY.txt`` is the column ``text``; the fields of the object in ``KEY.json`` are further columns. Members with
other suffixes are skipped. An archive is streamed, and nothing of it is written to the disk.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from stlm_kd.data.sources.files import MAX_CHARACTERS, open_bytes
from stlm_kd.data.sources.formats.json_rows import json_object, parsed
from stlm_kd.data.sources.tables import Row, require_columns
from stlm_kd.errors import DataError, one_line

MAX_MEMBER = 4 * MAX_CHARACTERS
"""Maximum size of a member that is read into memory, in bytes."""

_TEXT = "text"


def members(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The rows of a tar shard; their places are their keys.

    Raises:
        DataError: A member whose name leaves the archive, a link or a device; one that is too large; a text
            that is not UTF-8; a column that is missing or given twice; a damaged archive.
    """
    key: str | None = None
    row: dict[str, object] = {}
    for name, suffix, content in _read_members(path):
        place = f"{path}: member {name}"
        if name != key:
            if key is not None:
                yield _whole(path, key, row, columns)
            key, row = name, {}
        text = _decoded(content, f"{place}.{suffix}")
        expected = "expected one JSON object with the columns of its row"
        fields = {_TEXT: text} if suffix == "txt" else json_object(parsed(text, place, expected), place)
        if twice := [column for column in fields if column in row]:
            raise DataError(f"{place}: column {one_line(twice[0])} is given twice; remove one of the two")
        row |= fields
    if key is not None:
        yield _whole(path, key, row, columns)


def _whole(path: Path, key: str, row: Row, columns: Sequence[str]) -> tuple[str, Row]:
    place = f"{path}: member {key}"
    require_columns(place, columns, row)
    return place, row


def _read_members(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """The key, suffix and content of each member with text or columns."""
    with open_bytes(path) as file:
        stream = _Forward(file, path)
        try:
            with tarfile.TarFile(fileobj=stream, mode="r") as archive:  # type: ignore[arg-type]  # reads forward
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # would hold all
                    if found := _named(member, path):
                        content = archive.extractfile(member)
                        assert content is not None, "a file"
                        yield *found, content.read()
        except tarfile.TarError as error:
            raise _damaged(path, error) from error
        if not stream.last or stream.last.strip(b"\0"):  # tarfile takes both for the end
            raise _damaged(path, "no empty block ends it" if not stream.last else "a damaged header")
        while block := file.read(1 << 16):  # the checksum of a compressed file stands at its end
            if rest := block.lstrip(b"\0"):
                at = stream.tell() + len(block) - len(rest)
                raise _damaged(path, f"more data after its end, at byte {at:,}")
            stream.pass_over(len(block))


def _named(member: tarfile.TarInfo, path: Path) -> tuple[str, str] | None:
    """The key and suffix of a member; None if it is neither text nor columns."""
    name = member.name
    place = f"{path}: member {one_line(name)}"
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        raise DataError(f"{place}: the name leaves the archive; expected relative names without ..")
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "a device, a pipe or a sparse file"
        raise DataError(f"{place}: {kind} found; expected plain files only")
    folder, slash, base = name.removeprefix("./").rpartition("/")
    key, _, suffix = base.partition(".")
    if suffix.lower() not in ("txt", "json"):
        return None
    if member.size > MAX_MEMBER:
        raise DataError(f"{place}: {member.size:,} bytes; expected at most {MAX_MEMBER:,}; split it")
    return f"{folder}{slash}{key}", suffix.lower()


def _decoded(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error


def _damaged(path: Path, what: object) -> DataError:
    return DataError(f"{path}: not a complete tar archive ({what}); fetch it again")


class _Forward:
    """A stream for ``tarfile`` that only goes forward, and gives no header of more than a member's size."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path, self._at = file, path, 0
        self.last = b""

    def read(self, size: int) -> bytes:
        if size > MAX_MEMBER + tarfile.BLOCKSIZE:
            raise _damaged(self._path, f"a header of {size:,} bytes")
        return self._next(size)

    def tell(self) -> int:
        return self._at

    def pass_over(self, size: int) -> None:
        self._at += size

    def seek(self, place: int) -> None:
        while self._at < place and self._next(min(place - self._at, 1 << 16)):
            pass

    def _next(self, size: int) -> bytes:
        self.last = self._file.read(size)
        self._at += len(self.last)
        return self.last
