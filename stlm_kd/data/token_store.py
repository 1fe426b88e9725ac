"""A corpus as token ids on disk: tokenised once, then read through a memory map.

A document is ``[start] + ids of its text + [end]``, with the start and end of ``document_ends``, such as bos
and eos, or cls and sep. The folder holds

- ``tokens.bin``: the concatenated ids of all documents, little-endian uint16, or uint32 for a vocabulary of
  more than 65,536;
- ``offsets.bin``: int64, the begin of each document, and the end of the last;
- ``bytes.bin``: int64, the UTF-8 bytes of each document's text;
- ``hashes.bin``: uint64, a hash of each document's text (``stlm_kd.data.overlap.text_hash``);
- ``manifest.json``: the expected contents of these files, and their hashes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stlm_kd.activity import doing
from stlm_kd.artifacts.atomic import in_the_way, open_plain, read_json, reading, write_json
from stlm_kd.artifacts.hashing import first_change, hashes_of, recorded_files, sealed, unsealed
from stlm_kd.data.overlap import text_hash
from stlm_kd.data.tokenizers import document_ends, encoding_errors
from stlm_kd.errors import DataError, MissingResourceError
from stlm_kd.notes import note

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT_VERSION = 3
"""Increased when the same text and tokenizer would give different files. 3: with hashes."""

_BATCH_CHARACTERS = 1 << 20
_BATCH_DOCUMENTS = 2048
_LENGTHS = np.dtype("<i8")
_HASHES = np.dtype("<u8")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The expected contents of a store's files; ``dtype`` is that of the ids.

    ``ends_inside`` is the number of start and end tokens within documents, because the text contains them;
    ``files`` the SHA-256 of each file.
    """

    format_version: int
    dtype: str
    vocab_size: int
    eos_id: int
    documents: int
    tokens: int
    bytes: int
    ends_inside: int
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TokenStore:
    """Documents as ids, memory-mapped read-only.

    ``tokens``, (tokens,), are the ids of all documents one after the other; ``offsets``, (documents + 1,),
    the begin of each document, and the end of the last; ``document_bytes`` the UTF-8 bytes of each document's
    text, and ``document_hashes`` its hash, (documents,) each. ``vocab_size`` is above every id; ``eos_id``
    (eos or sep) ends every document; ``ends_inside`` as in ``Manifest``.
    """

    folder: Path
    tokens: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]
    document_bytes: npt.NDArray[np.int64]
    document_hashes: npt.NDArray[np.uint64]
    vocab_size: int
    eos_id: int
    ends_inside: int

    @property
    def start_id(self) -> int:
        """The id that begins every document."""
        return int(self.tokens[0])

    @property
    def num_documents(self) -> int:
        """Number of documents in the store."""
        return len(self.document_bytes)

    @property
    def num_tokens(self) -> int:
        """Number of ids in the store, start and end tokens included."""
        return len(self.tokens)

    @property
    def num_bytes(self) -> int:
        """Number of UTF-8 bytes of the text."""
        return int(self.document_bytes.sum())

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """The store in a folder; DataError if there is none, of another version, or with changed files."""
        manifest = _read_manifest(folder)
        tokens = _mapped(folder / "tokens.bin", manifest.dtype, manifest.tokens)
        offsets = _mapped(folder / "offsets.bin", _LENGTHS, manifest.documents + 1)
        document_bytes = _mapped(folder / "bytes.bin", _LENGTHS, manifest.documents)
        hashes = _mapped(folder / "hashes.bin", _HASHES, manifest.documents)
        if change := first_change(folder, manifest.files):
            raise _broken(folder, f"{change} since the text was tokenised")
        sizes = (manifest.vocab_size, manifest.eos_id, manifest.ends_inside)
        return cls(folder, tokens, offsets, document_bytes, hashes, *sizes)

    def document(self, index: int) -> npt.NDArray[np.integer]:
        """The ids of one document, its start and end included."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def joined(
    stores: Sequence[TokenStore], *, most: int = 10_000_000
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """About the first ``most`` ids of all stores, the same fraction of each; and the documents' boundaries.

    These are the begin of each document, and the end of the last.
    """
    share = min(1.0, most / sum(store.num_tokens for store in stores))
    ids, offsets, before = [], [np.zeros(1, np.int64)], 0
    for store in stores:
        kept = round(share * store.num_tokens)
        ids.append(store.tokens[:kept].astype(np.int64))
        ends = store.offsets[1:]
        offsets.append(before + np.append(ends[ends < kept], kept))
        before += kept
    return np.concatenate(ids), np.concatenate(offsets)


def build_store(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, folder: Path, *, place: str = "text"
) -> TokenStore:
    """Tokenise texts into a new folder, which appears when it is complete.

    Texts are streamed, about a million characters at a time. A special token in a text becomes its id, as
    everywhere in ``transformers``; a note that begins with ``place`` reports how many start and end tokens
    occur within documents. Raises DataError without text, or if the folder exists; MissingResourceError if
    files cannot be written; errors of the tokenizer as ``document_ends``.
    """
    ends = document_ends(tokenizer)
    if folder.exists():
        raise DataError(f"{folder}: the folder exists already; open it, or delete it to rebuild it")
    unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        unfinished.mkdir(parents=True)
        with doing(f"tokenising {place}"):
            manifest = _write(texts, tokenizer, ends, unfinished)
        if manifest.documents == 0:
            raise DataError(f"{folder}: no text to tokenise")
        manifest = replace(manifest, files=hashes_of(unfinished, unfinished.iterdir()))
        write_json(unfinished / "manifest.json", sealed(asdict(manifest)))
        _put_in_place(unfinished, folder, manifest)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    store = TokenStore.open(folder)
    note_ends_inside(store, tokenizer, place=place)
    return store


def unwritable(folder: Path, error: OSError) -> MissingResourceError:
    """The error of a store that cannot be written."""
    fault = f"{folder}: cannot be written ({error.strerror or error}); free some space"
    return MissingResourceError(f"{in_the_way(error) or fault} or use another folder")


def note_ends_inside(store: TokenStore, tokenizer: PreTrainedTokenizerFast, *, place: str) -> None:
    """Note start and end tokens within documents: the text may contain separators."""
    for message in ends_inside(store, tokenizer, place=place):
        note(message)


def ends_inside(store: TokenStore, tokenizer: PreTrainedTokenizerFast, *, place: str) -> list[str]:
    """A message about start and end tokens within documents; empty if there are none."""
    if not store.ends_inside:
        return []
    ids = dict.fromkeys((store.eos_id, store.start_id))
    names = [str(token) for token in tokenizer.convert_ids_to_tokens([*ids])]
    separator = json.dumps(names[0], ensure_ascii=False)
    return [
        f"{place}: {store.ends_inside:,} tokens {' or '.join(names)} found within its "
        f"{store.num_documents:,} documents; if they separate documents, set "
        f"documents: {{separator: {separator}}} (plain text only), or split the texts there"
    ]


def _put_in_place(unfinished: Path, folder: Path, manifest: Manifest) -> None:
    """Rename, unless another process has just built the same store; that one is kept."""
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.exists() or _read_manifest(folder) != manifest:
            raise


def _write(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, ends: tuple[int, int], folder: Path
) -> Manifest:
    vocab_size = max(tokenizer.get_vocab().values()) + 1  # ids can have gaps
    dtype: np.dtype[np.unsignedinteger[Any]] = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
    documents = tokens = num_bytes = ends_inside = 0
    with (
        (folder / "tokens.bin").open("wb") as tokens_file,
        (folder / "offsets.bin").open("wb") as offsets_file,
        (folder / "bytes.bin").open("wb") as bytes_file,
        (folder / "hashes.bin").open("wb") as hashes_file,
    ):
        offsets_file.write(np.zeros(1, _LENGTHS).tobytes())
        for batch in _batches(texts):
            rows = _tokenised(batch, tokenizer, ends, dtype)
            sizes = np.array([len(text.encode()) for text in batch], _LENGTHS)
            offsets = tokens + np.cumsum([len(row) for row in rows], dtype=_LENGTHS)
            tokens_file.writelines(row.tobytes() for row in rows)
            offsets_file.write(offsets.astype(_LENGTHS).tobytes())
            bytes_file.write(sizes.tobytes())
            hashes_file.write(np.array([text_hash(text) for text in batch], _HASHES).tobytes())
            ends_inside += sum(int((row[1:-1] == end).sum()) for row in rows for end in {*ends})
            documents += len(rows)
            tokens = int(offsets[-1])
            num_bytes += int(sizes.sum())
        _flush(tokens_file, offsets_file, bytes_file, hashes_file)
    counts = (documents, tokens, num_bytes, ends_inside)
    return Manifest(FORMAT_VERSION, dtype.str, vocab_size, ends[1], *counts, files={})


def _tokenised(
    texts: list[str],
    tokenizer: PreTrainedTokenizerFast,
    ends: tuple[int, int],
    dtype: np.dtype[np.unsignedinteger[Any]],
) -> list[npt.NDArray[np.unsignedinteger[Any]]]:
    """Each text's document: ``tokenizer(text, add_special_tokens=False)`` between start and end.

    Calls the ``tokenizers`` library directly, which is faster because it skips the tokens' offsets.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(tokenizer.split_special_tokens)
    documents = []
    with encoding_errors(tokenizer):
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    for encoding in encodings:
        ids = encoding.ids
        document = np.empty(len(ids) + 2, dtype)
        document[0], document[1:-1], document[-1] = ends[0], ids, ends[1]
        documents.append(document)
    return documents


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _flush(*files: IO[bytes]) -> None:
    """Flush to disk before the rename; otherwise a crash could leave a folder of empty files."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())


def _read_manifest(folder: Path) -> Manifest:
    path = folder / "manifest.json"
    try:
        with reading(path):
            content = read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{folder}: no token store found (no manifest.json); build it from the text"
        ) from error
    except OSError as error:
        raise _broken(folder, f"manifest.json cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise _broken(folder, f"manifest.json is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise _broken(folder, f"manifest.json is not of format version {FORMAT_VERSION}")
    try:
        manifest = Manifest(**unsealed(content))
        recorded_files(manifest.files)
    except (ValueError, TypeError) as error:
        raise _broken(folder, f"manifest.json: {error}") from error
    if not manifest.files:
        raise _broken(folder, "manifest.json names no files")
    return manifest


def _mapped(path: Path, dtype: npt.DTypeLike, length: int) -> npt.NDArray[Any]:
    expected = length * np.dtype(dtype).itemsize
    try:
        with reading(path), open_plain(path) as file:
            found = os.fstat(file.fileno()).st_size
    except OSError:
        found = 0
    if found != expected:
        raise _broken(path.parent, f"{path.name} has {found:,} bytes, expected {expected:,}")
    # A plain array over the map: indexing numpy's memmap class is slower for small slices.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(length,)))


def _broken(folder: Path, what: str) -> DataError:
    return DataError(f"{folder}: {what}; delete the folder to rebuild it")
