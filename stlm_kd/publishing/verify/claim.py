"""What is verified: a recipe with its lock, its results and its card, read without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import JsonValue, TypeAdapter

from stlm_kd.artifacts.json_io import AGAIN, read_saved
from stlm_kd.artifacts.results import Row
from stlm_kd.artifacts.run_dir import RECORD
from stlm_kd.artifacts.saved_results import RESULTS, Results, read_results
from stlm_kd.errors import CheckpointError, MissingResourceError, UsageError
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.load import checked
from stlm_kd.recipe.locate import Source, find, lock_beside, read_source
from stlm_kd.recipe.lock import Lock
from stlm_kd.sharing.limits import MAX_BYTES

_ANY: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


@dataclass(frozen=True, slots=True)
class Claim:
    """The files of a recipe's folder.

    Attributes:
        source: The recipe's file.
        recipe: The recipe.
        lock: None if there is none.
        results: The claimed scores.
        values: ``results.json`` as it is.
        card: Text of ``README.md``; None if there is none.
        run: The folder, if it is that of a run, with its models; otherwise None.
    """

    source: Source
    recipe: Recipe
    lock: Lock | None
    results: Results
    values: Mapping[str, Any]
    card: str | None
    run: Path | None

    @property
    def file(self) -> Path:
        """``results.json``."""
        return self.source.path.with_name(RESULTS)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows, with which teachers teach: the adapted one, or the only one of a name."""
        adapted = {row.name for row in self.results.rows if row.kind == "adapted"}
        return tuple(
            replace(row, teaches=row.kind == "adapted" or f"{row.name}, adapted" not in adapted)
            if row.kind in ("teacher", "adapted")
            else row
            for row in self.results.rows
        )


def read_claim(name: str) -> Claim:
    """Read what an address, a folder, a run or a recipe's file claims.

    Raises:
        MissingResourceError: It cannot be reached, or has no results.
        RecipeError: Recipe or lock is invalid, or a fetched folder is refused.
        CheckpointError: The results are damaged.
        UsageError: They are those of an adaptation.
    """
    source = find(name)
    file, card = source.path.with_name(RESULTS), source.path.with_name("README.md")
    if not file.is_file():
        raise MissingResourceError(f"{name}: no {RESULTS} beside its recipe, so it claims nothing")
    if file.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{file}: larger than {MAX_BYTES:,} bytes; not the results of a recipe")
    results, values = read_results(file), read_saved(file, _ANY, remedy=AGAIN)
    if not results.rows:
        raise UsageError(
            f"{name}: the results of adapt-teacher, which are not verified; give those of distill"
        )
    is_run = source.path.with_name(RECORD).is_file()
    return Claim(
        source,
        checked(read_source(source), is_stored=is_run),
        lock_beside(source),
        results,
        values,
        card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None,
        source.path.parent if is_run else None,
    )
