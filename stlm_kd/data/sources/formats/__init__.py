"""Formats of data files: one row for each, and a module that reads the rows of its files.

A reader is ``read(path, columns, optional)``: it streams rows with their places, as
``stlm_kd.data.sources.tables.read_rows`` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """A format, told by the ends of file names.

    Attributes:
        name: Its name in code and messages.
        suffixes: The suffixes of its files, in lower case.
        reader: The module below this package and its function that reads rows; "" for plain text.
        compresses: Whether it compresses its content itself, so its files are not compressed again.
    """

    name: str
    suffixes: Sequence[str]
    reader: str = ""
    compresses: bool = False


FORMATS = (
    Format("text", (".txt",)),
    Format("json lines", (".jsonl", ".ndjson"), "json_rows.json_lines"),
    Format("csv", (".csv",), "delimited.comma_separated"),
    Format("tsv", (".tsv",), "delimited.tab_separated"),
    Format("json", (".json",), "json_rows.json_array"),
    Format("tar", (".tar",), "tar_shards.members"),
    Format("parquet", (".parquet",), "columnar.parquet", compresses=True),
    Format("arrow", (".arrow",), "columnar.arrow", compresses=True),
)

BY_SUFFIX = {suffix: row for row in FORMATS for suffix in row.suffixes}
