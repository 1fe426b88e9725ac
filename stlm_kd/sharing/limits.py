"""What may be in a recipe's folder from elsewhere: names, numbers and sizes, checked before a download."""

from __future__ import annotations

import codecs
import gzip
import re
import unicodedata
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stlm_kd.errors import RecipeError, RecipeFault, printable

KB, MB = 1024, 1024**2
MAX_YAML, MAX_DATA = 256 * KB, 10 * MB
MAX_FILES, MAX_BYTES = 200, 128 * MB
MAX_LISTED = 10_000
"""Maximum number of entries of a repository, including those that are not fetched."""

FOLDER = "stlm-kd"
"""Holds the recipe's files in a repository that is that of a model as well."""

SIGNATURE = "recipe.sig"
_NAMED = {"recipe.lock": 2 * MB, "results.json": 64 * MB, "README.md": MB, SIGNATURE: MB}
_DATA = re.compile(r"data/([\w.-]+/)*[\w.-]+\.(txt|jsonl|ndjson|csv|tsv)(\.gz)?", re.ASCII)
_PORTABLE = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_MAX_FAULTS = 20
_BIDIRECTIONAL = re.compile("[\u202a-\u202e\u2066-\u2069]")
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a repository's listing.

    Attributes:
        path: Relative, with ``/``.
        size: In bytes; None if the listing does not say it.
        hashed: ``sha256:HEX`` or ``git:HEX`` of its content, as the listing states it.
        is_file: Not a link, a submodule or the like.
    """

    path: str
    size: int | None
    hashed: str
    is_file: bool = True


def checked_listing(entries: Iterable[Entry], origin: str) -> list[Entry]:
    """The entries to fetch, by name; all others are left where they are.

    Fetched are ``recipe.yaml`` and other ``.yaml`` files, ``recipe.lock``, ``results.json``, ``README.md``,
    ``recipe.sig``, and text and tables in ``data/``. A listing with a name that is dangerous on any system is
    refused whole.

    Raises:
        RecipeError: Names, numbers or sizes beyond the limits; holds all faults, up to 20.
    """
    faults: list[RecipeFault] = []
    wanted: list[Entry] = []
    spelt: dict[str, tuple[str, bool]] = {}
    for count, entry in enumerate(entries, start=1):
        if count > MAX_LISTED:
            faults.append(RecipeFault("", f"more than {MAX_LISTED:,} files; not the folder of a recipe"))
            break
        message = _name_fault(entry.path) or twin(entry.path, spelt)
        limit = size_limit(entry.path)
        if message is None and limit is not None:
            message = _content_fault(entry, limit)
            wanted.append(entry)
        if message is not None and len(faults) < _MAX_FAULTS:
            faults.append(RecipeFault(shown(entry.path), message))
    total = sum(entry.size or 0 for entry in wanted)
    if len(wanted) > MAX_FILES:
        faults.append(RecipeFault("", f"{len(wanted):,} files to fetch; expected at most {MAX_FILES}"))
    if total > MAX_BYTES:
        faults.append(RecipeFault("", f"{total:,} bytes to fetch; expected at most {MAX_BYTES:,}"))
    if faults:
        raise RecipeError(origin, faults)
    return sorted(wanted, key=lambda entry: entry.path)


def check_contents(folder: Path, origin: str) -> None:
    """Refuse fetched files whose content is not what their names say: UTF-8 text, compressed in ``data``.

    Raises:
        RecipeError: Binary content (such as a pickle or an archive), or data that decompress to too much.
    """
    faults = []
    budget = MAX_BYTES
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        try:
            budget -= _read_text(path, budget)
            if path.suffix == ".yaml" and (found := _BIDIRECTIONAL.search(path.read_text("utf-8"))):
                raise ValueError(
                    f"a control or invisible character ({ascii(found[0])[1:-1]}) reorders what is read"
                )
        except UnicodeDecodeError:
            message = "binary content; expected UTF-8 text, as its name says"
        except (ValueError, EOFError, OSError, zlib.error) as error:
            message = str(error)
        else:
            continue
        faults.append(RecipeFault(path.relative_to(folder).as_posix(), message))
    if faults:
        raise RecipeError(origin, faults)


def shown(text: str) -> str:
    """A name from elsewhere in ASCII, in which no two names look the same; shortened."""
    return printable(ascii(text)[1:-1], most=100)


def _read_text(path: Path, limit: int) -> int:
    """Read a file as UTF-8 text and return its decompressed size."""
    size = 0
    decoder = codecs.getincrementaldecoder("utf-8")()
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        while True:
            block = file.read(MB)
            size += len(block)
            if size > limit:
                raise ValueError(f"more than {limit:,} bytes in all when decompressed")
            if "\0" in decoder.decode(block, final=not block):
                raise ValueError("null characters; expected text, as its name says")
            if not block:
                return size


def _name_fault(path: str) -> str | None:
    """Why a name is dangerous on some system; None if it is not."""
    parts = path.split("/")
    if any(unicodedata.category(letter) in _INVISIBLE for letter in path):
        return "a control, invisible or bidirectional character in its name"
    if "\\" in path or ":" in path or path.startswith(("/", "~")):
        return "an absolute path, a drive, a colon or a backslash; expected a relative path with /"
    if not all(parts) or any(part in (".", "..") for part in parts):
        return "leaves its folder, or is no plain path"
    if any(part.endswith((".", " ")) or part.startswith(" ") or _RESERVED.fullmatch(part) for part in parts):
        return "a name that some systems reserve or change"
    if any(part.casefold() in (".git", "git~1") for part in parts):
        return "a git folder inside the folder"
    if len(parts) > 16 or any(len(part.encode()) > 255 for part in parts):
        return "a name too long or too deep"
    return None


def twin(path: str, spelt: dict[str, tuple[str, bool]]) -> str | None:
    """Whether another name, or a folder in one, is the same but for case or Unicode form."""
    parts = path.split("/")
    for depth in range(1, len(parts) + 1):
        name, is_folder = "/".join(parts[:depth]), depth < len(parts)
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        known = spelt.setdefault(folded, (name, is_folder)) if is_folder else spelt.get(folded)
        if known is not None and not (is_folder and known == (name, True)):
            return f"on some systems the same name as {shown(known[0])}"
        spelt[folded] = (name, is_folder)
    return None


def size_limit(path: str) -> int | None:
    """The maximum size of a file that is to be fetched; None for all others."""
    path = path.removeprefix(f"{FOLDER}/")
    if any(part.startswith(".") for part in path.split("/")):
        return None
    if path.endswith(".yaml"):
        return MAX_YAML
    return MAX_DATA if _DATA.fullmatch(path) else _NAMED.get(path)


def _content_fault(entry: Entry, limit: int) -> str | None:
    """Why a file that is to be fetched cannot be."""
    if not entry.is_file:
        return "a link or a repository of its own; expected a file"
    if not _PORTABLE.fullmatch(entry.path):
        return "letters beyond ASCII, or a sign other than . _ and - in its name; rename it"
    if entry.size is None or not 0 <= entry.size <= limit:
        found = "an unknown number of" if entry.size is None else f"{entry.size:,}"
        return f"{found} bytes; expected at most {limit:,}"
    return None
