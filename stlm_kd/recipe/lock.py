"""``recipe.lock``: what the names in a recipe stood for, and how that differs from what they stand for now.

The recipe is the wish, the lock the fact. Only the program writes locks: as YAML with a fact a line, in a
fixed order, so that two locks can be compared line by line.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from stlm_kd.artifacts.record import TeacherPrecision
from stlm_kd.artifacts.run_dir import LOCK_FILE as LOCK_FILE
from stlm_kd.errors import RecipeError, RecipeFault, UsageError
from stlm_kd.recipe.yaml import Plain, YamlError, dump, parse
from stlm_kd.sharing.address import HubAddress, parse_address

FORMAT: Literal[1] = 1
MAX_LOCK = 2 * 1024**2
"""Maximum number of characters of a lock, and of bytes of one that is written."""

MAX_FILES = 1000
"""Maximum number of files of an entry."""

_LONGEST = 1000
"""Maximum number of characters of a text."""

Level = Literal["content", "code", "note"]
"""``content``: other data, models or settings; ``code``: other versions of this program or its libraries;
``note``: another machine or name, reported only."""

Text = Annotated[str, Field(min_length=1, max_length=_LONGEST, pattern=r"^[^\x00-\x1f\x7f]*$")]
HubId = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,95}/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}$")
]
Revision = Annotated[
    str, Field(max_length=151, pattern=r"^[A-Za-z0-9_]([A-Za-z0-9_/+-]|\.[A-Za-z0-9_/+-])*\.?$")
]
"""A branch, tag or commit; it names a file in the Hub's cache, so it has no ``..``."""


def is_file_name(text: str) -> bool:
    """Whether a text is a path inside a folder, on every system, that a lock can state.

    >>> [is_file_name(text) for text in ("data/a.txt", "../a", "/a", "a/../b", "a\\\\b", "c:a", "a\\n", "")]
    [True, False, False, False, False, False, False, False]
    """
    path = PurePosixPath(text)
    is_inside = text == str(path) != "." and ".." not in path.parts and not path.is_absolute()
    return is_inside and text.isprintable() and not {"\\", ":"} & {*text} and len(text) <= _LONGEST


def _file_name(text: str) -> str:
    if not is_file_name(text):
        raise ValueError("expected a relative path without .. and backslashes")
    return text


def _model_address(text: str) -> str:
    try:
        address = parse_address(text)
    except UsageError:
        address = None
    if not isinstance(address, HubAddress):
        raise ValueError("expected the address of a model: hf://USER/NAME@COMMIT")
    return text


FileName = Annotated[str, AfterValidator(_file_name)]
ModelAddress = Annotated[str, AfterValidator(_model_address)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Hash = Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64}|git:[0-9a-f]{40})$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
Number = Annotated[int, Field(ge=0, lt=2**63)]
Hashes = Annotated[dict[FileName, Hash], Field(max_length=MAX_FILES)]


