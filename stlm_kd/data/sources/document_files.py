"""Documents of one file: plain text cut into documents, or one column of a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stlm_kd.data.sources.files import MAX_CHARACTERS, kind_of, lines_of
from stlm_kd.data.sources.filters import Selection
from stlm_kd.data.sources.tables import column_texts, read_rows
from stlm_kd.errors import DataError


@dataclass(frozen=True, slots=True)
class Separator:
    """A text between documents, such as ``<|endoftext|>``, which belongs to none of them."""

    text: str

    def __post_init__(self) -> None:
        if not self.text:
            raise DataError("documents: an empty separator found; expected text between documents")


CuttingRule = Literal["article", "line", "blank-line", "file"]
Documents = CuttingRule | Separator
"""How a plain text file is cut into documents; see ``cut``."""

_TITLE = re.compile(r"^ ?= [^=].* = ?$")


def read(
    path: Path, *, column: str, documents: Documents, selection: Selection | None = None
) -> Iterator[str]:
    """Stream the documents of one file, none of them blank.

    Documents of plain text are stripped of surrounding white space; a column's values are unchanged. Raises
    DataError, which names the line, for malformed or truncated content, not UTF-8, or a missing column;
    MissingResourceError if the file cannot be opened.
    """
    if kind_of(path) != "text":
        columns = [column, *(selection.wanted if selection else ())]
        return column_texts(read_rows(path, columns=columns), column, selection)
    if selection:
        raise DataError(f"{path}: plain text has no columns, but where names some; expected a table")
    return cut(lines_of(path), documents=documents, place=str(path))


def cut(lines: Iterable[str], *, documents: Documents, place: str) -> Iterator[str]:
    r"""Cut the lines of a plain text into documents.

    ``line``: each line is a document. ``blank-line``: blank lines separate documents. ``file``: the file is
    one document. ``article``, the default of a source: a line `` = Title = `` between blank lines (as in
    WikiText) begins a document, so text without such titles, such as a novel, is one document.
    A ``Separator``: its occurrences separate documents, also within a line.

    >>> list(cut(["one\n", "two<end>three\n", "<end>\n"], documents=Separator("<end>"), place="x"))
    ['one\ntwo', 'three']
    >>> list(cut([" = A = \n", "\n", "a\n", "\n", " = B = \n", "\n", "b\n"], documents="article", place="x"))
    ['= A = \n\na', '= B = \n\nb']
    """
    pending: list[str] = []
    size = 0
    for piece, begins in _beginnings(lines, documents):
        if begins:
            yield from _joined(pending)
            pending, size = [], 0
        pending.append(piece)
        size += len(piece)
        if size > MAX_CHARACTERS:
            how = f"separator {documents.text!r}" if isinstance(documents, Separator) else documents
            raise DataError(
                f"{place}: a document of more than {MAX_CHARACTERS:,} characters (documents: {how}); "
                "choose documents: line or blank-line, or give the text between them: {separator: …}"
            )
    yield from _joined(pending)


def _joined(lines: list[str]) -> Iterator[str]:
    text = "".join(lines).strip()
    if text:
        yield text


def _beginnings(lines: Iterable[str], documents: Documents) -> Iterator[tuple[str, bool]]:
    """Each line, or part of one, and whether a document begins with it."""
    if documents == "article":
        yield from _title_beginnings(lines)
    elif isinstance(documents, Separator):
        yield from _pieces_between(lines, documents.text)
    else:
        for line in lines:
            yield line, documents == "line" or (documents == "blank-line" and not line.strip())


def _pieces_between(lines: Iterable[str], separator: str) -> Iterator[tuple[str, bool]]:
    """As ``_beginnings``; joined, the pieces are those of ``str.split`` on all lines together."""
    held, begins = "", False
    for line in lines:
        *whole, held = (held + line).split(separator)
        for piece in whole:
            yield piece, begins
            begins = True
        safe = max(0, len(held) - len(separator) + 1)  # the rest may be the beginning of a separator
        yield held[:safe], begins
        held, begins = held[safe:], False
    yield held, begins


def _title_beginnings(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """As ``_beginnings``, one line late, because the line after a title has to be blank."""
    before, current = "", ""
    for after in lines:
        yield current, _is_title(before, current, after)
        before, current = current, after
    yield current, _is_title(before, current, "")


def _is_title(before: str, line: str, after: str) -> bool:
    return not before.strip() and not after.strip() and bool(_TITLE.match(line.rstrip("\n")))
