"""Score the published weights of a claim again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from stlm_kd.artifacts.hashing import known_sha256
from stlm_kd.artifacts.results import Row
from stlm_kd.artifacts.stage_store import WEIGHTS
from stlm_kd.data.tokenizers import load_tokenizer, tokenizer_identity
from stlm_kd.errors import MissingResourceError
from stlm_kd.eval import SUITES
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.results import parameters_of
from stlm_kd.pipeline.stages.score import kept_scores
from stlm_kd.pipeline.stages.teacher_set import TeacherSet, teachers_of_run
from stlm_kd.publishing.locking import locked
from stlm_kd.publishing.verify.claim import Claim
from stlm_kd.publishing.verify.comparing import Comparisons
from stlm_kd.publishing.verify.report import Finding, contradiction, listed
from stlm_kd.sharing.address import HubAddress, parse_address
from stlm_kd.sharing.names import PREFIX
from stlm_kd.sharing.pins import local_folder

Placed = tuple[Row, int, Path]
"""A row, the index of one of its seeds, and the folder of that model."""


def rescored(claim: Claim, given: Path | None) -> Comparisons:
    """Compare claimed scores with those of the weights that they belong to, computed again.

    Args:
        claim: The claim; its files agree with each other.
        given: A folder with the weights of one of its models; None: the run's, or the published ones.

    Raises:
        MissingResourceError: There are no weights, or they or data cannot be had.
        RecipeError, DataError: The data of this machine are not what the recipe names.
    """
    done = Comparisons()
    models = _given(claim, given, done) if given is not None else _models(claim)
    if not models and not done.findings:
        raise MissingResourceError(
            f"{claim.source.origin}: no weights to score again: the lock publishes none (recipe push "
            "--with-model); give their folder: --model FOLDER"
        )
    fitting = []
    for row, at, model in models:
        faults = [] if len(row.of) != len(row.scores) else list(_unlike_model(model, row, at))
        done.findings += faults
        if not faults:
            fitting.append((row, at, model))
    if not fitting:
        return done
    with as_locked(claim), tempfile.TemporaryDirectory(prefix="stlm-kd-verify-") as folder:
        context, teachers = RunContext(Path(folder), run_name="verify"), _teachers(claim)
        for row, at, model in fitting:
            found = kept_scores(claim.recipe, str(model), context, beside=teachers)
            done.add(f"{row.name}, seed {row.seeds[at]}", row.scores[at], found)
            done.confirms = True
    done.close()
    if others := [*_others(claim, fitting)]:
        done.findings.append(Finding("--rescore", f"not scored again: {listed(others)}", refutes=False))
    return done


@contextmanager
def as_locked(claim: Claim) -> Iterator[None]:
    """Read what the lock of a claim says; without a lock, what names mean now. Errors as ``locked``."""
    with locked(claim.source.origin, claim.recipe, frozen=True) if claim.lock is not None else nullcontext():
        yield


def _models(claim: Claim) -> list[Placed]:
    """The folders of students and controls: of the run, or published."""
    found: list[Placed] = []
    published = {} if claim.lock is None else claim.lock.published
    for row, at, path in _places(claim):
        own = None if claim.run is None else claim.run / path
        if own is not None and (own / "config.json").is_file():
            found.append((row, at, own))
        elif path in published:
            address = parse_address(published[path])
            assert isinstance(address, HubAddress), "checked when the lock was read"
            revision = "" if address.revision is None else f"@{address.revision}"
            found.append((row, at, local_folder(f"{PREFIX}{address.repo}{revision}")))
    return found


def _given(claim: Claim, folder: Path, done: Comparisons) -> list[Placed]:
    """The place of a folder's model, by the hashes of its weights."""
    files = _weights_in(folder)
    if not files:
        raise MissingResourceError(f"--model {folder}: no .safetensors in it; expected the folder of a model")
    for row, at, _ in _places(claim):
        if len(row.of) == len(row.scores) and row.of[at].weights == files:
            return [(row, at, folder)]
    claimed = ", ".join(
        sorted(hash_ for row in claim.rows for one in row.of for hash_ in one.weights.values())
    )
    message = "its weights are none of those that the results name"
    done.findings.append(contradiction(f"--model {folder}", message, claimed, ", ".join(files.values())))
    return []


def _others(claim: Claim, scored: Sequence[Placed]) -> Iterator[str]:
    """The rows and seeds that were not scored."""
    for row in claim.rows:
        known = {at for one, at, _ in scored if one.name == row.name}
        left = [str(seed) for at, seed in enumerate(row.seeds) if at not in known]
        if left or not row.seeds:
            yield f"{row.name}, seed {' and '.join(left)}" if left else row.name


def _places(claim: Claim) -> Iterator[tuple[Row, int, str]]:
    for row in claim.rows:
        if row.variant is not None:
            for at, seed in enumerate(row.seeds):
                yield row, at, f"students/{row.variant}/seed-{seed}/model"


def _unlike_model(folder: Path, row: Row, at: int) -> Iterator[Finding]:
    place, claimed = f"{row.name}, seed {row.seeds[at]}", row.of[at]
    files = _weights_in(folder)
    if files != claimed.weights:
        hashes = [", ".join(one.values()) for one in (claimed.weights, files)]
        yield contradiction(place, "these are not the weights that were scored", *hashes)
    if row.parameters is not None and (size := parameters_of(str(folder), trust=False)) != row.parameters:
        yield contradiction(place, "another number of parameters", row.parameters, size)
    tokenizer = tokenizer_identity(load_tokenizer(str(folder)))
    if tokenizer != claimed.tokenizer:
        message = "its tokenizer is not the one that it was scored with"
        yield contradiction(place, message, claimed.tokenizer, tokenizer)


def _weights_in(folder: Path) -> dict[str, str]:
    """The hash of each file of weights in a folder."""
    return {file.name: f"sha256:{known_sha256(file)}" for file in sorted(folder.glob(f"*{WEIGHTS}"))}


def _teachers(claim: Claim) -> TeacherSet | None:
    """The teachers, for suites that compare with them: those of the run, or models that need no training."""
    if not any(SUITES[entry.suite].teachers for entry in claim.recipe.eval):
        return TeacherSet({}, claim.recipe)
    own = [teacher for teacher in claim.recipe.teachers if not teacher.is_only_read]
    known: Mapping[str, str] = {} if claim.run is None else teachers_of_run(claim.run)
    if not known and all(one.model is not None and one.adapt is None for one in own):
        known = {one.name: str(one.model) for one in own}
    return TeacherSet(known, claim.recipe) if known else None
