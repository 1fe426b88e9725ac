"""Dotted overrides: ``train.steps=10``, ``teachers[0].model=gpt2``, ``data.train.0.path=a.txt``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from stlm_kd.errors import RecipeFault, UsageError, one_line
from stlm_kd.recipe.yaml import DEEPEST, Node, Plain, YamlError, parse

Step = str | int
_SHORT = {"data": "path", "eval": "suite"}
"""The key of a bare string in these parts: a source's path, a suite's name."""

_KEY = re.compile(r"[A-Za-z_][\w-]*(\[[0-9]{1,9}\]|\.([0-9]{1,9}|[A-Za-z_][\w-]*))*")
_STEP = re.compile(r"\[([0-9]+)\]|([0-9]+)|([A-Za-z_][\w-]*)")


def split(override: str) -> tuple[list[Step], Node]:
    """Split ``key.path=value`` into path and value, which is plain YAML; UsageError if it is of another form.

    >>> split("teachers[0].model=gpt2")[0]
    ['teachers', 0, 'model']
    """
    key, equals, value = override.partition("=")
    if not equals or not _KEY.fullmatch(key):
        raise UsageError(
            f"{one_line(override)}: expected key.path=value, for instance train.steps=10 or seeds=[1,2]"
        )
    path: list[Step] = [
        int(bracketed or dotted) if bracketed or dotted else name
        for bracketed, dotted, name in _STEP.findall(key)
    ]
    if len(path) > DEEPEST:
        raise UsageError(
            f"{one_line(override)}: {len(path)} keys and indices found; expected at most {DEEPEST}"
        )
    try:
        return path, parse(value, origin=override, lines=False)
    except YamlError as error:
        raise UsageError(f"{one_line(override)}: the value is not plain YAML: {error}") from error


def settings(words: Sequence[str]) -> dict[str, Plain]:
    """The values of ``name=value`` by name, such as options of a suite; errors as ``refuse_repeated``.

    >>> settings(["rows=12", "tasks=[blimp, arc_easy]"])
    {'rows': 12, 'tasks': ['blimp', 'arc_easy']}
    """
    refuse_repeated(words)
    return {word.partition("=")[0]: split(word)[1].plain() for word in words}


def refuse_repeated(overrides: Sequence[str]) -> None:
    """Refuse two values for one place (UsageError), because only the last would apply.

    >>> refuse_repeated(["train.steps=10", "data.context=64", "train.steps=20"])
    Traceback (most recent call last):
    stlm_kd.errors.UsageError: train.steps: given twice (train.steps=10, train.steps=20); expected one value
    """
    first: dict[tuple[Step, ...], str] = {}
    for override in overrides:
        path = tuple(split(override)[0])
        if path in first:
            key = override.partition("=")[0]
            given = f"{one_line(first[path])}, {one_line(override)}"
            raise UsageError(f"{one_line(key)}: given twice ({given}); expected one value")
        first[path] = override


def apply(root: Node, override: str, expand: Callable[[Node], None]) -> RecipeFault | None:
    """Set one value in the tree, creating the mappings on its path; the fault, if there is no such place.

    ``expand`` is called on a teacher's ``recipe`` before its keys are accessed, to inline its content.
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
