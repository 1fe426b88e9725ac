"""The built-in recipes: show and copy."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from stlm_kd.errors import MissingResourceError, UsageError
from stlm_kd.recipe.load import load, resolved_yaml
from stlm_kd.recipe.locate import locate, text_of
from stlm_kd.recipes import list_recipes


def show_recipe(name: str, overrides: Sequence[str] = (), *, resolved: bool = False) -> str:
    """The text of a recipe, or of a list of objectives.

    >>> print(show_recipe("adapt-qwen2-0.5b", ["student.tokenizer=my-tokenizer"], resolved=True)[:44])
    task: clm
    student:
      tokenizer: my-tokenizer

    Args:
        name: A file, or a built-in name.
        overrides: Changes ``key.path=value``, which only a resolved recipe shows.
        resolved: Whether to apply the changes and fill in all defaults.

    Raises:
        MissingResourceError: No such recipe.
        UsageError: Overrides without ``resolved``.
        RecipeError: The resolved recipe is invalid.
    """
    if resolved:
        return resolved_yaml(load(name, overrides))
    if overrides:
        raise UsageError(f"{overrides[0]}: changes show only with --resolved")
    known = {entry.name: entry.path for entry in reversed(list_recipes())}  # a recipe goes before a list
    return text_of(known[name] if name in known and not Path(name).is_file() else locate(name))


def copy_recipe(name: str, destination: str | PathLike[str] = ".", *, overwrite: bool = False) -> Path:
    """Copy a recipe for editing; returns the new file.

    Args:
        name: A file, or a built-in name.
        destination: A file, or a folder, where the recipe keeps its name.
        overwrite: Whether to replace an existing file.

    Raises:
        MissingResourceError: No such recipe, or the file cannot be written.
        UsageError: The file exists.
    """
    source, target = locate(name), Path(destination)
    target = target / source.name if target.is_dir() else target
    if target.exists() and not overwrite:
        raise UsageError(f"{target}: exists; choose another name, or overwrite it with --force")
    text = text_of(source)
    try:
        with target.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise MissingResourceError(f"{target}: cannot be written ({error.strerror})") from error
    return target
