"""Packed rows as an index: where in the ids each chunk is, in the order of rows; in memory or in files.

Documents are cut into chunks of at most ``context`` positions, which ``packing.plan`` puts into rows. Chunks
are counted by their lengths, then written to their places a block at a time, so that making the files takes
little memory for a corpus of any size. The folder of an index holds

- ``begins.bin``: int64, the begin of each chunk in the ids;
- ``lengths.bin``: uint16, or uint32 for long rows, the length of each chunk;
- ``labels.bin``: int32, the id after each chunk, or -100 at a document's end; not of wrapped chunks;
- ``starts.bin``: int64, the first chunk of each row, and the end of the last;
- ``manifest.json``: what the rows are of, the number of tokens, rows and chunks, and the files' hashes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from stlm_kd.activity import advanced, doing
from stlm_kd.artifacts.atomic import write_json, written_whole
from stlm_kd.artifacts.hashing import first_change, hashes_of, remember, sealed
from stlm_kd.data.batch import IGNORED, Integers
from stlm_kd.data.text.packing import Plan, plan
from stlm_kd.data.text.store_files import broken, mapped, read_manifest
from stlm_kd.data.token_store import TokenStore

if TYPE_CHECKING:
    import numpy.typing as npt

FORMAT_VERSION = 1
"""Increased when the same store would give other files."""

_BLOCK = 1 << 18

NewArray: TypeAlias = "Callable[[str, npt.DTypeLike, int], npt.NDArray[Any]]"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an index is of (``store`` is the store's ``identity``), its numbers, and its files' SHA-256."""

    format_version: int
    store: str
    context: int
    wrapped: bool
    tokens: int
    rows: int
    chunks: int
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Chunks in the order of rows: row r holds those from ``starts[r]`` to ``starts[r + 1]``.

    ``begins``, ``lengths`` and ``labels_after``, (chunks,) each, are as in the files; ``starts`` is
    (rows + 1,). ``num_tokens`` is the number of positions that hold a token, over all rows.
    """

    begins: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    labels_after: npt.NDArray[np.int32] | None
    starts: npt.NDArray[np.int64]
    num_tokens: int

    @classmethod
    def of(
        cls,
        store: TokenStore,
        context: int,
        *,
        wrapped: bool,
        new: NewArray = lambda name, dtype, length: np.empty(length, dtype),
    ) -> RowIndex:
        """Cut the documents of a store and pack the chunks; ``new`` makes the arrays, in memory by default.

        ``wrapped`` as in ``PackedRows``.
        """
        # A wrapped chunk's start and end tokens replace one token of the chunk before and of the chunk after.
        overlap = 2 * wrapped
        counts = np.zeros(context + 1, np.int64)
        for _, lengths, _ in chunks_of(store.offsets, context, overlap=overlap):
            counts += np.bincount(lengths, minlength=context + 1)
            advanced()
        packed = plan(counts)
        chunks, rows = int(counts.sum()), sum(found.number for found in packed.rows)
        tokens = int((counts * np.arange(context + 1)).sum())
        index = cls._arrays(new, chunks, rows, tokens, context, wrapped)
        _write_starts(index.starts, packed)
        longer = chunks - np.cumsum(counts)  # chunks of each length come after those that are longer
        for begins, lengths, goes_on in chunks_of(store.offsets, context, overlap=overlap):
            order, in_order = _in_order(lengths, longer)
            row, place = packed.places(in_order)
            slots = index.starts[row] + place
            index.begins[slots], index.lengths[slots] = begins[order], lengths[order]
            if index.labels_after is not None:
                labels_after = np.full(len(begins), IGNORED, np.int32)
                labels_after[goes_on] = store.tokens.take((begins + lengths)[goes_on])
                index.labels_after[slots] = labels_after[order]
            advanced()
        return index

    @classmethod
    def open(cls, folder: Path, store: TokenStore, context: int, *, wrapped: bool) -> RowIndex:
        """The index in a folder; DataError if there is none, of other rows, or with changed files."""
        manifest, _ = read_manifest(folder, Manifest, FORMAT_VERSION)
        if (manifest.store, manifest.context, manifest.wrapped) != (store.identity, context, wrapped):
            raise broken(folder, "manifest.json is of other rows")

        def old(name: str, dtype: npt.DTypeLike, length: int) -> npt.NDArray[Any]:
            return mapped(folder / f"{name}.bin", dtype, length)

        index = cls._arrays(old, manifest.chunks, manifest.rows, manifest.tokens, context, wrapped)
        if change := first_change(folder, manifest.files):
            raise broken(folder, f"{change} since the rows were packed")
        return index

    @classmethod
    def write(cls, folder: Path, store: TokenStore, context: int, *, wrapped: bool) -> None:
        """Pack a store's rows into a folder, which appears when it is complete; raises OSError."""
        with written_whole(folder) as unfinished, doing(f"packing rows of {store.folder.name}"):
            unfinished.mkdir(parents=True)
            maps: list[np.memmap[Any, Any]] = []

            def new(name: str, dtype: npt.DTypeLike, length: int) -> npt.NDArray[Any]:
                maps.append(_new_file(unfinished / f"{name}.bin", np.dtype(dtype), length))
                return np.asarray(maps[-1])

            index = cls.of(store, context, wrapped=wrapped, new=new)
            for written in maps:
                written.flush()
            files = hashes_of(unfinished, unfinished.iterdir())
            sizes = (index.num_tokens, len(index), len(index.begins))
            manifest = Manifest(FORMAT_VERSION, store.identity, context, wrapped, *sizes, files)
            write_json(unfinished / "manifest.json", sealed(asdict(manifest)))
        remember(folder, files)

    @classmethod
    def _arrays(
        cls, made: NewArray, chunks: int, rows: int, tokens: int, context: int, wrapped: bool
    ) -> RowIndex:
        return cls(
            begins=made("begins", np.dtype("<i8"), chunks),
            lengths=made("lengths", np.dtype("<u2" if context < 1 << 16 else "<u4"), chunks),
            labels_after=None if wrapped else made("labels", np.dtype("<i4"), chunks),
            starts=made("starts", np.dtype("<i8"), rows + 1),
            num_tokens=tokens,
        )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1


