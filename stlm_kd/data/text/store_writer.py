"""The files of a token store while they are written: hashed as they are written, and resumed after a kill.

Whenever a file of ids is full, ``progress.json`` says what is finished, with hashes. A later process checks
these, cuts the other files to what belongs to them, and skips the documents that are in them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from stlm_kd.artifacts.atomic import clear_unfinished_for, read_json, remove, write_json
from stlm_kd.artifacts.hashing import first_change, sealed, unsealed
from stlm_kd.data.overlap import text_hash
from stlm_kd.data.text.marked import Text, num_bytes_of, text_of
from stlm_kd.data.text.tokenising import Documents, Encoder
from stlm_kd.errors import DataError
from stlm_kd.notes import note

PROGRESS = "progress.json"

DOCUMENT_FILES = {
    "offsets.bin": np.dtype("<i8"),
    "bytes.bin": np.dtype("<i8"),
    "hashes.bin": np.dtype("<u8"),
}
"""Files with one number for each document; the first has another one before them."""

SPANS = "spans.bin"
"""The file with the begins and ends of what is predicted, where that is not all."""

_SPAN = np.dtype("<i8")


def shard_name(number: int) -> str:
    """The name of a file of ids."""
    return f"tokens-{number:05}.bin"


@dataclass(frozen=True, slots=True)
class Written:
    """What is in the files: counts, the ids in each file of ids, and the SHA-256 of each file.

    ``spans`` is the number of spans to be predicted; None if all is.
    """

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    ends_inside: int = 0
    spans: int | None = None
    shards: list[int] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


class StoreWriter:
    """Writes documents into a folder; goes on with one that was begun with the same ``made_of``.

    ``shard_ids`` is the number of ids at which a file of ids is full. Methods raise OSError.
    """

    def __init__(
        self,
        folder: Path,
        encoder: Encoder,
        *,
        shard_ids: int,
        most_tokens: int | None,
        made_of: Mapping[str, object],
        place: str,
        marked: bool = False,
    ) -> None:
        self._folder, self._encoder, self._shard_ids = folder, encoder, shard_ids
        self._most, self._place = most_tokens, place
        self._made_of = {**made_of, "shard_ids": shard_ids, "most_tokens": most_tokens, "marked": marked}
        self._nothing = Written(spans=0 if marked else None)
        self._open = ExitStack()
        self._shard: _HashedFile | None = None
        folder.mkdir(parents=True, exist_ok=True)
        clear_unfinished_for(folder / PROGRESS)
        try:
            self.done = self._finished()
            self._documents = self._document_files()
        except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
            remove(folder)
            folder.mkdir()
            note(f"{place}: what is there of its tokens is not used ({error}); all of it is tokenised")
            self.done = self._nothing
            self._documents = self._document_files()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def is_full(self) -> bool:
        """Whether the most tokens are there."""
        return self.done.tokens == self._most

    def unwritten(self, texts: Iterable[Text]) -> Iterator[Text]:
        """The texts after those whose documents are written; DataError if the last of these differs."""
        rest = iter(texts)
        if not self.done.documents or self.is_full:
            return rest
        last = next(islice(rest, self.done.documents - 1, None), None)
        hashes = np.fromfile(self._folder / "hashes.bin", "<u8", 1, offset=8 * (self.done.documents - 1))
        if last is None or text_hash(text_of(last)) != int(hashes[0]):
            raise DataError(
                f"{self._place}: its text is not what it was when a part of it was tokenised; repeat the "
                "command, which then tokenises all of it"
            )
        return rest

    def write(self, texts: Sequence[Text], documents: Documents) -> None:
        """Add documents, as long as there is room for their ids, and begin new files where one is full."""
        if self._most is not None and self.done.tokens + len(documents.ids) >= self._most:
            documents = self._cut(texts, documents, self._most - self.done.tokens)
        first, number = 0, len(documents.lengths)
        ends = np.cumsum(documents.lengths)
        while first < number:
            before = int(ends[first - 1]) if first else 0
            room = self._shard_ids - (self.done.tokens - sum(self.done.shards))
            last = min(int(np.searchsorted(ends, before + room)) + 1, number)
            self._add(documents.select(first, last))
            if self.done.tokens - sum(self.done.shards) >= self._shard_ids:
                self._end_shard()
                progress = {"made_of": self._made_of, "done": asdict(self.done)}
                write_json(self._folder / PROGRESS, sealed(progress))
            first = last

    def finish(self) -> Written:
        """End the files and return what is in them."""
        if self._shard is not None:
            self._end_shard()
        return self.done

    def _cut(self, texts: Sequence[Text], documents: Documents, room: int) -> Documents:
        """The documents that fit, and the beginning of the next one with its end token."""
        ends = np.cumsum(documents.lengths)
        whole = int(np.searchsorted(ends, room, side="right"))
        left = room - (int(ends[whole - 1]) if whole else 0)
        if not left:
            return documents.select(0, whole)
        kept = documents.select(0, whole + 1)
        ids = kept.ids[:room].copy()
        ids[-1] = self._encoder.ends[1]
        text = self._encoder.beginning(texts[whole], left - 2)
        kept.lengths[-1], kept.num_bytes[-1], kept.hashes[-1] = (
            left,
            num_bytes_of(text),
            text_hash(text_of(text)),
        )
        spans = np.minimum(kept.spans, room - 1)
        return replace(kept, ids=ids, spans=spans[spans[:, 0] < spans[:, 1]])

    def _add(self, documents: Documents) -> None:
        if self._shard is None:
            self._shard = self._file(shard_name(len(self.done.shards)))
        offsets = self.done.tokens + np.cumsum(documents.lengths)
        self._shard.write(documents.ids)
        for name, numbers in zip(
            DOCUMENT_FILES, (offsets, documents.num_bytes, documents.hashes), strict=True
        ):
            self._documents[name].write(numbers.astype(DOCUMENT_FILES[name]))
        if self.done.spans is not None:
            self._documents[SPANS].write((self.done.tokens + documents.spans).astype(_SPAN))
            self.done = replace(self.done, spans=self.done.spans + len(documents.spans))
        self.done = replace(
            self.done,
            documents=self.done.documents + len(documents.lengths),
            tokens=self.done.tokens + len(documents.ids),
            bytes=self.done.bytes + int(documents.num_bytes.sum()),
            ends_inside=self.done.ends_inside + self._encoder.inside(documents),
        )

    def _end_shard(self) -> None:
        """Bring the files to the disk."""
        assert self._shard is not None
        shards = [*self.done.shards, self.done.tokens - sum(self.done.shards)]
        files = {name: self.done.files[name] for name in map(shard_name, range(len(self.done.shards)))}
        for file in (self._shard, *self._documents.values()):
            files[file.path.name] = file.synced()
        self.done = replace(self.done, shards=shards, files=files)
        self._shard.close()
        self._shard = None

    def _finished(self) -> Written:
        """What an earlier process finished; ValueError, TypeError or KeyError if it is damaged."""
        try:
            found = unsealed(read_json(self._folder / PROGRESS))
        except FileNotFoundError:
            return self._nothing
        done = Written(**found["done"])
        if found["made_of"] != json.loads(json.dumps(self._made_of)):
            raise ValueError("it was made in another way")
        shards = {name: done.files[name] for name in map(shard_name, range(len(done.shards)))}
        if change := first_change(self._folder, shards):
            raise ValueError(change)
        return done

    def _document_files(self) -> dict[str, _HashedFile]:
        """The files with numbers of documents, up to what is finished; ValueError if that is damaged."""
        files = {}
        sizes = {
            name: (self.done.documents + (name == "offsets.bin")) * dtype.itemsize
            for name, dtype in DOCUMENT_FILES.items()
        }
        if self.done.spans is not None:
            sizes[SPANS] = 2 * self.done.spans * _SPAN.itemsize
        for name, size in sizes.items():
            files[name] = self._file(name, size if self.done.documents else 0)
            if self.done.documents and files[name].digest.hexdigest() != self.done.files[name]:
                raise ValueError(f"{name}: changed")
        if not self.done.documents:
            files["offsets.bin"].write(np.zeros(1, DOCUMENT_FILES["offsets.bin"]))
        return files

    def _file(self, name: str, kept: int = 0) -> _HashedFile:
        return self._open.enter_context(_HashedFile(self._folder / name, kept))


class _HashedFile:
    """A file that grows from its first ``kept`` bytes, and the hash of what is in it."""

    def __init__(self, path: Path, kept: int) -> None:
        self.path, self.digest = path, hashlib.sha256()
        self._file = path.open("r+b" if kept else "wb")
        while kept and (block := self._file.read(min(kept, 1 << 20))):
            self.digest.update(block)
            kept -= len(block)
        self._file.truncate(self._file.tell())

    def __enter__(self) -> _HashedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def write(self, numbers: np.ndarray[Any, Any]) -> None:
        data = np.ascontiguousarray(numbers).data
        self._file.write(data)
        self.digest.update(data)

    def synced(self) -> str:
        """The hash of what was written, now on the disk too: a crash could otherwise leave empty files."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self.digest.hexdigest()
