"""Dotted overrides: ``train.steps=10``, ``teachers[0].model=gpt2``, ``data.train.0.path=a.txt``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from stlm_kd.errors import RecipeFault, UsageError
from stlm_kd.recipe.yaml import Node, Plain, YamlError, parse

Step = str | int
_SHORT = {"data": "path", "eval": "suite"}
"""The key of a bare string in these parts: a source's path, a suite's name."""

_KEY = re.compile(r"[A-Za-z_][\w-]*(\[\d+\]|\.(\d+|[A-Za-z_][\w-]*))*")
_STEP = re.compile(r"\[(\d+)\]|(\d+)|([A-Za-z_][\w-]*)")


def split(override: str) -> tuple[list[Step], Node]:
    """Split ``key.path=value`` into path and value; the value is parsed as YAML.

    >>> split("teachers[0].model=gpt2")[0]
    ['teachers', 0, 'model']

    Raises:
        UsageError: Not of this form, or the value is not plain YAML.
    """
    key, equals, value = override.partition("=")
    if not equals or not _KEY.fullmatch(key):
        raise UsageError(f"{override}: expected key.path=value, for instance train.steps=10 or seeds=[1,2]")
    path: list[Step] = [
        int(bracketed or dotted) if bracketed or dotted else name
        for bracketed, dotted, name in _STEP.findall(key)
    ]
    try:
        return path, parse(value, origin=override, lines=False)
    except YamlError as error:
        raise UsageError(f"{override}: the value is not plain YAML: {error}") from error


def settings(words: Sequence[str]) -> dict[str, Plain]:
    """The values of ``name=value`` by name, such as options of a suite.

    >>> settings(["rows=12", "tasks=[blimp, arc_easy]"])
    {'rows': 12, 'tasks': ['blimp', 'arc_easy']}

    Raises:
        UsageError: A word is not of this form, or a name is given twice.
    """
    refuse_repeated(words)
    return {word.partition("=")[0]: split(word)[1].plain() for word in words}


def refuse_repeated(overrides: Sequence[str]) -> None:
    """Refuse two values for one place, because only the last would apply.

    >>> refuse_repeated(["train.steps=10", "data.context=64", "train.steps=20"])
    Traceback (most recent call last):
    stlm_kd.errors.UsageError: train.steps: given twice (train.steps=10, train.steps=20); expected one value

    Raises:
        UsageError: A place is given twice, or an override is not of the form ``key.path=value``.
    """
    first: dict[tuple[Step, ...], str] = {}
    for override in overrides:
        path = tuple(split(override)[0])
        if path in first:
            key = override.partition("=")[0]
            raise UsageError(f"{key}: given twice ({first[path]}, {override}); expected one value")
        first[path] = override


def apply(root: Node, override: str, expand: Callable[[Node], None]) -> RecipeFault | None:
    """Set one value in the tree, creating the mappings on its path.

    Args:
        root: The recipe; changed in place.
        override: ``key.path=value``.
        expand: Called on a teacher's ``recipe`` before its keys are accessed, to inline its content.

    Returns:
        The fault, if there is no such place.
    """
    path, value = split(override)
    node = root
    for depth, step in enumerate(path):
        if path[:1] == ["teachers"] and path[depth - 1] == "recipe":
            expand(node)
        last = depth == len(path) - 1
        if isinstance(node.value, str) and isinstance(step, str) and path[0] in _SHORT:
            node.value = {_SHORT[str(path[0])]: Node(node.value, node.line, node.origin)}
        inner = _enter(node, step, value if last else None, override)
        if isinstance(inner, str):
            return RecipeFault(override, inner)
        node = inner
    return None


def _enter(node: Node, step: Step, value: Node | None, override: str) -> Node | str:
    """The child node at a step, set to ``value`` if given; an error message if there is none."""
    if isinstance(step, int):
        if not isinstance(node.value, list) and step == 0 and node.value is not None:
            node.value = [Node(node.value, node.line, node.origin)]
        if not isinstance(node.value, list):
            return f"there is no entry {step}; set the whole list"
        if step >= len(node.value):
            return f"there is no entry {step}; the list has {len(node.value)}; set the whole list to add one"
        if value is not None:
            node.value[step] = value
        return node.value[step]
    if node.value is None:
        node.value, node.origin = {}, override
    if not isinstance(node.value, dict):
        kind = "a list, whose entries are [0], [1], …" if isinstance(node.value, list) else "a single value"
        return f"no key {step} here: found {kind}; override the value that contains it"
    if value is not None:
        node.value[step] = value
    return node.value.setdefault(step, Node(None, None, override))
