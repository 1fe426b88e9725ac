"""The source ``hub``: named data sets, read from a mirror here or from the Hugging Face Hub.

A text is read file by file: a file is fetched when its turn comes, so what is not read is not fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from stlm_kd.data.sources.ahead import Part, in_turn
from stlm_kd.data.sources.document_files import cut
from stlm_kd.data.sources.files import Text, file_facts, has_known_suffix, kind_of, lines_of
from stlm_kd.data.sources.filters import Selection, Where
from stlm_kd.data.sources.sizes import text_bytes
from stlm_kd.data.sources.sources import register_data_source
from stlm_kd.data.sources.tables import Row, dataset_rows, read_rows, require_columns, text_value
from stlm_kd.errors import DataError, MissingResourceError
from stlm_kd.sharing import pins
from stlm_kd.sharing.data_sets import split_files, tables
from stlm_kd.sharing.data_sets.named import Mirror, layout_of, mirror
from stlm_kd.sharing.hub import RepoInfo
from stlm_kd.sharing.names import hub_name
from stlm_kd.sharing.snapshot import size_of

T = TypeVar("T")

Lines = Literal["article", "blank-line"]

_READ_HERE = {"parquet": "parquet", "json": "json lines"}
"""The library's readers whose rows our own readers give as well, with the kind of file.

JSON lines of a text are read here even if the library has prepared a table of them: that takes texts for
dates and numbers for texts, and documents would depend on what is in the cache.
"""


def rows(
    dataset: Text,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    *,
    name: Text | None = None,
    split: Text = "train",
    revision: Text | None = None,
) -> Iterator[tuple[str, Row]]:
    """Stream the rows of one split with their locations, as ``stlm_kd.data.sources.tables.read_rows``.

    From the Hub, the library keeps the data set as a memory-mapped file in its cache.

    Raises:
        MissingResourceError: As ``stlm_kd.sharing.data_sets.tables.read_split``.
        DataError: Likewise, or no such column.
    """
    held = mirrored(dataset, name=name, split=split, revision=revision)
    if held is not None:
        yield from read_rows(held.files[split], columns=columns, optional=optional)
        return
    table = tables.read_split(_at_commit(dataset, revision), name, split)
    yield from dataset_rows(table, _described(dataset, split=split), columns, optional)


def mirrored(
    dataset: str, *, name: str | None, split: str, revision: str | None, **_: object
) -> Mirror | None:
    """The mirror that is read in place of the Hub; None if there is none."""
    return mirror(hub_name(dataset, "dataset", revision=revision), name, (split,))


def _at_commit(dataset: str, revision: str | None) -> RepoInfo:
    return pins.current().resolve(hub_name(dataset, "dataset", revision=revision))


def _described(dataset: str, /, *, split: str, **_: object) -> str:
    return f"{dataset}, split {split}"


def _identity(
    dataset: str,
    /,
    *,
    name: str | None,
    split: str,
    revision: str | None,
    column: str | None = None,
    lines: str | None = None,
    where: Where | None = None,
) -> list[object]:
    """Its id, split and commit, or the content of a mirror's file; for text, also how it is read."""
    held = mirrored(dataset, name=name, split=split, revision=revision)
    read: list[object] = [] if column is None else [column]
    rows_with = [{"where": where}] if where else []
    if held is not None:
        is_text = kind_of(held.files[split]) == "text"
        row = "row" if held.layout.keeps_ends or not is_text else "row without end"
        content = file_facts([held.files[split]])
        if held.commit is None:
            if column is not None:
                # The lines of a plain text are read as those of ``path``; of a table only here.
                read += ["rows", lines] if lines is not None and not is_text else [lines or row]
            return [*content, *read, *rows_with]
        # The commit is what the mirror says of itself.
        read += [*([] if row == "row" and lines is None else [lines or row]), *rows_with]
        return ["hub", hub_name(dataset, "dataset").id, name, split, *read, held.commit, *content]
    read += [*([] if lines is None else [lines]), *rows_with]
    found = _at_commit(dataset, revision)
    return ["hub", found.id, name, split, *read, found.commit]


def _require(
    dataset: str,
    /,
    *,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    column: str | None = None,
    is_limited: bool = False,
    **_: object,
) -> None:
    """As ``DataSource.require``. Without a column rows are read, of the library's table."""
    if mirrored(dataset, name=name, split=split, revision=revision) is not None:
        return
    asked = hub_name(dataset, "dataset", revision=revision)
    info = pins.current().resolve(asked)
    files = split_files.known(info, name)
    if column is not None and files is not None:
        of_split = files.splits.get(split, ())
        there = len(split_files.cached(info, of_split))
        is_enough = there > 0 if is_limited else there == len(of_split)
        if is_read_by_file(files.reader, of_split) and is_enough:
            return
    tables.require(asked, name, as_table=column is None or has_table(info, name))


def is_read_by_file(reader: str, files: Sequence[str]) -> bool:
    """Whether the files of a split are read one by one, rather than prepared by the library as a whole."""
    try:
        return bool(files) and {kind_of(Path(file)) for file in files} == {_READ_HERE.get(reader)}
    except KeyError:  # a kind of file that only the library reads
        return False


def has_table(info: RepoInfo, name: str | None) -> bool:
    """Whether the library has prepared a table that holds the same texts as the files."""
    made_by = tables.prepared_by(info, name)
    names = map(Path, info.files or ["unknown.jsonl"])
    has_lines = any(has_known_suffix(file) and kind_of(file) == "json lines" for file in names)
    return made_by is not None and not (made_by == "json" and has_lines)


