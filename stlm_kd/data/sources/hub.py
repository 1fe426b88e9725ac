"""The source ``hub``: data sets of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stlm_kd.data.sources.files import Text
from stlm_kd.data.sources.sources import register_data_source
from stlm_kd.data.sources.tables import Row, column_texts, dataset_rows
from stlm_kd.sharing import data_sets, pins
from stlm_kd.sharing.hub import RepoInfo
from stlm_kd.sharing.names import hub_name


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

    The library keeps the data set as a memory-mapped file in its cache.

    Raises:
        MissingResourceError: As ``stlm_kd.sharing.data_sets.read_split``.
        DataError: Likewise, or no such column.
    """
    table = data_sets.read_split(_at_commit(dataset, revision), name, split)
    yield from dataset_rows(table, _described(dataset, split=split), columns, optional)


def _at_commit(dataset: str, revision: str | None) -> RepoInfo:
    return pins.current().resolve(hub_name(dataset, "dataset", revision=revision))


def _described(dataset: str, /, *, split: str, **_: object) -> str:
    return f"{dataset}, split {split}"


def _identity(
    dataset: str, /, *, name: str | None, split: str, revision: str | None, column: str | None = None
) -> list[object]:
    """Its id, split and commit; for text, also the column."""
    read = [] if column is None else [column]
    found = _at_commit(dataset, revision)
    return ["hub", found.id, name, split, *read, found.commit]


def _require(dataset: str, /, *, name: str | None = None, revision: str | None = None, **_: object) -> None:
    data_sets.require(hub_name(dataset, "dataset", revision=revision), name)


@register_data_source(
    "hub",
    identity=_identity,
    rows=rows,
    require=_require,
    described=_described,
    reading={"column"},
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
) -> Iterator[str]:
    """A data set on the Hugging Face Hub, by its id.

    Args:
        dataset: The id, perhaps with a branch, tag or commit: ``org/name@v1``.
        name: The configuration, if there are several.
        split: The split.
        column: The column that holds the text.
        revision: A branch, tag or commit.
    """
    return column_texts(rows(dataset, columns=[column], name=name, split=split, revision=revision), column)
