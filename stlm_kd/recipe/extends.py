"""``extends``: a recipe whose tree is another recipe's, with its own keys laid over it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from stlm_kd.errors import RecipeError, RecipeFault
from stlm_kd.recipe.yaml import Node

EXTENDS = "extends"
MAX_DEPTH = 8
"""Maximum number of recipes that extend one another."""

File = TypeVar("File", bound=Hashable)


def extended(root: Node, file: File, read: Callable[[str, File], tuple[Node, File]]) -> Node:
    """The tree of a recipe with all that it extends; a recipe without ``extends`` is returned as it is.

    Mappings merge; lists and single values replace the ancestor's; ``key: null`` removes the ancestor's key,
    so that its default applies. Every node keeps its line and origin.

    Args:
        root: The tree; not changed.
        file: The identity of its file.
        read: The tree and the identity of the file that a name in a file stands for.

    Raises:
        RecipeError: Not a name, a circle, or more than ``MAX_DEPTH`` recipes.
        Others: As ``read``.
    """
    layers, chain = [root], [file]
    while (named := _entry(layers[-1])) is not None:
        if not isinstance(named.value, str) or not named.value:
            raise _error(named, "expected one file, address or name of a recipe")
        if len(chain) == MAX_DEPTH:
            raise _error(
                named, f"{named.value} is one too many; expected at most {MAX_DEPTH} recipes in a row"
            )
        tree, at = read(named.value, chain[-1])
        if at in chain:
            raise _error(named, f"{named.value} extends itself")
        if not isinstance(tree.value, dict):
            raise _error(named, f"{named.value} is not a mapping, so not a recipe")
        layers.append(tree)
        chain.append(at)
    result = _without_extends(layers.pop())
    while layers:
        result = merged(result, _without_extends(layers.pop()))
    return result


def merged(base: Node, own: Node) -> Node:
    """A new tree: ``own`` laid over ``base``.

    >>> from stlm_kd.recipe.yaml import parse
    >>> merged(parse("a: {b: 1, c: 2}\\nd: [1, 2]"), parse("a: {c: null, e: 3}\\nd: [4]")).plain()
    {'a': {'b': 1, 'e': 3}, 'd': [4]}
    """
    if not isinstance(base.value, dict) or not isinstance(own.value, dict):
        return own
    entries = dict(base.value)
    for key, node in own.value.items():
        if key in entries and node.value is None:
            del entries[key]
        else:
            entries[key] = merged(entries[key], node) if key in entries else node
    return Node(entries, own.line, own.origin)


def _entry(root: Node) -> Node | None:
    return root.value.get(EXTENDS) if isinstance(root.value, dict) else None


def _without_extends(root: Node) -> Node:
    if _entry(root) is None:
        return root
    assert isinstance(root.value, dict), "it has the key"
    entries = {key: node for key, node in root.value.items() if key != EXTENDS}
    return Node(entries, root.line, root.origin)


def _error(node: Node, message: str) -> RecipeError:
    return RecipeError(node.origin or "the recipe", [RecipeFault(EXTENDS, message, node.line)])