def chunks_of(
    offsets: npt.NDArray[np.int64], context: int, *, overlap: int = 0
) -> Iterator[tuple[Integers, Integers, npt.NDArray[np.bool_]]]:
    """Documents cut into chunks of at most ``context`` positions, a block of them at a time.

    Of each chunk: its begin, its length, and whether the document continues after it. Each chunk begins
    ``overlap`` positions before the end of the previous one. Documents must be at least as long as the
    overlap, or hold their end alone.

    >>> [[array.tolist() for array in arrays] for arrays in chunks_of(np.array([0, 7, 9]), 4, overlap=2)]
    [[[0, 2, 4, 7], [4, 4, 3, 2], [True, True, False, False]]]
    """
    step = context - overlap
    for first in range(0, len(offsets) - 1, _BLOCK):
        own = np.array(offsets[first : first + _BLOCK + 1])
        counts = np.maximum(-(-(np.diff(own) - overlap) // step), 1)
        after = np.cumsum(counts)
        for begin in range(0, int(after[-1]), _BLOCK):
            numbers = np.arange(begin, min(begin + _BLOCK, int(after[-1])))
            document = np.searchsorted(after, numbers, side="right")
            begins = own[document] + (numbers - (after - counts)[document]) * step
            document_ends = own[document + 1]
            ends = np.minimum(begins + context, document_ends)
            yield begins, ends - begins, ends < document_ends


def _in_order(lengths: Integers, placed: Integers) -> tuple[Integers, Integers]:
    """An order of a block's chunks by length, and the place of each of these among all chunks.

    ``placed`` are the places that the next chunk of each length gets; counts the block's chunks.
    """
    order = np.argsort(lengths.astype(np.uint16) if len(placed) <= 1 << 16 else lengths, kind="stable")
    counts = np.bincount(lengths, minlength=len(placed))
    shift = placed - (np.cumsum(counts) - counts)
    placed += counts
    return order, np.arange(len(lengths)) + shift[lengths[order]]


def _write_starts(starts: npt.NDArray[np.int64], packed: Plan) -> None:
    starts[0] = chunk = 0
    for rows in packed.rows:
        for begin in range(0, rows.number, _BLOCK):
            count = min(_BLOCK, rows.number - begin)
            first = rows.first + begin
            starts[first + 1 : first + count + 1] = chunk + rows.chunks * np.arange(1, count + 1)
            chunk += rows.chunks * count


def _new_file(path: Path, dtype: np.dtype[Any], length: int) -> np.memmap[Any, Any]:
    """A new file as an array; its space is taken at once, since writing to a map cannot fail gracefully."""
    with path.open("xb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, length * dtype.itemsize)
        else:
            file.truncate(length * dtype.itemsize)
    return np.memmap(path, dtype, "r+", shape=(length,))
