"""The source ``path``: a file or a folder of files, here or at an address (``remote``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from stlm_kd.data.sources.ahead import Part
from stlm_kd.data.sources.document_files import Documents, Separator, read
from stlm_kd.data.sources.files import (
    ROWS,
    TEXTS,
    Text,
    file_facts,
    kind_of,
    text_files,
)
from stlm_kd.data.sources.filters import Selection, Where
from stlm_kd.data.sources.remote import check_source, located, require_source
from stlm_kd.data.sources.sizes import text_bytes
from stlm_kd.data.sources.sources import register_data_source
from stlm_kd.data.sources.tables import Row, read_rows
from stlm_kd.notes import note


def _files(path: str, labelled: bool) -> list[Path]:
    return text_files(located(path), kinds=ROWS if labelled else TEXTS)


def _rows(path: Text, columns: Sequence[str], optional: Sequence[str], /) -> Iterator[tuple[str, Row]]:
    for file in _files(path, labelled=True):
        yield from read_rows(file, columns=columns, optional=optional)


def _identity(
    path: str,
    /,
    *,
    column: str | None = None,
    documents: Documents | None = None,
    where: Where | None = None,
) -> list[object]:
    """The content of the files; for text, also how they are read."""
    facts = file_facts(_files(path, labelled=documents is None))
    cut = ["separator", documents.text] if isinstance(documents, Separator) else documents
    return facts if documents is None else [*facts, column, cut, *([{"where": where}] if where else [])]


def _parts(
    path: str, /, *, column: str, documents: Documents, where: Selection | Where | None
) -> list[Part[str]]:
    """The files in order of names."""
    found = _files(path, labelled=False)
    is_text = {kind_of(file) == "text" for file in found}
    if documents != "article" and is_text == {False}:
        note(f"{path}: documents cuts plain text, of which there is none; a document is a row's {column}")
    if column != "text" and is_text == {True}:
        note(f"{path}: column {column} is of tables, of which there is none; all of the text is read")
    reads = partial(read, column=column, documents=documents, selection=Selection.of(where))
    return [Part(file.name, partial(reads, file)) for file in found]


def _size(path: str, /, *, column: str, **_: object) -> int | None:
    sizes = [text_bytes(file, column) for file in _files(path, labelled=False)]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


@register_data_source(
    "path",
    identity=_identity,
    rows=_rows,
    parts=_parts,
    files=_files,
    size=_size,
    require=lambda path, **options: require_source(path),
    check=lambda path, **options: check_source(path),
    reading={"column", "documents", "where"},
    noun="text from files",
)
def files(
    path: Text, /, *, column: Text = "text", documents: Documents = "article", where: Where | None = None
) -> Iterator[str]:
    """A file, or a folder, which is searched recursively and read in order of names.

    ``column`` is that of tables with the text; ``documents`` says how plain text is cut
    (``document_files.cut``); ``where`` gives columns of tables the values that rows must have.
    """
    found = 0
    parts = _parts(path, column=column, documents=documents, where=where)
    for part in parts:
        for text in part.read():
            found += 1
            yield text
    texts = sum(kind_of(Path(part.name)) == "text" for part in parts)
    if isinstance(documents, Separator) and texts == len(parts) >= found:
        note(
            f"{path}: the separator {documents.text!r} does not occur: {texts} files, {found} documents; "
            "check its spelling"
        )
