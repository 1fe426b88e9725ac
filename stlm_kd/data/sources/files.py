"""Data files: finding them, their kinds, and their lines."""

from __future__ import annotations

import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Annotated, Any

from annotated_types import Ge, MinLen

from stlm_kd.artifacts.atomic import read_json
from stlm_kd.artifacts.hashing import known_sha256, recorded_files
from stlm_kd.data.sources.formats import BY_SUFFIX, Format
from stlm_kd.errors import DataError, MissingResourceError, StlmKdError, first_line, foreign_errors
from stlm_kd.sharing.names import expanded, unset_variables

MAX_CHARACTERS = 1 << 24
"""Maximum length of a line and of a document of a text file, which are read into memory: 16 Mi characters."""

Text = Annotated[str, MinLen(1)]
Count = Annotated[int, Ge(1)]

Kinds = Sequence[Sequence[str]]
"""Groups of file name suffixes; of a folder, the files of the first group that it has any of."""

TEXTS: Kinds = ((".txt", ".jsonl", ".ndjson", ".parquet"), (".tar",), (".csv", ".tsv", ".json", ".arrow"))
"""Files of text; beside text, those of the last group often describe it."""

ROWS: Kinds = ((".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"), (".json", ".arrow"))
"""Files of rows with named columns."""


def _open_zst(path: Path | IO[bytes], mode: str, **text: Any) -> Any:
    from pyarrow import input_stream

    source = str(path) if isinstance(path, Path) else path
    stream = io.BufferedReader(input_stream(source, compression="zstd"))
    return stream if mode == "rb" else io.TextIOWrapper(stream, **text)


_COMPRESSED = (b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
"""How the content of gz, xz and zst begins."""

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".zst": _open_zst}


def text_files(path: Path, *, kinds: Kinds = TEXTS) -> list[Path]:
    """The file itself, or all files of these kinds below a folder, sorted by name, without hidden ones.

    Of a data set that the ``datasets`` library saved (``save_to_disk``), the files that hold its rows. Raises
    MissingResourceError if nothing is there; DataError for a folder without files, or an unknown kind.
    """
    with read_errors(str(path)):
        exists = path.exists()
    if not exists:
        raise MissingResourceError(_not_there(path))
    if what := _not_on_disk(path):
        raise DataError(what)
    if path.is_file():
        if _suffix(path) not in chain(*kinds):
            raise DataError(f"{path}: unknown kind of file; known: {_listed(kinds)}")
        return [path]
    if saved := _saved_files(path):
        return saved
    inside = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    shown = [file for file in inside if not any(part.startswith(".") for part in file.parts)]
    if not shown:
        raise DataError(
            f"{path}: an empty folder (hidden files do not count); put data there or give another folder"
        )
    for group in kinds:
        if found := [file for file in shown if _suffix(file) in group]:
            return [path / file for file in sorted(found, key=lambda file: file.as_posix())]
    raise DataError(f"{path}: {len(shown)} files, but none of a known kind; known: {_listed(kinds)}")


def _saved_files(folder: Path) -> list[Path]:
    """The files with the rows of a saved data set, in order; [] if the folder is none."""
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(path.parent.name for path in folder.glob("*/state.json")))
        raise DataError(
            f"{folder}: a saved data set with the splits {splits}; give the folder of one of them"
        )
    if not (folder / "state.json").is_file() or not (folder / "dataset_info.json").is_file():
        return []
    try:
        names = [file["filename"] for file in read_json(folder / "state.json")["_data_files"]]
        recorded_files(dict.fromkeys(names, ""))
        if other := [name for name in names if not name.endswith(".arrow")]:
            raise ValueError(f"{other[0][:40]!r}: no name of an .arrow file")
        return [folder / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder / 'state.json'}: not of a saved data set ({error!r}); save it again"
        ) from error


def format_of(path: Path) -> Format:
    """The format of a file, by its name."""
    return BY_SUFFIX[_suffix(path)]


def kind_of(path: Path) -> str:
    """The name of a file's format: ``text``, ``json lines``, ``csv``, and so on."""
    return format_of(path).name


def has_known_suffix(path: Path) -> bool:
    """Whether a file's name tells a known format."""
    return _suffix(path) in BY_SUFFIX


def is_compressed(path: Path) -> bool:
    """Whether a file is compressed as a whole, as its name tells."""
    return path.suffix.lower() in _OPENERS


