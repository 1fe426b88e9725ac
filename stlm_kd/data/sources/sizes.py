"""About how much text a file holds, told from its beginning, to say how much time reading it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from itertools import chain
from pathlib import Path

from stlm_kd.data.sources.files import decompressed, is_compressed, kind_of, read_errors
from stlm_kd.data.sources.formats.columnar import column_bytes
from stlm_kd.errors import StlmKdError

_SAMPLE = 1 << 18
_MOST_DECOMPRESSED = 1 << 24
_BLOCK = 1 << 14


def text_bytes(path: Path, column: str) -> int | None:
    """About the UTF-8 bytes of a file's text, of JSON lines and Parquet those of a column; None if unknown.

    Parquet states it in its footer. Of others it is the size times what the first bytes give: how well they
    are compressed, and how much of JSON lines is text; of messages, what the assistant says. Faults are left
    to whoever reads the file.
    """
    try:
        with read_errors(str(path)):
            if kind_of(path) == "parquet":
                return column_bytes(path, column)
            with path.open("rb") as file:
                begin = file.read(_SAMPLE)
            content = _decompressed(begin, path) if is_compressed(path) else begin
            share = _text_share(content, column) if kind_of(path) == "json lines" else 1.0
            return round(path.stat().st_size * share * len(content) / len(begin)) if begin else None
    except StlmKdError:
        return None


def _decompressed(begin: bytes, path: Path) -> bytes:
    """What the first bytes of a compressed file hold, but for the last block."""
    blocks, size = [], 0
    try:
        with decompressed(BytesIO(begin), path) as file:
            while size < _MOST_DECOMPRESSED and (block := file.read(_BLOCK)):
                blocks.append(block)
                size += len(block)
    except (EOFError, OSError):  # more of it follows
        pass
    return b"".join(blocks)


def _text_share(content: bytes, column: str) -> float:
    """The share of a column's text in the first lines."""
    lines = content.splitlines()
    whole = lines[:-1] or lines
    texts = chain.from_iterable(_texts_of(json.loads(line).get(column)) for line in whole)
    return sum(len(text.encode(errors="replace")) for text in texts) / sum(len(line) + 1 for line in whole)


def _texts_of(value: object) -> Iterator[str]:
    """A text, or what the assistant says in messages."""
    messages = value if isinstance(value, list) else [{"role": "assistant", "content": value}]
    for one in messages:
        text = one.get("content") if isinstance(one, dict) and one.get("role") == "assistant" else None
        if isinstance(text, str):
            yield text
