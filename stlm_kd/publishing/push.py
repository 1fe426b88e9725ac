"""Push a recipe, or a run with its results, as one folder, from which others reproduce and verify it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from stlm_kd.artifacts.provenance import DIRTY, program
from stlm_kd.artifacts.record import Pinned, Record, read_record
from stlm_kd.artifacts.run_dir import RECORD
from stlm_kd.artifacts.saved_results import RESULTS, Results, read_results
from stlm_kd.errors import MissingResourceError, RecipeError, RecipeFault, UsageError
from stlm_kd.eval.agreement.suite import teachers_in
from stlm_kd.notes import note
from stlm_kd.pipeline.locks import lock_of, pins_of
from stlm_kd.publishing.leaks import leaks
from stlm_kd.publishing.models import model_faults, push_model
from stlm_kd.publishing.signing import sign_recipe
from stlm_kd.publishing.staging import Staged, as_fetched, stage
from stlm_kd.publishing.targets import Contents, send, target_of
from stlm_kd.recipe.locate import find, lock_beside
from stlm_kd.recipe.lock import LOCK_FILE, Lock, drift, lock_yaml
from stlm_kd.reporting.model_card import CARD, RecipeFacts, recipe_card
from stlm_kd.sharing.address import RECIPE
from stlm_kd.sharing.hub import info
from stlm_kd.sharing.names import HubName
from stlm_kd.sharing.pins import Pins, using


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was pushed, or would be.

    Attributes:
        address: With its commit; without one for a folder, and if nothing was pushed.
        files: Bytes of each file.
        used: Models and data of the Hub, with licences.
        model: The address of the student's model with its commit, if it was pushed too.
    """

    address: str
    files: dict[str, int]
    used: tuple[Pinned, ...]
    model: str | None = None


