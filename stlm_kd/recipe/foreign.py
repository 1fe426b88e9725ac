"""Recipes from elsewhere are data: what they may not ask for, unless the user says it on the command line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic_core import from_json

from stlm_kd.errors import RecipeError, RecipeFault, UsageError
from stlm_kd.recipe.lock import LOCK_FILE, read_lock
from stlm_kd.recipe.paths import DEEPSPEED
from stlm_kd.recipe.yaml import Node, YamlError, parse
from stlm_kd.sharing.address import GitAddress, WebAddress, parse_address
from stlm_kd.sharing.limits import shown

_FREE_TEXT = {"separator", "column", "text", "label", "labels", "classes"}
"""Keys with names of columns and classes and other text that names no file."""

_RECIPES = {"recipe", "extends"}
_CODE = re.compile(r"auto_map|trust_remote_code|.*(attn|experts|moe|attention)_implementation|.*kernels?.*")
"""Keys of configurations that make transformers fetch or run code."""

_HUB = re.compile(r"(hub:)?[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*(@[\w./+-]+)?", re.ASCII)
_ORIGIN = re.compile(r"(hf|https|git\+[a-z]+)://")
_LOCAL_TRACKERS = ("tensorboard",)


def foreign_faults(root: Node) -> list[RecipeFault]:
    """Everything in a tree that a recipe from elsewhere may not ask for.

    Values that the user set are not checked: only nodes whose origin is an address are.

    A path may not leave the recipe's folder, nor use ``~`` or variables; no tracking service, no code, no
    other addresses than those of recipes, which are then checked likewise.
    """
    return [*_walk(root, "", "")]


def is_foreign(node: Node) -> bool:
    """Whether a node was read from an address."""
    return node.line is not None and _ORIGIN.match(node.origin) is not None


def check_fetched(folder: Path, file: Path) -> None:
    """Refuse a fetched folder whose recipe, lock or results cannot be read, or do not belong together.

    Raises:
        RecipeError: The recipe is not plain YAML, the lock is invalid, or it states other results.
    """
    try:
        root = parse(_text(file))
    except YamlError as error:
        raise RecipeError(file.name, error.faults) from error
    if not isinstance(root.value, dict):
        raise RecipeError(file.name, [RecipeFault("", "not a mapping, so not a recipe")])
    lock, results = file.with_name(LOCK_FILE), file.with_name("results.json")
    if results.is_file():
        try:
            from_json(results.read_bytes(), allow_inf_nan=False)
        except ValueError as error:
            raise RecipeError(results.name, [RecipeFault("", f"not JSON: {error}")]) from error
    if lock.is_file():
        stated = read_lock(_text(lock), origin=lock.name).results
        found = f"sha256:{hashlib.sha256(results.read_bytes()).hexdigest()}" if results.is_file() else None
        if stated is not None and found is not None and stated != found:
            message = f"results.json has {found}; expected {stated}, so these are the results of another run"
            raise RecipeError(lock.name, [RecipeFault("results", message)])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(path.name, [RecipeFault("", f"byte {error.start} is not UTF-8")]) from error


def _walk(node: Node, place: str, key: str) -> Iterator[RecipeFault]:
    if isinstance(node.value, dict):
        for name, inner in node.value.items():
            where = f"{place}.{shown(name)}" if place else shown(name)
            last = re.sub(r"\[\d+\]", "", name).rpartition(".")[2]  # of a dotted key in a sweep
            if key not in _FREE_TEXT and is_foreign(inner) and (message := _key_fault(last)):
                yield _fault(inner, where, message)
            yield from _walk(inner, where, key if key in _FREE_TEXT else last)
    elif isinstance(node.value, list):
        for index, inner in enumerate(node.value):
            yield from _walk(inner, f"{place}[{index}]", key)
    elif (
        isinstance(node.value, str) and is_foreign(node) and (message := _value_fault(node.value, key, place))
    ):
        yield _fault(node, place, f"{shown(node.value)} found; {message}")


def _fault(node: Node, place: str, message: str) -> RecipeFault:
    return RecipeFault(f"{place} ({node.origin} line {node.line})", message)


def _key_fault(name: str) -> str | None:
    if not name.isascii() or not name.isprintable():
        return "a key with letters beyond ASCII, which may look like another key"
    return "not allowed in a recipe from elsewhere: it would run code" if _CODE.fullmatch(name) else None


def _value_fault(value: str, key: str, place: str) -> str | None:
    """Why a recipe from elsewhere may not hold a text at a place; None if it may."""
    if key in _FREE_TEXT:
        return None
    if key == "tracking" and value not in _LOCAL_TRACKERS:
        return "it would send data to a service; ask for it on the command line: tracking=[…]"
    if "://" in value:
        return _address_fault(value, key)
    command = f"to use it, give {place}=… on the command line"
    if not value.isprintable():
        return "control or invisible characters"
    if "$" in value:
        return f"variables are not filled in for a recipe from elsewhere; {command}"
    if value.startswith(("/", "~", "\\")) or re.match(r"[A-Za-z]:", value.replace("hub:", "", 1)):
        return f"expected a path inside the recipe's folder; {command}"
    if "\\" in value or ".." in value.split("/"):
        return f"leaves the recipe's folder; {command}"
    if key == "hub" and not _HUB.fullmatch(value):
        return "expected USER/NAME on the Hub"
    if "architecture" in place.split(".") and "/" in value:
        return "expected a plain value: a name with / may stand for code on the Hub"
    if (key == "cache" and value != "auto") or place.endswith("cache.path"):
        return f"a cache is a folder of this machine; {command}"
    if place.endswith(DEEPSPEED):
        return f"DeepSpeed's settings are a file of this machine; {command}"
    return None


def _address_fault(value: str, key: str) -> str | None:
    if key not in _RECIPES:
        return "addresses are only for recipes"
    try:
        address = parse_address(value)
    except UsageError as error:
        return str(error)
    if isinstance(address, WebAddress) and address.sha256 is None:
        return "expected an address with #sha256=…"
    if isinstance(address, GitAddress) and not address.url.startswith("https://"):
        return "expected git+https://"
    return None