@dataclass(frozen=True, slots=True)
class _Facts:
    """Base of the parts of a lock: strict, without unknown keys."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True)
class Made(_Facts):
    """Who wrote the lock: the program as in ``artifacts.provenance``, and the day."""

    by: Text
    code: Text | None = None
    on: Text | None = None
    wheel: Hash | None = None
    source: Hash | None = None


@dataclass(frozen=True, slots=True)
class LockedModel(_Facts):
    """A model or tokenizer: of the Hub by commit, or a local one by its identity alone.

    Attributes:
        id: The Hub id; None for a folder.
        asked: The revision that the recipe names, such as ``main``.
        commit: What it stood for.
        identity: Hash of a folder's files, of a tokenizer, or of the cache that replaces a teacher.
        license: As its card states.
        files: Hash of each file that was read.
    """

    id: HubId | None = None
    asked: Revision | None = None
    commit: Commit | None = None
    identity: Text | None = None
    license: Text | None = None
    files: Hashes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LockedData(_Facts):
    """A source of text or examples: of the Hub by commit, or a file by its hash.

    Attributes:
        hub: The Hub id; None for files and generated text.
        path: As the recipe says; only compared, never opened.
        name: Configuration; or what is read that is neither text nor examples, with its version.
        split: Split.
        asked: The revision that the recipe names.
        commit: Commit of the data set.
        files: Hash of each file that was read.
        sha256: Of a local file, of a mirror's file that says which commit it is, or of what identifies
            generated text.
        bytes: Of generated text as UTF-8.
        license: As its card states.
    """

    hub: HubId | None = None
    path: Text | None = None
    name: Text | None = None
    split: Text | None = None
    asked: Revision | None = None
    commit: Commit | None = None
    files: Hashes = field(default_factory=dict)
    sha256: Hash | None = None
    bytes: Number | None = None
    license: Text | None = None


@dataclass(frozen=True, slots=True)
class LockedSuite(_Facts):
    """A suite's task and its data.

    Attributes:
        version: Of the task, as its library states.
        library: Name and version of the library that has the task.
        data: Commit of each data set on the Hub, by ``id[@revision]``.
        local: Of the files that were read in place of the Hub's, or of what identifies generated examples.
    """

    version: Text | None = None
    library: Text | None = None
    data: dict[Text, Commit] = field(default_factory=dict)
    local: Hash | None = None


@dataclass(frozen=True, slots=True)
class Lock(_Facts):
    """The content of ``recipe.lock``; parts are keyed by their place in the recipe (``teachers.qwen``).

    Attributes:
        recipe: Hash of the resolved recipe.
        made: Who wrote it.
        models: Models and tokenizers.
        data: Sources of text and examples, the data of counterfactual sources (``sources.wordnet``), and the
            data sets of suites (``eval.nyu-mll/glue``).
        eval: Suites by task, such as ``lm-eval:blimp``.
        seeds: Of the students.
        teacher_precision: Of the teachers for which the recipe leaves it open, as the machine decided.
        packages: Versions.
        environment: Python, platform, hardware.
        stages: Digest of each stage of a run.
        outputs: Hash of each file of a run that others may compare.
        results: Hash of results.json.
        published: Address with commit of each model folder that was published, by its path in the run.
        format: Version of this format.
    """

    recipe: Hash
    made: Made
    models: dict[Text, LockedModel] = field(default_factory=dict)
    data: dict[Text, LockedData] = field(default_factory=dict)
    eval: dict[Text, LockedSuite] = field(default_factory=dict)
    seeds: tuple[Number, ...] = ()
    teacher_precision: TeacherPrecision | None = None
    packages: dict[Text, Text] = field(default_factory=dict)
    environment: dict[Text, Text] = field(default_factory=dict)
    stages: dict[Text, Digest] = field(default_factory=dict)
    outputs: dict[FileName, Hash] = field(default_factory=dict)
    results: Hash | None = None
    published: dict[FileName, ModelAddress] = field(default_factory=dict)
    format: Literal[1] = FORMAT


@dataclass(frozen=True, slots=True)
class Drift:
    """A fact that is not as locked.

    Attributes:
        place: Dotted, as in ``models.teachers.qwen.commit``.
        locked: The locked value; None if the lock has no such entry.
        found: The value now; None if there is no such entry.
        level: How much it matters.
    """

    place: str
    locked: str | None
    found: str | None
    level: Level

    @property
    def refuses(self) -> bool:
        """Whether ``--locked`` stops for it: other content, or code that makes other stages of it."""
        return self.level == "content" or self.place.startswith("stages.")

    def __str__(self) -> str:
        locked, found = self.locked or "not in the lock", self.found or "nothing"
        return f"{self.place}: {found} found; locked: {locked}"


@cache
def _locks() -> TypeAdapter[Lock]:
    """Made on first use, since it takes long and most commands read no lock."""
    return TypeAdapter(Lock)


_MAX_FAULTS = 20
_NOTES = {"made", "environment"}
_NOTED_KEYS = {"asked", "license", "path"}
_CODE = {"packages", "stages"}
_COMPARED = (
    "recipe",
    "models",
    "data",
    "eval",
    "seeds",
    "teacher_precision",
    "stages",
    "packages",
    "made",
    "environment",
)


def read_lock(text: str, *, origin: str = LOCK_FILE) -> Lock:
    """The lock in a text.

    Raises:
        RecipeError: Not plain YAML, another format, or invalid; holds all faults, up to 20.
    """
    try:
        values = parse(text, origin=origin, largest=MAX_LOCK).plain()
    except YamlError as error:
        raise RecipeError(origin, error.faults) from error
    if isinstance(values, dict) and values.get("format") != FORMAT:
        found = ascii(values.get("format"))[:40]
        message = f"{found} found; this version reads format {FORMAT}; make the lock again: recipe lock"
        raise RecipeError(origin, [RecipeFault("format", message)])
    try:
        return _locks().validate_json(json.dumps(values))
    except ValidationError as error:
        faults = error.errors(include_url=False)[:_MAX_FAULTS]
        raise RecipeError(origin, [_readable(fault) for fault in faults]) from error


def lock_yaml(lock: Lock) -> str:
    """The lock as YAML that ``read_lock`` reads: a fixed order of parts, sorted entries, nothing unknown.

    For facts that may be odd, see ``readable``.
    """
    values = _plain(lock)
    assert isinstance(values, dict), "a lock is a mapping"
    return dump({"format": values.pop("format"), **values})


def readable(lock: Lock) -> Lock:
    """The lock with texts that ``read_lock`` accepts: control characters escaped, long ones cut.

    If it is too large, the largest lists of files of commits are left out: the commits say which they are.
    """
    found: Lock = _cleaned(lock)
    while len(lock_yaml(found).encode()) > MAX_LOCK:
        listed = [
            (len(entry.files), part, place)
            for part in ("models", "data")
            for place, entry in getattr(found, part).items()
            if entry.commit is not None and entry.files
        ]
        if not listed:
            break
        _, part, place = max(listed)
        entries = getattr(found, part)
        changed: Any = {part: {**entries, place: replace(entries[place], files={})}}
        found = replace(found, **changed)
    return found


def _cleaned(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{row.name: _cleaned(getattr(value, row.name)) for row in fields(value)})
    if isinstance(value, Mapping):
        return {_cleaned(key): _cleaned(one) for key, one in value.items() if key and one != ""}
    if not isinstance(value, str):
        return value
    text = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in value)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 20]}...{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return text or None


def drift(lock: Lock, facts: Lock) -> list[Drift]:
    """The differences between a lock and the facts of now, the most serious ones first.

    The lock must state all that the facts state. What the facts do not state is unknown, not different: facts
    that were found without reading data lack some. Hashes of files at a commit are compared where both state
    them. ``outputs``, ``results`` and ``published`` are claims of a run and are not compared.
    """
    parts = (_differences(part, getattr(lock, part), getattr(facts, part)) for part in _COMPARED)
    order: tuple[Level, ...] = ("content", "code", "note")
    return sorted(itertools.chain.from_iterable(parts), key=lambda one: order.index(one.level))


def _differences(place: str, locked: Any, found: Any) -> Iterator[Drift]:
    if is_dataclass(locked) and is_dataclass(found):
        for row in fields(locked):
            one, other = getattr(locked, row.name), getattr(found, row.name)
            if row.name == "files" and getattr(locked, "commit", None) is not None:
                other = {name: other[name] for name in other if name in one}
                one = {name: one[name] for name in other}
            if row.name == "sha256" and one is None and getattr(locked, "commit", None) is not None:
                continue  # locked from the Hub, found in a mirror
            yield from _differences(f"{place}.{row.name}", one, other)
    elif isinstance(found, Mapping):
        for key in sorted({*locked, *found} if found else ()):
            here, one, other = f"{place}.{key}", locked.get(key), found.get(key)
            if one is not None and other is not None:
                yield from _differences(here, one, other)
            else:
                yield Drift(here, _words(one), _words(other), _level(here))
    elif locked != found and found is not None and found != ():
        is_older = locked is None and place == "teacher_precision"  # which earlier versions do not lock
        yield Drift(place, _words(locked), _words(found), "code" if is_older else _level(place))


def _level(place: str) -> Level:
    part, key = place.partition(".")[0], place.rpartition(".")[2]
    if part in _NOTES or key in _NOTED_KEYS:
        return "note"
    return "code" if part in _CODE or key == "library" else "content"


def _words(value: object) -> str | None:
    """A value in a message: an entry by its commit, hash or identity; None for no value."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or None
    if not is_dataclass(value):
        return None if value is None else str(value)
    names = ("commit", "sha256", "identity", "version")
    known = [getattr(value, name, None) for name in names]
    return next((str(one) for one in known if one is not None), "there")


def _plain(value: Any) -> Plain:
    if is_dataclass(value):
        given = {row.name: getattr(value, row.name) for row in fields(value)}
        return {key: _plain(one) for key, one in given.items() if one is not None and one not in ({}, ())}
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    assert isinstance(value, (bool, int, str)), f"{value!r} is not a fact of a lock"
    return value


def _readable(fault: Any) -> RecipeFault:
    place = ascii(".".join(map(str, fault["loc"])))[1:-1]
    if fault["type"] == "missing":
        return RecipeFault(place, "is missing; make the lock again: recipe lock")
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return RecipeFault(place, "not a key of a lock")
    found = ascii(fault["input"])
    expected = fault["msg"].replace("Input should be ", "expected ").replace("String should ", "expected to ")
    expected = expected.removeprefix("Value error, ")
    return RecipeFault(place, f"{found if len(found) <= 60 else f'{found[:57]}...'} found; {expected}")
