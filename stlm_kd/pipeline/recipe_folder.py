"""The run folder of a recipe, identified by the recipe's hash."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from stlm_kd.artifacts.atomic import write_json, write_text, writing
from stlm_kd.artifacts.record import new_record
from stlm_kd.artifacts.run_dir import RECIPE, RECORD, RunFolder, file_name, open_run
from stlm_kd.errors import CheckpointError
from stlm_kd.recipe import Recipe, hash_of, paths_of, plain, recipe_hash, resolved_yaml
from stlm_kd.recipe.yaml import Plain, YamlError, parse


def folder_of(recipe: Recipe, *, name: str, output_dir: Path) -> Path:
    """The run folder of a recipe: ``<output_dir>/<name>-<first 8 digits of the recipe's hash>``."""
    return output_dir / f"{file_name(name)}-{recipe_hash(recipe)[:8]}"


def create(recipe: Recipe, *, name: str, output_dir: Path, command: str) -> RunFolder:
    """Create a recipe's run folder with recipe and record, or open the existing one.

    Raises:
        CheckpointError: The folder belongs to another recipe; the message lists the differences.
    """
    path = folder_of(recipe, name=name, output_dir=output_dir)
    if (path / RECORD).is_file():
        found = open_for(recipe, path)
        return replace(found, record=replace(found.record, paths=paths_of(recipe)))
    record = replace(new_record(name, recipe_hash(recipe), command), paths=paths_of(recipe))
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / RECIPE, resolved_yaml(recipe))
        write_json(path / RECORD, asdict(record))
    return RunFolder(path, record)


def open_for(recipe: Recipe, path: Path) -> RunFolder:
    """Open the existing run folder of this recipe.

    Raises:
        MissingResourceError, CheckpointError: It does not exist, is damaged or belongs to another recipe.
    """
    found = open_run(path)
    saved = _saved_recipe(path)
    if found.record.recipe_hash == recipe_hash(recipe) == hash_of(saved):
        return found
    changes = differences(saved, plain(recipe))
    listed = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
    raise CheckpointError(
        f"{path}: the run of another recipe ({listed or 'its record names another hash'}); "
        "choose another --output-dir, or move the folder away"
    )


def differences(before: Plain, after: Plain, place: str = "") -> list[str]:
    """The differences between two recipes' plain values, one phrase per key."""
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for key in sorted({*before, *after}):
            inner = f"{place}.{key}" if place else key
            found += differences(before.get(key), after.get(key), inner)
        return found
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [phrase for i, pair in pairs for phrase in differences(*pair, f"{place}[{i}]")]
    return [] if before == after else [f"{place} is {_truncated(before)} there and {_truncated(after)} here"]


def _saved_recipe(path: Path) -> Plain:
    try:
        return parse((path / RECIPE).read_text(encoding="utf-8")).plain()
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise CheckpointError(f"{path / RECIPE}: damaged ({error}); move the folder away") from error


def _truncated(value: Plain) -> str:
    text = "not given" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