def push(
    recipe: str | PathLike[str],
    address: str,
    *,
    private: bool = False,
    tag: str | None = None,
    with_model: str | None = None,
    with_data: bool = False,
    allow_dirty: bool = False,
    sign: str | PathLike[str] | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Push a recipe or a run: recipe.yaml, recipe.lock, results.json of a run, a card, and data.

    All files are checked, and models and data listed with their licences, before anything is sent. After a
    failure it can be repeated.

    Args:
        recipe: A recipe, or the folder of a finished run.
        address: ``hf://USER/NAME``, ``git+https://…[@BRANCH]``, or a folder.
        private: Whether a repository that is made is private.
        tag: A new tag for the recipe's commit.
        with_model: ``hf://USER/NAME`` for the model of the run's first student, which is pushed first.
        with_data: Whether files of the folder ``data``, and texts in results, go along.
        allow_dirty: Whether a run's code, else that of now, may have been changed since its commit.
        sign: The private key that signs the folder, as for ``sign_recipe``.
        dry_run: Check and tell only.

    Raises:
        UsageError: No address to push to, an option that it does not have, or a key that cannot sign.
        RecipeError: It may not be pushed; holds all reasons.
        MissingResourceError: Something is missing, or the target refuses.
    """
    target, name = target_of(address, private=private, tag=tag), os.fspath(recipe)
    run = Path(name) if (Path(name) / RECORD).is_file() else None
    if with_model is not None and run is None:
        raise UsageError(f"--with-model: {name} is no run, so it has no model; leave it out")
    if isinstance(target, Path) and find(name).path.resolve().is_relative_to(target.resolve()):
        raise UsageError(f"{address}: holds {name} itself, and would be replaced; push to a new folder")
    public = _public(address)
    with TemporaryDirectory(prefix="stlm-kd-") as temporary:
        folder = Path(temporary)
        parts, faults = _prepare(name, run, folder, address, with_data=with_data, allow_dirty=allow_dirty)
        place = f"students/student/seed-{parts.staged.recipe.seeds[0]}/model"
        student = Path(name) / place
        if with_model is not None and not faults:
            faults += model_faults(student, with_model, public)
        if faults or parts.lock is None:
            raise RecipeError(f"{name}: not pushed", faults)
        what, model = _signed(folder, parts.lock, sign), None
        for one in parts.used:
            gate = ", gated" if one.gated else ""
            note(f"uses {one.id} ({one.commit[:7]}): licence {one.licence or 'unknown'}{gate}")
        if with_model is not None and not dry_run:
            send(target, what, private=private, tag=tag, check_only=True)
            model = push_model(student, with_model, private=private, recipe=public).address
            published = {**parts.lock.published, place: model}
            _write(folder, address, replace(parts, lock=replace(parts.lock, published=published)))
            what = _signed(folder, parts.lock, sign)
        sent = address if dry_run else send(target, what, private=private, tag=tag)
        sizes = {path: file.stat().st_size for path, file in what.files.items()}
        return Pushed(sent, sizes, parts.used, model)


def _signed(folder: Path, lock: Lock, key: str | PathLike[str] | None) -> Contents:
    """What is pushed: the files of a folder, signed if there is a key."""
    if key is not None:
        sign_recipe(folder, key)
    return Contents(_files(folder), RECIPE, f"Recipe {lock.recipe[7:19]}, by {lock.made.by}")


def _public(address: str) -> str:
    """An address that means the same elsewhere, or ""."""
    return address if "://" in address and "file://" not in address else ""


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is pushed; ``lock`` is None only if there are reasons not to push it."""

    staged: Staged
    lock: Lock | None
    used: tuple[Pinned, ...]
    results: Results | None


def _prepare(
    name: str, run: Path | None, folder: Path, address: str, *, with_data: bool, allow_dirty: bool
) -> tuple[_Parts, list[RecipeFault]]:
    """Write all that is pushed into a folder; returns it with the reasons not to push it."""
    record = None if run is None else read_record(run / RECORD)
    origin = address if "://" in address else f"https://{address}"  # read as if from elsewhere
    staged = stage(name, record, folder, origin, with_data=with_data)
    faults = [*staged.faults, *_run_faults(record, staged)]
    lock, used, more = _lock(name, record, staged)
    faults += [] if allow_dirty else _code_faults(record, lock)
    results = None
    if run is not None and (run / RESULTS).is_file():
        results = read_results(run / RESULTS)
        (folder / RESULTS).write_bytes((run / RESULTS).read_bytes())
        faults += [] if with_data else _text_faults(results)
    parts = _Parts(staged, lock, used, results)
    _write(folder, address, parts)
    faults += [*more, *as_fetched(folder, origin)]
    return parts, faults + leaks(_files(folder), folders=[] if run is None else [run], known=address)


def _write(folder: Path, address: str, parts: _Parts) -> None:
    """Write lock and card, if there is a lock."""
    if parts.lock is None:
        return
    (folder / LOCK_FILE).write_text(lock_yaml(parts.lock), encoding="utf-8")
    title = address.partition("@")[0].rstrip("/").removesuffix(".git").rpartition("/")[2]
    staged, shown = parts.staged, _public(address) or "ADDRESS"
    facts = RecipeFacts(title, shown, staged.recipe, staged.purpose, parts.lock, parts.used, parts.results)
    (folder / CARD).write_text(recipe_card(facts), encoding="utf-8")


def _files(folder: Path) -> dict[str, Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


def _run_faults(record: Record | None, staged: Staged) -> Iterator[RecipeFault]:
    """Why a run may not be pushed."""
    if record is None:
        return
    if record.status != "done":
        message = f"the run is {record.status}; finish it with the command that began it: {record.command}"
        yield RecipeFault("", message)
    for index, suite in enumerate(staged.recipe.eval):
        if (limit := suite.options.get("limit")) is not None:
            message = f"{limit} examples are a trial, not a score to publish; run it without a limit"
            yield RecipeFault(f"eval[{index}].limit", message)


def _text_faults(results: Results) -> Iterator[RecipeFault]:
    """Texts of examples in results, which explanations show."""
    for row in results.rows:
        if any(map(teachers_in, itertools.chain(*row.scores))):
            message = "holds texts of examples, which agreement explains; leave out its attributions"
            yield RecipeFault(f"{RESULTS} {row.name}", f"{message}, or push texts too by --with-data")


def _code_faults(record: Record | None, lock: Lock | None) -> Iterator[RecipeFault]:
    """Why others cannot have the code of a run, as its lock says, or without a run that of now."""
    code = program().code if record is None or lock is None else lock.made.code
    if code is not None and code.endswith(DIRTY):
        again = "" if record is None else f" and repeat the run with another --output-dir: {record.command}"
        remedy = f"commit them{again}"
        message = f"its files are not those of the commit, so others lack them; {remedy}"
        yield RecipeFault(f"the code {code}", f"{message}, or give --allow-dirty")


def _lock(
    name: str, record: Record | None, staged: Staged
) -> tuple[Lock | None, tuple[Pinned, ...], list[RecipeFault]]:
    """The lock, what it pins, and the reasons not to push it; None if these are others."""
    lock = lock_beside(find(name))
    if lock is None and record is not None:
        message = f"none in the run, so it is not done or of an earlier release; repeat it: {record.command}"
        return None, (), [RecipeFault(LOCK_FILE, message)] if record.status == "done" else []
    if staged.stranger is None or staged.faults:
        return lock, (), []
    faults = []
    pins = Pins() if lock is None else pins_of(lock, LOCK_FILE, frozen=True)
    try:
        with using(pins):
            facts = lock_of(staged.stranger)
    except MissingResourceError as error:
        return lock, (), [RecipeFault(LOCK_FILE, str(error))]
    if lock is None:
        return facts, _used(pins), []
    remedy = f"repeat the run: {record.command}" if record else f"make it again: stlm-kd recipe lock {name}"
    for one in drift(lock, facts):
        if one.refuses:
            message = f"{one.found} found, {one.locked} locked; {remedy}"
            faults.append(RecipeFault(f"{LOCK_FILE} {one.place}", message))
    return lock, record.pins if record else _used(pins), faults


def _used(pins: Pins) -> tuple[Pinned, ...]:
    """What a recipe uses, with licences as the Hub tells them."""
    found = []
    for one in pins.records():
        with suppress(MissingResourceError):
            one = replace(info(HubName(one.kind, one.id, one.commit)).record, asked=one.asked)
        found.append(one)
    return tuple(found)