def _suffix(path: Path) -> str:
    """The suffix that tells the kind, without that of the compression; "" if there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
        if suffixes and suffixes[-1] in BY_SUFFIX and BY_SUFFIX[suffixes[-1]].compresses:
            return ""
    return suffixes[-1] if suffixes else ""


def _listed(kinds: Kinds) -> str:
    """As in "txt, jsonl and ndjson (each also .gz, .xz or .zst), parquet and arrow"."""
    ends = [*chain(*kinds)]
    *first, last = (end[1:] for end in ends if not BY_SUFFIX[end].compresses)
    inside = " and ".join(end[1:] for end in ends if BY_SUFFIX[end].compresses)
    return f"{', '.join(first)} and {last} (each also .gz, .xz or .zst), {inside}"


def file_facts(paths: Sequence[Path]) -> list[object]:
    """The identity of files: their content, and their kind, which determines how they are read."""
    facts = []
    for path in paths:
        with read_errors(str(path)):
            facts.append(["".join(path.suffixes[-2:]).lower(), known_sha256(path)])
    return ["files", facts]


@contextmanager
def read_errors(place: str) -> Iterator[None]:
    """Raise system errors as MissingResourceError, and those of libraries that read data as DataError."""

    def as_ours(error: BaseException) -> StlmKdError:
        if isinstance(error, OSError):
            return MissingResourceError(f"{place}: cannot be read ({error.strerror or first_line(error)})")
        return DataError(f"{place}: malformed ({first_line(error)}); correct it or fetch it again")

    with foreign_errors(as_ours):
        yield


def lines_of(path: Path, *, longest: int | None = None) -> Iterator[str]:
    """Stream the lines of a text file, decompressed, with line ends (as ``\\n``).

    Raises DataError for not UTF-8, corrupt content, or a line of more than ``longest`` characters (default:
    ``MAX_CHARACTERS``); MissingResourceError if the file cannot be read.
    """
    opener = _OPENERS.get(path.suffix.lower(), open)
    longest = MAX_CHARACTERS if longest is None else longest
    number = 0
    with _content_errors(path, lambda: f" after {number} complete lines"):
        try:
            with opener(path, "rt", encoding="utf-8-sig") as file:
                while line := file.readline(longest + 1):
                    number += 1
                    if len(line) > longest:
                        raise DataError(
                            f"{path}:{number}: a line of more than {longest:,} characters; split it"
                        )
                    yield line
        except UnicodeDecodeError as error:
            number = _whole_lines(path, opener)
            if opener is not open:
                _read_through(path, opener)  # verifies the checksum: corrupt content or another encoding
            with opener(path, "rb") as file:
                is_compressed = file.read(6).startswith(_COMPRESSED)
            cure = "it is compressed, so decompress it" if is_compressed else "convert the file to UTF-8"
            raise DataError(f"{path}:{number + 1}: not UTF-8 ({error.reason}); {cure}") from error


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed; errors within the block as those of ``lines_of``."""
    opener = _OPENERS.get(path.suffix.lower(), open)
    with _content_errors(path, lambda: ""), opener(path, "rb") as file:
        yield file


def decompressed(stream: IO[bytes], path: Path) -> IO[bytes]:
    """The bytes of a stream that is compressed as the name of a file tells; errors as the library's."""
    found: IO[bytes] = _OPENERS[path.suffix.lower()](stream, "rb")
    return found


@contextmanager
def _content_errors(path: Path, where: Callable[[], str]) -> Iterator[None]:
    """Raise corrupt content as DataError, and other system errors as MissingResourceError."""
    try:
        yield
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise MissingResourceError(f"{path}: cannot be read ({error.strerror or error})") from error
        raise DataError(f"{path}: corrupt or truncated{where()} ({error}); fetch it again") from error


def _whole_lines(path: Path, opener: Callable[..., IO[str]]) -> int:
    """Number of lines before the first one that is not UTF-8; Python's error comes up to a buffer early."""
    number = 0
    with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape") as file:
        while (piece := file.readline(MAX_CHARACTERS)) and not re.search("[\udc80-\udcff]", piece):
            number += piece.endswith("\n")
    return number


def _read_through(path: Path, opener: Callable[..., IO[str]]) -> None:
    with opener(path, "rb") as file:
        while file.read(MAX_CHARACTERS):
            pass


def require_path(path: str) -> None:
    """Raise MissingResourceError if no file or folder is there, or one of its path's variables is not set."""
    if unset := unset_variables(path):
        raise MissingResourceError(not_set(unset))
    if not expanded(path).exists():
        raise MissingResourceError(_not_there(path))
    if what := _not_on_disk(expanded(path)):
        raise MissingResourceError(what)


def _not_on_disk(path: Path) -> str | None:
    """What is wrong with a path that exists and is no file or folder of a disk, whose reading may not end."""
    real = path.resolve()
    is_made = real.is_relative_to("/proc") or real.is_relative_to("/sys")
    if not is_made and (real.is_file() or real.is_dir()):
        return None
    found = "made by the system" if is_made else "a pipe or a device"
    return f"{path}: {found}; give a file or a folder, which can be read again"


def not_set(variables: Sequence[str]) -> str:
    """The message on variables of recipes that are not set."""
    listed = ", ".join(f"${name}" for name in variables)
    return f"{listed} not set; set it to the folder that the recipe's header describes, or give full paths"


def _not_there(path: str | Path) -> str:
    return f"{path}: no such file or folder (seen from {Path.cwd()}); give one that exists"
