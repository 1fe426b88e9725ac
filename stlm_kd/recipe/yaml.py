"""Parse YAML into a tree whose nodes record their origin, and write it; only plain data is accepted.

Keys and scalars follow YAML 1.2's core schema: ``on`` and ``no`` are text, ``3e-4`` is a number. Tags,
anchors, aliases and duplicate keys are refused, and so is text that is too large or nested too deeply.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import yaml

from stlm_kd.errors import RecipeFault, first_of

LARGEST = 256 * 1024
"""Maximum number of characters of a recipe."""

DEEPEST = 32

Scalar: TypeAlias = bool | int | float | str | None
Plain: TypeAlias = "Scalar | list[Plain] | dict[str, Plain]"

_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(slots=True)
class Node:
    """A value with its line (None in an override) and origin: an override, an inlined file, or ""."""

    value: dict[str, Node] | list[Node] | Scalar
    line: int | None = None
    origin: str = ""

    def plain(self) -> Plain:
        """The value without origins."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


class YamlError(Exception):
    """The text is not one plain YAML document; holds the faults."""

    def __init__(self, faults: list[RecipeFault]) -> None:
        self.faults = faults
        super().__init__("; ".join(first_of(faults)))


def parse(text: str, *, origin: str = "", lines: bool = True, largest: int = LARGEST) -> Node:
    """Parse one YAML document of at most ``largest`` characters.

    Nodes have this origin, and their lines if ``lines``.

    Raises YamlError for invalid syntax, or anything but plain data; it holds every duplicate key found.
    """
    if len(text) > largest:
        raise YamlError([RecipeFault("", f"{len(text):,} characters found; expected at most {largest:,}")])
    try:
        return _Builder(text, origin, lines=lines).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise YamlError([RecipeFault("", f"not YAML: {problem}", mark.line + 1 if mark else None)]) from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise YamlError([RecipeFault("", f"not YAML: {' '.join(str(error).split())}")]) from error


def scalar(text: str) -> Scalar:
    """The value of an unquoted scalar.

    >>> scalar("3e-4"), scalar("on"), scalar("1_000"), scalar("1_"), scalar("true"), scalar("200M")
    (0.0003, 'on', 1000, '1_', True, '200M')
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text) and len(text) < 40:
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def dump(values: Plain) -> str:
    """Plain values as YAML that ``parse`` reads back as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes text that would be read as something else, and writes floats with a point."""


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    mantissa, e, exponent = repr(value).partition("e")
    point = "" if "." in mantissa or not e else ".0"
    return dumper.represent_scalar("tag:yaml.org,2002:float", f"{mantissa}{point}{e}{exponent}")


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None if scalar(value) == value else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(float, _float)
_Dumper.add_representer(str, _text)


class _Builder:
    """Reads parser events one by one, so a bad document is refused early."""

    def __init__(self, text: str, origin: str, *, lines: bool) -> None:
        self.events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        self.origin = origin
        self.lines = lines
        self.faults: list[RecipeFault] = []

    def document(self) -> Node:
        root: Node | None = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    line = _line(event)
                    raise YamlError([RecipeFault("", "a second document begins; expected one", line)])
                root = self.node(next(self.events), "", 0)
        if self.faults:
            raise YamlError(self.faults)
        return root if root is not None else self.made(None, 1)

    def made(self, value: dict[str, Node] | list[Node] | Scalar, line: int) -> Node:
        return Node(value, line if self.lines else None, self.origin)

    def node(self, event: yaml.Event, place: str, depth: int) -> Node:
        line = _line(event)
        self.reject_aliases_and_tags(event, place, line)
        if depth > DEEPEST:
            raise YamlError([RecipeFault("", f"nested more than {DEEPEST} deep", line)])
        if isinstance(event, yaml.MappingStartEvent):
            return self.made(self.mapping(place, depth), line)
        if isinstance(event, yaml.SequenceStartEvent):
            entries: list[Node] = []
            while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
                entries.append(self.node(event, f"{place}[{len(entries)}]", depth + 1))
            return self.made(entries, line)
        assert isinstance(event, yaml.ScalarEvent)
        return self.made(event.value if event.style else scalar(event.value), line)

    def mapping(self, place: str, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            line = _line(event)
            self.reject_aliases_and_tags(event, place, line)
            if not isinstance(event, yaml.ScalarEvent):
                raise YamlError([RecipeFault(place, "a key that is a list or mapping; expected text", line)])
            key = event.value
            inner = f"{place}.{key}" if place else key
            node = self.node(next(self.events), inner, depth + 1)
            if key in entries:
                self.faults.append(
                    RecipeFault(inner, f"given twice; first in line {entries[key].line}", line)
                )
            else:
                entries[key] = self.made(node.value, line)
        return entries

    def reject_aliases_and_tags(self, event: yaml.Event, place: str, line: int) -> None:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise YamlError(
                [RecipeFault(place, "anchors and aliases are not supported; repeat the value", line)]
            )
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise YamlError([RecipeFault(place, f"the tag {tag} is not supported; use plain data", line)])


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None, "events of a text carry marks"
    return event.start_mark.line + 1
