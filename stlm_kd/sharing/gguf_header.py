"""The header of a GGUF file, the format of llama.cpp: metadata and table of tensors, read within limits.

Gerganov et al., https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Nothing in the file is trusted:
counts and lengths are compared with the size of the file before anything of their size is read.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from stlm_kd.artifacts.atomic import open_plain
from stlm_kd.errors import MissingResourceError, ModelError

Value = int | float | bool | str | None

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_MOST_TENSORS, _MOST_FIELDS, _MOST_ITEMS, _MOST_DIMENSIONS = 100_000, 10_000, 2**22, 4
_LONGEST_TEXT = 2**24
_FORMATS = ["B", "b", "H", "h", "I", "i", "f", "?", "", "", "Q", "q", "d"]  # by number; 8: text, 9: array
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the file: the name of its type, such as Q4_1, its number of values, and its bytes."""

    type: str
    num_values: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself: fields, those of arrays with their lengths, and tensors by name."""

    fields: Mapping[str, Value]
    tensors: Mapping[str, Tensor]

    @property
    def num_values(self) -> int:
        """The number of weights."""
        return sum(tensor.num_values for tensor in self.tensors.values())

    @property
    def quantisation(self) -> str:
        """The types of the weights, by their shares: ``Q4_1 (81 % of the weights), Q8_0 (19 %)``."""
        values: Counter[str] = Counter()
        for tensor in self.tensors.values():
            values[tensor.type] += tensor.num_values
        (first, count), *others = (
            (name, n) for name, n in values.most_common() if n >= 0.005 * self.num_values
        )
        if not others:
            return first
        shares = (f"{name} ({n / self.num_values:.0%})" for name, n in others)
        return ", ".join([f"{first} ({count / self.num_values:.0%} of the weights)", *shares])


def read_header(path: Path) -> Header:
    """The header of a GGUF file.

    Raises:
        MissingResourceError: No such plain file, or the package gguf, which knows the types, is missing.
        ModelError: No GGUF file, or a damaged one.
    """
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as error:
        raise MissingResourceError(
            f"{path}: needs the package gguf, which is not installed; pip install 'stlm-kd[export]'"
        ) from error
    blocks = {int(kind): (str(kind.name), *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType}
    try:
        with open_plain(path) as file:
            reader = _Reader(file, path.stat().st_size)
            fields, num_tensors = reader.fields()
            return Header(fields, reader.tensors(num_tensors, blocks, fields.get("general.alignment", 32)))
    except OSError as error:
        raise MissingResourceError(f"{path}: cannot be read ({error.strerror}); expected a file") from error
    except ValueError as error:
        raise ModelError(
            f"{path}: {error}; expected a whole GGUF file of version 2 or 3; fetch or copy it again"
        ) from error


class _Reader:
    """Reads values from a file; a ``ValueError`` if one goes beyond its end or a limit."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._items = file, size, 0

    def fields(self) -> tuple[dict[str, Value], int]:
        """The metadata and the number of tensors."""
        if (magic := self._file.read(4)) != _MAGIC:
            raise ValueError(f"begins with {magic!r}, not {_MAGIC!r}")
        if (version := self._number("I")) not in _VERSIONS:
            raise ValueError(f"version {version} found")
        num_tensors = self._count(_MOST_TENSORS, "tensors")
        num_fields = self._count(_MOST_FIELDS, "fields")
        fields: dict[str, Value] = {}
        for _ in range(num_fields):
            name = self._text()
            fields[name] = self._value(self._number("I"))
        return fields, num_tensors

    def tensors(
        self, count: int, blocks: Mapping[int, tuple[str, int, int]], alignment: Value
    ) -> dict[str, Tensor]:
        """The table of tensors, which must lie in the file without overlap; ``blocks``: types by number."""
        found: dict[str, Tensor] = {}
        end = 0
        for _ in range(count):
            name = self._text()
            shape = [self._number("Q") for _ in range(self._count(_MOST_DIMENSIONS, "dimensions", "I"))]
            kind, offset = self._number("I"), self._number("Q")
            if kind not in blocks:
                raise ValueError(f"tensor {name[:80]!r} of the unknown type {kind}")
            label, values, num_bytes = blocks[int(kind)]
            num_values = math.prod(map(int, shape))
            found[name] = Tensor(label, num_values, -(-num_values // values) * num_bytes)
            end = max(end, int(offset) + found[name].num_bytes)
        if type(alignment) is not int or not 0 < alignment <= 2**16:
            raise ValueError(f"general.alignment {alignment!r} found")
        start = -(-self._file.tell() // alignment) * alignment
        total = sum(tensor.num_bytes for tensor in found.values())
        if len(found) != count or not found or start + max(end, total) > self._size:
            raise ValueError(
                f"{len(found)} different tensors of {total:,} bytes up to byte {start + end:,} are stated, "
                f"in a file of {self._size:,} bytes"
            )
        return found

    def _value(self, kind: float) -> Value:
        if kind == _TEXT:
            return self._text()
        if kind != _ARRAY:
            return self._number(self._format(kind))
        item, count = self._number("I"), self._count(_MOST_ITEMS, "items of a list")
        self._items += count
        if self._items > _MOST_ITEMS:
            raise ValueError(f"lists of more than {_MOST_ITEMS:,} items in all")
        if item == _TEXT:
            for _ in range(count):
                self._skip(self._count(_LONGEST_TEXT, "bytes of a text"))
        else:
            self._skip(count * struct.calcsize(self._format(item)))
        return count

    def _format(self, kind: float) -> str:
        found = _FORMATS[int(kind)] if kind < len(_FORMATS) else ""
        if not found:
            raise ValueError(f"a value of the unknown type {kind} at byte {self._file.tell():,}")
        return found

    def _text(self) -> str:
        return self._read(self._count(_LONGEST_TEXT, "bytes of a text")).decode()

    def _count(self, most: int, what: str, format: str = "Q") -> int:
        if (found := self._number(format)) > most:
            raise ValueError(f"{found:,} {what} stated at byte {self._file.tell():,}, more than {most:,}")
        return int(found)

    def _number(self, format: str) -> int | float:
        (found,) = struct.unpack(f"<{format}", self._read(struct.calcsize(f"<{format}")))
        assert isinstance(found, (int, float))
        return found

    def _read(self, count: int) -> bytes:
        if self._file.tell() + count > self._size:
            raise ValueError(f"ends at byte {self._size:,}, within its header")
        return self._file.read(count)

    def _skip(self, count: int) -> None:
        if self._file.tell() + count > self._size:
            raise ValueError(f"ends at byte {self._size:,}, within its header")
        self._file.seek(count, 1)
