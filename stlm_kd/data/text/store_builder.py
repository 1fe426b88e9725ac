"""Building a token store: its documents tokenised into a folder that appears when it is complete."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stlm_kd.activity import doing
from stlm_kd.artifacts.atomic import in_the_way, remove, write_json
from stlm_kd.artifacts.hashing import remember, sealed
from stlm_kd.data.text.marked import Text
from stlm_kd.data.text.store_files import read_manifest
from stlm_kd.data.text.store_writer import PROGRESS, StoreWriter, Written
from stlm_kd.data.text.tokenising import Documents, Encoder, encoded
from stlm_kd.data.token_store import FORMAT_VERSION, Manifest, TokenStore, note_ends_inside
from stlm_kd.data.tokenizers import document_ends, encoding_errors
from stlm_kd.errors import DataError, MissingResourceError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHARD_IDS = 1 << 28
"""A file of ids ends with the document that reaches so many."""

_MB = 10**6


def build_store(
    texts: Iterable[Text],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    place: str = "text",
    marked: bool = False,
    workers: int | None = None,
    most_tokens: int | None = None,
    partial: Path | None = None,
    expected_bytes: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> TokenStore:
    """Tokenise texts into a new folder, which appears when it is complete.

    Texts are streamed, about a million characters at a time. A special token in a text becomes its id, as
    everywhere in ``transformers``; a note that begins with ``place`` reports how many start and end tokens
    occur within documents. The files are the same for any number of workers, and after an interruption.

    Args:
        texts: The texts.
        tokenizer: The tokenizer.
        folder: The new folder.
        place: The texts' name in messages.
        marked: Whether they are ``MarkedText``s.
        workers: Number of processes; None: by the cores and the length of the text.
        most_tokens: The number of ids, at least 1, at which the store ends: the last document is cut.
        partial: A folder for what is unfinished, of which the caller holds a lock. If the build is
            interrupted, its finished files are kept, and the next build from the same texts resumes from
            them. None: one that is removed.
        expected_bytes: About the UTF-8 bytes of all texts, to tell how much time is left.
        check: Raises DataError if what was read may not be kept; called before the folder appears.

    Raises:
        DataError: There is no text, the folder exists, or as ``check``.
        MissingResourceError: Files cannot be written, or a worker died.
        ModelError: As ``document_ends``, or the tokenizer fails on a text.
    """
    encoder = _encoder(tokenizer)
    if folder.exists():
        raise DataError(f"{folder}: the folder exists already; open it, or delete it to rebuild it")
    assert most_tokens is None or most_tokens >= 1
    unfinished = partial or folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")

    def encode(batch: Sequence[Text]) -> Documents:
        with encoding_errors(tokenizer):
            return encoder(batch)

    try:
        made_of = {"format": FORMAT_VERSION, "dtype": encoder.dtype.str, "ends": [*encoder.ends]}
        with StoreWriter(
            unfinished,
            encoder,
            shard_ids=SHARD_IDS,
            most_tokens=most_tokens,
            made_of=made_of,
            place=place,
            marked=marked,
        ) as writer:
            batches = encoded(writer.unwritten(texts), encoder, encode, workers, place=place)
            _write(writer, batches, place, most_tokens, expected_bytes)
            written = writer.finish()
        _require_something(written, folder, place)
        check()
        sizes = (_vocab_size(tokenizer), encoder.ends[1])
        manifest = Manifest(FORMAT_VERSION, encoder.dtype.str, *sizes, **asdict(written))
        write_json(unfinished / "manifest.json", sealed(asdict(manifest)))
        if _put_in_place(unfinished, folder, manifest):
            remember(folder, manifest.files)
    except (DataError, ModelError):  # other text or another tokenizer will have another folder
        remove(unfinished / PROGRESS)
        raise
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        if partial is None or not (unfinished / PROGRESS).exists():
            shutil.rmtree(unfinished, ignore_errors=True)
    store = TokenStore.open(folder)
    note_ends_inside(store, tokenizer, place=place)
    return store


def _encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    ends = document_ends(tokenizer)
    dtype = np.dtype("<u2" if _vocab_size(tokenizer) <= 1 << 16 else "<u4")
    return Encoder(tokenizer.backend_tokenizer, ends, dtype, bool(tokenizer.split_special_tokens))


def _vocab_size(tokenizer: PreTrainedTokenizerFast) -> int:
    return max(tokenizer.get_vocab().values()) + 1  # ids can have gaps


def _write(
    writer: StoreWriter,
    batches: Generator[tuple[list[Text], Documents]],
    place: str,
    most_tokens: int | None,
    expected_bytes: int | None,
) -> None:
    """Write the documents until they or the room for them end, with progress in tokens or MB."""

    def done() -> int:
        return writer.done.tokens if most_tokens else writer.done.bytes // _MB

    expected = (expected_bytes or 0) // _MB or None
    unit, total = ("token", most_tokens) if most_tokens else ("MB", expected)
    with closing(batches), doing(f"tokenising {place}", unit=unit, total=total) as progress:
        progress.begin_at(done())
        for batch, documents in () if writer.is_full else batches:
            writer.write(batch, documents)
            progress.advance(done() - progress.done)
            if writer.is_full:
                break


def _require_something(written: Written, folder: Path, place: str) -> None:
    if written.documents == 0:
        raise DataError(f"{folder}: no text to tokenise")
    if written.spans == 0:
        raise DataError(
            f"{place}: nothing that the assistant says is left by the template and the limit; change one"
        )


def unwritable(folder: Path, error: OSError) -> MissingResourceError:
    """The error of a store that cannot be written."""
    fault = f"{folder}: cannot be written ({error.strerror or error}); free some space"
    return MissingResourceError(f"{in_the_way(error) or fault} or use another folder")


def _put_in_place(unfinished: Path, folder: Path, manifest: Manifest) -> bool:
    """Rename, unless another process has just built the same store; that one is kept."""
    try:
        remove(unfinished / PROGRESS)
        unfinished.rename(folder)
    except OSError:
        if not folder.exists() or read_manifest(folder, Manifest, FORMAT_VERSION)[0] != manifest:
            raise
        return False
    return True