def parts(
    dataset: str,
    /,
    *,
    name: str | None,
    split: str,
    column: str,
    revision: str | None,
    lines: Lines | None,
    where: Selection | Where | None,
) -> Sequence[Part[str]]:
    """The files of a split in the library's order, each fetched and read lazily; a mirror is one part."""
    options: dict[str, Any] = {"split": split, "column": column, "lines": lines, "where": where}
    whole = [Part(split, partial(texts, dataset, name=name, revision=revision, **options))]
    held = mirrored(dataset, name=name, split=split, revision=revision)
    if lines is not None or held is not None:
        return whole
    info = _at_commit(dataset, revision)
    reader, files = split_files.files_of(info, name, split)
    if not is_read_by_file(reader, files):
        return whole
    selection = Selection.of(where)
    return [_part(info, file, partial(_documents_of, info, file, column, selection)) for file in files]


def _size(
    dataset: str,
    /,
    *,
    name: str | None,
    split: str,
    column: str,
    revision: str | None,
    **_: object,
) -> int | None:
    """By the files' sizes and what the first of them holds; None if the library's table is read."""
    held = mirrored(dataset, name=name, split=split, revision=revision)
    if held is not None:
        return text_bytes(held.files[split], column)
    info = _at_commit(dataset, revision)
    if tables.prepared_by(info, name) is not None:
        return None
    reader, files = split_files.files_of(info, name, split)
    if not is_read_by_file(reader, files):
        return None
    first = split_files.fetched(info, files[0])
    found, size = text_bytes(first, column), size_of(info, files[:1])
    return round(found * size_of(info, files) / size) if found and size else None


def _documents_of(info: RepoInfo, file: str, column: str, selection: Selection | None) -> Iterator[str]:
    columns = [column, *(selection.wanted if selection else ())]
    return _not_blank(_column(_rows_of_file(info, file, columns), column, selection))


def _check(dataset: str, /, **_: object) -> None:
    """Raise DataError for what is no name on the Hub."""
    try:
        hub_name(dataset, "dataset")
    except MissingResourceError as error:
        raise DataError(str(error)) from error


@register_data_source(
    "hub",
    identity=_identity,
    rows=rows,
    require=_require,
    check=_check,
    described=_described,
    parts=parts,
    size=_size,
    reading={"column", "lines", "where"},
    noun="text from the Hub",
)
def texts(
    dataset: Text,
    /,
    *,
    name: Text | None = None,
    split: Text = "train",
    column: Text = "text",
    revision: Text | None = None,
    lines: Lines | None = None,
    where: Where | None = None,
) -> Iterator[str]:
    """A named data set, by its id on the Hugging Face Hub.

    Args:
        dataset: The id, perhaps with a branch, tag or commit: ``org/name@v1``.
        name: The configuration, if there are several.
        split: The split.
        column: The column that holds the text.
        revision: A branch, tag or commit.
        lines: The rows are the lines of a text, as in WikiText, which are cut into documents as by ``path``'s
            option ``documents``; default: each row is a document.
        where: Columns with the value, or the values, that rows must have.
    """
    selection = Selection.of(where)
    columns = [column, *(selection.wanted if selection else ())]
    held = mirrored(dataset, name=name, split=split, revision=revision)
    if held is not None and kind_of(held.files[split]) == "text":
        require_columns(str(held.files[split]), columns, ["text"])
        found = lines_of(held.files[split])
        if not held.layout.keeps_ends:
            found = (line.removesuffix("\n") for line in found)
    elif held is not None:
        found = _column(read_rows(held.files[split], columns=columns), column, selection)
    else:
        found = _column(_rows_of_hub(dataset, name, split, revision, columns), column, selection)
    if lines is None:
        return _not_blank(found)
    empty = layout_of(hub_name(dataset, "dataset").id, name).empty
    whole = (text if text.endswith("\n") else f"{text}\n" if text else empty for text in found)
    return cut(whole, documents=lines, place=dataset)


def _rows_of_hub(
    dataset: str, name: str | None, split: str, revision: str | None, columns: Sequence[str]
) -> Iterator[tuple[str, Row]]:
    """The rows of a split: file by file, or of the library's table if it has one or the files ask for it."""
    info = _at_commit(dataset, revision)
    if not has_table(info, name):
        reader, files = split_files.files_of(info, name, split)
        if is_read_by_file(reader, files):
            by_file = [_part(info, file, partial(_rows_of_file, info, file, columns)) for file in files]
            yield from in_turn(by_file, lambda found: len(str(found[1][columns[0]])))
            return
    table = tables.read_split(info, name, split)
    yield from dataset_rows(table, _described(dataset, split=split), columns, ())


def _part(info: RepoInfo, file: str, read: Callable[[], Iterator[T]]) -> Part[T]:
    return Part(file, read, partial(split_files.fetch_ahead, info, file), size_of(info, [file]))


def _rows_of_file(info: RepoInfo, file: str, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    yield from read_rows(split_files.fetched(info, file), columns=columns)


def _column(found: Iterable[tuple[str, Row]], column: str, selection: Selection | None) -> Iterator[str]:
    """The selected rows' texts, "" for blank ones, which are lines where the rows are those of a text."""
    for place, row in found:
        if selection is None or not selection.takes(row):
            yield "".join(text_value(row[column], f"{place}, column {column}"))


def _not_blank(found: Iterable[str]) -> Iterator[str]:
    return (text for text in found if text.strip())
