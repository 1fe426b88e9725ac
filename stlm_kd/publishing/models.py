"""Push a model to a repository of its own: safetensors, configuration, tokenizer and card, nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from stlm_kd.artifacts.reports import read_report
from stlm_kd.artifacts.run_dir import RECORD, model_of
from stlm_kd.artifacts.saved_results import RESULTS, read_results
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.errors import ModelError, RecipeError, RecipeFault, UsageError
from stlm_kd.publishing.leaks import leaks
from stlm_kd.publishing.targets import Contents, send, target_of
from stlm_kd.recipe.load import recipe_of
from stlm_kd.recipe.locate import find, lock_beside
from stlm_kd.reporting.model_card import CARD, CardFacts, card, family_of, plain_card
from stlm_kd.sharing.snapshot import INDEX, WEIGHTS

_FILES = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|vocab\.txt|merges\.txt|(tokenizer|spiece|sentencepiece\.bpe)\.model|chat_template\.(jinja|json)"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)


@dataclass(frozen=True, slots=True)
class PushedModel:
    """A model that was pushed, or would be: its address with the commit, and the bytes of each file."""

    address: str
    files: Mapping[str, int]


def push_model(
    model: str | PathLike[str],
    address: str,
    *,
    private: bool = False,
    tag: str | None = None,
    recipe: str = "",
    dry_run: bool = False,
) -> PushedModel:
    """Push the model of a run, or of a folder, with its card, as one commit.

    Args:
        model: A run, of which the first student is taken, or the folder of a model.
        address: ``hf://USER/NAME``.
        private: Whether a repository that is made is private.
        tag: A new tag for the commit.
        recipe: The address of its recipe, for the card.
        dry_run: Check only.

    Raises:
        UsageError: Not such an address, or not a folder.
        ModelError: Not a model with safetensors weights.
        RecipeError: A file holds what may not be pushed; holds all reasons.
        MissingResourceError: The Hub cannot be reached, or refuses.
    """
    target, folder = (
        target_of(address, private=private, tag=tag, hub_only=True),
        Path(model_of(os.fspath(model))),
    )
    if not folder.is_dir():
        raise UsageError(f"{model}: no folder of a model, and no run; a model of the Hub is there already")
    with TemporaryDirectory(prefix="stlm-kd-") as temporary:
        files = {path.name: path for path in sorted(folder.iterdir()) if _FILES.fullmatch(path.name)}
        if "config.json" not in files or not {WEIGHTS, INDEX} & files.keys():
            raise ModelError(f"{folder}: no config.json with {WEIGHTS}; only safetensors weights are pushed")
        files[CARD] = _card(folder, Path(temporary) / CARD, recipe)
        if faults := leaks(files, known=address):
            raise RecipeError(f"{model}: not pushed", faults)
        what = Contents(files, "config.json", "Model, by stlm-kd")
        sent = address if dry_run else send(target, what, private=private, tag=tag)
        return PushedModel(sent, {name: path.stat().st_size for name, path in files.items()})


def model_faults(folder: Path, address: str, recipe: str) -> list[RecipeFault]:
    """Why ``push_model`` would refuse a folder."""
    try:
        push_model(folder, address, recipe=recipe, dry_run=True)
    except RecipeError as error:
        return [RecipeFault(f"{folder}/{one.place}", one.message) for one in error.faults]
    except (UsageError, ModelError) as error:
        return [RecipeFault("", str(error))]
    return []


def _card(folder: Path, target: Path, recipe: str) -> Path:
    """The card of a student from the records of its run; of another model its own, or a short one."""
    folder = folder.resolve()
    facts = _facts(folder, recipe)
    if facts is not None:
        target.write_text(card(facts), encoding="utf-8")
        return target
    if (folder / CARD).is_file():
        return folder / CARD
    target.write_text(plain_card(folder.name), encoding="utf-8")
    return target


def _facts(folder: Path, recipe: str) -> CardFacts | None:
    """What a run records of a student of its results; None of a folder that is none of these."""
    run = folder.parents[min(3, len(folder.parents) - 1)]  # of RUN/students/VARIANT/seed-N/model
    is_below = folder.is_relative_to(run / "students") and (run / RECORD).is_file()
    if not is_below or not (run / RESULTS).is_file():
        return None
    results, name = read_results(run / RESULTS), (folder.parents[1].name, folder.parent.name)
    students = {(str(row.variant), f"seed-{n}"): (row.variant, n) for row in results.rows for n in row.seeds}
    variant, seed = students.get(name, (None, 0))
    if variant is None:
        return None
    lock = lock_beside(find(str(run)))
    return CardFacts(
        run=run.name,
        recipe=recipe_of(run),
        variant=variant,
        seed=seed,
        report=read_report(folder.parent),
        scores=ResultsTable(results.rows),
        remarks=results.remarks,
        family=family_of(folder),
        pins=results.pins,
        data={} if lock is None else {place: suite.data for place, suite in lock.eval.items()},
        address=recipe,
    )
