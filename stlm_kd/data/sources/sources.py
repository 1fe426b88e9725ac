"""Sources of text: files, folders, data sets of the Hugging Face Hub, and the built-in generator.

A source names one of them and how to read it. ``documents`` streams its texts, so a corpus of any size needs
little memory. ``fingerprint`` is a hash of the content, which addresses everything derived from it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stlm_kd.artifacts.hashing import known_sha256
from stlm_kd.data.sources import hub
from stlm_kd.data.sources.document_files import Documents, Separator, read
from stlm_kd.data.sources.files import expanded, kind_of, text_files
from stlm_kd.data.sources.tables import column_texts
from stlm_kd.data.synthetic import VERSION
from stlm_kd.errors import DataError, MissingResourceError
from stlm_kd.notes import note

SAMPLE_SIZE = 4_000_000
"""Default size of a sample, in bytes of text."""

SAMPLE_SPLITS = ("train", "validation")
_SAMPLE_SEED = 0


@dataclass(frozen=True, slots=True)
class Source:
    """A source of text; exactly one of ``path``, ``hub`` and ``sample`` is given.

    Attributes:
        path: A .txt, .jsonl (each also .gz or .xz) or .parquet file, or a folder of such files, which is
            searched recursively and read in order of names. ``~`` and ``$VARIABLES`` are expanded.
        hub: The id of a data set on the Hugging Face Hub.
        sample: A split of the built-in generator of synthetic English: ``train`` or ``validation``.
        name: Hub: the configuration, if the data set has several.
        split: Hub: the split.
        revision: Hub: a branch, tag or commit.
        column: JSON, Parquet, Hub: the field that holds the text.
        documents: Plain text: how a file is cut into documents (``stlm_kd.data.sources.document_files.cut``).
        size: Sample: bytes of text.
        domain: A name for this kind of text, in reports.
        weight: How often a row of this text occurs in an epoch (``stlm_kd.data.batches``).
    """

    path: str | None = None
    hub: str | None = None
    sample: str | None = None
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    column: str = "text"
    documents: Documents = "article"
    size: int = SAMPLE_SIZE
    domain: str = "default"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.path, self.hub, self.sample)) != 1:
            raise DataError(f"{self.described()}: give exactly one of path, hub and sample")
        if self.sample is not None and self.sample not in SAMPLE_SPLITS:
            raise DataError(
                f"{self.described()}: not a split of the sample; expected one of: {', '.join(SAMPLE_SPLITS)}"
            )
        if self.size <= 0:
            raise DataError(
                f"{self.described()}: size {self.size} found, expected a positive number of bytes"
            )
        if isinstance(self.documents, Separator) and not self.documents.text:
            raise DataError(f"{self.described()}: an empty separator found; expected text between documents")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise DataError(f"{self.described()}: weight {self.weight} found, expected 0 or more")

    def described(self) -> str:
        """The source's name in messages."""
        if self.sample is not None:
            return f"sample {self.sample}"
        if self.hub is not None:
            return f"{self.hub}, split {self.split}"
        return self.path or "a source"


def documents(source: Source) -> Iterator[str]:
    """Stream the documents of a source, none of them blank.

    Raises:
        MissingResourceError: Not found; or the Hub cannot be reached and its cache lacks the data set.
        DataError: Malformed content, a missing column, or no text at all.
    """
    found = False
    for text in _documents(source):
        found = True
        yield text
    if not found:
        raise DataError(f"{source.described()}: no text in it; every document is empty or blank")


def _documents(source: Source) -> Iterator[str]:
    if source.sample is not None:
        from stlm_kd.data.synthetic import sample_documents

        yield from sample_documents(source.sample, size=source.size, seed=_SAMPLE_SEED)
    elif source.hub is not None:
        rows = hub.rows(
            source.hub,
            name=source.name,
            split=source.split,
            columns=[source.column],
            revision=source.revision,
        )
        yield from column_texts(rows, source.column)
    elif source.path is not None:
        paths = text_files(expanded(source.path))
        found = 0
        for path in paths:
            for text in read(path, column=source.column, documents=source.documents):
                found += 1
                yield text
        texts = sum(kind_of(path) == "text" for path in paths)
        if isinstance(source.documents, Separator) and texts == len(paths) >= found:
            note(
                f"{source.path}: the separator {source.documents.text!r} does not occur: {texts} files, "
                f"{found} documents; check its spelling"
            )


def fingerprint(source: Source) -> str:
    """A hash (hex) of a source's content, so a moved file keeps it.

    Files are hashed with the options of reading them; a Hub data set by its id, split and commit; the sample
    by its generator's version and arguments. Domain and weight are not included.

    Raises:
        MissingResourceError: As ``documents``.
        DataError: As ``documents``, for faults that are visible without reading.
    """
    if source.sample is not None:
        facts = sample_facts(source.sample, source.size, _SAMPLE_SEED)
    elif source.hub is not None:
        version = hub.version(source.hub, name=source.name, revision=source.revision)
        facts = ["hub", source.hub, source.name, source.split, source.column, version]
    else:
        assert source.path is not None
        how = source.documents
        cut = ["separator", how.text] if isinstance(how, Separator) else how
        facts = [*file_facts(text_files(expanded(source.path))), source.column, cut]
    return hash_of(facts)


def sample_facts(*arguments: object) -> list[object]:
    """The identity of generated text: the generator's arguments and version."""
    return ["sample", *arguments, VERSION]


def file_facts(paths: Sequence[Path]) -> list[object]:
    """The identity of files: their content, and their kind, which determines how they are read.

    Raises:
        MissingResourceError: A file cannot be read.
    """
    return ["files", [["".join(path.suffixes[-2:]).lower(), _file_hash(path)] for path in paths]]


def hash_of(facts: Sequence[object]) -> str:
    """A hash (hex) of facts that JSON can represent."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    try:
        return known_sha256(path)
    except OSError as error:
        raise MissingResourceError(f"{path}: cannot be read ({error.strerror or error})") from error
