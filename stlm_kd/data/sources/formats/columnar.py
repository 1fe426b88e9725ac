"""Rows of Parquet files, and of the Arrow files that the ``datasets`` library saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stlm_kd.data.sources.tables import Row, dataset_rows, require_columns, require_once
from stlm_kd.errors import DataError, MissingResourceError, StlmKdError, first_line, foreign_errors


def parquet(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The rows of a Parquet file, of which a thousand are in memory."""
    from pyarrow.parquet import ParquetFile

    number = 0
    with _arrow_errors(path, "Parquet"), ParquetFile(path) as file:
        names = file.schema_arrow.names
        require_columns(str(path), columns, names)
        wanted = [name for name in names if name in (*columns, *optional)]
        require_once(str(path), wanted)
        for batch in file.iter_batches(batch_size=1024, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row


def parquet_facts(path: Path) -> tuple[int, list[str]]:
    """The number of rows of a Parquet file and the names of its columns, as its footer states them."""
    from pyarrow.parquet import ParquetFile

    with _arrow_errors(path, "Parquet"), ParquetFile(path) as file:
        return file.metadata.num_rows, file.schema_arrow.names


def column_bytes(path: Path, column: str) -> int | None:
    """The bytes of a column before compression, as the footer states them; None for messages or no column."""
    from pyarrow.parquet import ParquetFile

    with _arrow_errors(path, "Parquet"), ParquetFile(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        chunks = [group.column(place) for group in groups for place in range(group.num_columns)]
        sizes = [chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column]
    return sum(sizes) if sizes else None


def arrow(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The rows of an Arrow file."""
    from datasets import Dataset

    with _arrow_errors(path, "Arrow stream"):
        yield from dataset_rows(Dataset.from_file(str(path)), str(path), columns, optional)


@contextmanager
def _arrow_errors(path: Path, kind: str) -> Iterator[None]:
    def as_ours(error: BaseException) -> StlmKdError:
        if isinstance(error, OSError) and error.errno is not None:
            return MissingResourceError(f"{path}: cannot be read ({error})")
        return DataError(f"{path}: not a complete {kind} file ({first_line(error)}); fetch it again")

    with foreign_errors(as_ours):
        yield
