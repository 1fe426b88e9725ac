"""Where the relative paths of a recipe start: in the folder of the file that holds them.

==============================  ===============================================================
a recipe's file                 its folder; where nothing is there, the current folder, and one
                                line says so
a recipe from an address        its folder alone; a model's name is on the Hub unless it begins
                                with ``./`` or has two slashes
a run's ``recipe.yaml``         as they were found when the run began (``run.json``)
built-in, the command line      the current folder
==============================  ===============================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stlm_kd.data.chats import TEMPLATES
from stlm_kd.errors import RecipeFault
from stlm_kd.notes import note
from stlm_kd.recipe.schema.fields import RecipePath
from stlm_kd.recipe.yaml import Node
from stlm_kd.sharing.names import PREFIX, may_be_on_hub

DEEPSPEED = "engine.deepspeed.config"
"""The place of the file with DeepSpeed's settings."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where the relative paths of a file start.

    Attributes:
        folder: The folder.
        is_fetched: Whether the file is from an address.
        recorded: Of a run's recipe: absolute paths by ``place=text``, as ``absolute_paths`` gives them.
    """

    folder: Path
    is_fetched: bool = False
    recorded: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Named:
    """A node that names a file, a folder or a model."""

    place: str
    node: Node
    is_model: bool

    @property
    def text(self) -> str:
        assert isinstance(self.node.value, str), "only texts are found"
        return self.node.value

    @property
    def written(self) -> str:
        """The text as the recipe has it."""
        return self.text.written if isinstance(self.text, RecipePath) else self.text

    @property
    def key(self) -> str:
        """Place and text as written."""
        return f"{self.place}={self.written}"


def locate_paths(root: Node, start_of: Callable[[Node], Start | None]) -> list[RecipeFault]:
    """Replace each relative path in a tree by a ``RecipePath``, in place.

    Args:
        root: A recipe's tree.
        start_of: Where the path of a node starts; None: it stays as it is.

    Returns:
        A fault for each model's name in a fetched recipe that would be read as a folder here.
    """
    faults = []
    for named in named_in(root):
        start = start_of(named.node)
        if start is None or not _is_relative(named.text):
            continue
        on_hub = named.is_model and may_be_on_hub(named.text)
        if start.is_fetched and on_hub:
            if _exists(named.text):
                faults.append(_fault(named))
            continue
        found = start.recorded.get(named.key, str(start.folder.absolute() / named.text))
        if start.is_fetched or not _starts_here(named, found, on_hub=on_hub):
            named.node.value = RecipePath.at(found, named.text)
    return faults


def absolute_paths(root: Node) -> dict[str, str]:
    """The absolute paths of a recipe's relative ones where something is there, by ``place=text``."""
    return {
        named.key: str(Path(named.text).absolute())
        for named in named_in(root)
        if (isinstance(named.text, RecipePath) or _is_relative(named.text)) and _exists(named.text)
    }


def _starts_here(named: Named, found: str, *, on_hub: bool) -> bool:
    """Whether a path starts in the current folder; a line says so if that could surprise."""
    here = Path(named.text).absolute()
    if here == Path(found):
        return True
    if not _exists(found):
        if _exists(here):
            note(f"{named.place}: {found} does not exist; {named.text} of the current folder is read: {here}")
        return _exists(here) or on_hub
    if _exists(here) and not here.samefile(found):
        note(f"{named.place}: {named.text} is {found}; earlier releases read {here}")
    return False


def _exists(path: str | Path) -> bool:
    """Whether something is there, as far as it can be seen."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _fault(named: Named) -> RecipeFault:
    message = (
        f"{named.text!r} found, which a recipe from elsewhere has on the Hub, but in the current folder is a "
        f"folder of this name; use another current folder, or give {named.place}=./{named.text} on the "
        "command line to read that"
    )
    return RecipeFault(named.place, message, named.node.line)


def _is_relative(text: str) -> bool:
    return bool(text) and not text.startswith(("/", "~", PREFIX)) and "$" not in text


def named_in(root: Node, prefix: str = "") -> Iterator[Named]:
    """All that names a file, a folder or a model in a recipe and in its teachers' recipes."""
    for part in ("train", "validation"):
        sources = _get(root, "data", part)
        listed = sources.value if sources is not None and isinstance(sources.value, list) else [sources]
        for i, source in enumerate(listed):
            yield from _texts(f"{prefix}data.{part}[{i}].path", _inner(source, "path"))
            chat = _inner(_get(source, "chat"), "template")
            if chat is not None and chat.value not in TEMPLATES:
                yield from _texts(f"{prefix}data.{part}[{i}].chat.template", chat, is_model=True)
    for key in ("model", "tokenizer"):
        yield from _texts(f"{prefix}student.{key}", _get(root, "student", key), is_model=True)
    yield from _texts(f"{prefix}{DEEPSPEED}", _get(root, *DEEPSPEED.split(".")))
    teachers = _get(root, "teachers")
    for i, teacher in enumerate(
        teachers.value if teachers is not None and isinstance(teachers.value, list) else []
    ):
        place = f"{prefix}teachers[{i}]"
        yield from _texts(f"{place}.model", _get(teacher, "model"), is_model=True)
        cache = _inner(_get(teacher, "cache"), "path")
        if cache is not None and cache.value != "auto":
            yield from _texts(f"{place}.cache.path", cache)
        recipe = _get(teacher, "recipe")
        if recipe is not None:
            yield from named_in(recipe, f"{place}.recipe.")


def _get(node: Node | None, *keys: str) -> Node | None:
    for key in keys:
        node = node.value.get(key) if node is not None and isinstance(node.value, dict) else None
    return node


def _inner(node: Node | None, key: str) -> Node | None:
    """The node of a mapping's key, or the node of the text that stands for such a mapping."""
    return _get(node, key) if node is not None and isinstance(node.value, dict) else node


def _texts(place: str, node: Node | None, *, is_model: bool = False) -> Iterator[Named]:
    if node is not None and isinstance(node.value, str) and "://" not in node.value:
        yield Named(place, node, is_model)
