"""``recipe verify``: climb from files to scores to trainings, and stop at the first contradiction."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from stlm_kd.artifacts.output import write_output
from stlm_kd.artifacts.provenance import program
from stlm_kd.errors import MissingResourceError, RecipeError, UsageError
from stlm_kd.publishing.program import program_of
from stlm_kd.publishing.signing import require_signature
from stlm_kd.publishing.verify.claim import Claim, read_claim
from stlm_kd.publishing.verify.comparing import Comparisons
from stlm_kd.publishing.verify.consistent import findings_of
from stlm_kd.publishing.verify.report import Finding, Rung, Verification
from stlm_kd.recipe.lock import LOCK_FILE
from stlm_kd.sharing.limits import SIGNATURE


def verify(
    recipe: str | PathLike[str],
    *,
    rescore: bool = False,
    rerun: bool = False,
    seeds: int = 1,
    model: str | PathLike[str] | None = None,
    signed_by: str | PathLike[str] | None = None,
    wheel: str | PathLike[str] | None = None,
    environment: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    output_dir: str | PathLike[str] | None = None,
) -> Verification:
    """Check what a recipe's folder claims. Nothing is run unless ``rescore`` or ``rerun`` asks for it.

    Args:
        recipe: An address, a folder, a run, or a recipe's file, with its results beside it.
        rescore: Whether to score the weights again: the run's, the published ones, or those of ``model``.
        rerun: Whether to train again, with the lock's commits.
        seeds: Number of seeds to train again, the first ones.
        model: The folder of one of the claim's models.
        signed_by: A public key whose owner must have signed the folder, as ``require_signature`` checks.
        wheel: A wheel that must be the program that made the lock, as ``program_of`` compares them.
        environment: A new virtual environment for that wheel.
        output: File for the result as JSON.
        output_dir: Keeps the new run; None: a temporary folder.

    Raises:
        UsageError: ``seeds``, ``model`` or ``output_dir`` without what uses it; or results of adapt-teacher.
        MissingResourceError: The claim, weights or data cannot be had.
        RecipeError, CheckpointError: A file is invalid or damaged; data differ from the lock, or the wheel
            is another program.
    """
    if model is not None and not rescore:
        raise UsageError("--model: only --rescore scores a model; add it")
    if (seeds != 1 or output_dir is not None) and not rerun:
        raise UsageError("--seeds, --output-dir: only --rerun trains; add it")
    claim = read_claim(str(recipe))
    rung: Rung = "none"
    findings, compared = [*findings_of(claim), *_signature(claim, signed_by)], [_summary(claim)]
    if signed_by is not None and not _refuted(findings):
        compared.append(f"the signature of all files but the card, by the owner of {signed_by}")
    if wheel is not None or environment is not None:
        into = None if wheel is not None and _refuted(findings) else environment
        compared.append(_program(claim, wheel, into))
    elif rescore or rerun:
        findings += _other_program(claim)
    if not _refuted(findings):
        rung = "consistent"
    steps: list[tuple[bool, Rung, Callable[[], Comparisons]]] = [
        (rescore, "rescored", lambda: _rescored(claim, model)),
        (rerun, "reproduced", lambda: _reproduced(claim, seeds, output_dir)),
    ]
    for wanted, reached, step in steps:
        if wanted and not _refuted(findings):
            done = step()
            findings += done.findings
            compared += done.lines
            if not _refuted(findings) and done.confirms:
                rung = reached
    found = Verification(claim.source.origin, rung, tuple(compared), tuple(findings))
    if output is not None:
        write_output(Path(output), found.as_json())
    return found


def _refuted(findings: list[Finding]) -> bool:
    return any(one.refutes for one in findings)


def _rescored(claim: Claim, model: str | PathLike[str] | None) -> Comparisons:
    from stlm_kd.publishing.verify.rescore import rescored

    return rescored(claim, None if model is None else Path(model))


def _reproduced(claim: Claim, seeds: int, output_dir: str | PathLike[str] | None) -> Comparisons:
    from stlm_kd.publishing.verify.rerun import reproduced

    if output_dir is not None:
        return reproduced(claim, seeds=seeds, output_dir=Path(output_dir))
    with tempfile.TemporaryDirectory(prefix="stlm-kd-verify-") as folder:
        return reproduced(claim, seeds=seeds, output_dir=Path(folder))


def _signature(claim: Claim, key: str | PathLike[str] | None) -> list[Finding]:
    """Why the folder is not as the owner of a key signed it; or that nobody asked who signed it."""
    if key is None:
        is_signed = claim.file.with_name(SIGNATURE).is_file()
        return [Finding(SIGNATURE, "by whom was not asked; add --signed-by KEY", refutes=False)] * is_signed
    try:
        require_signature(claim.source.path.parent, key)
    except RecipeError as error:
        return [Finding(fault.place, fault.message) for fault in error.faults]
    return []


def _program(claim: Claim, wheel: str | PathLike[str] | None, environment: str | PathLike[str] | None) -> str:
    """What a wheel has in common with the program that made the lock."""
    if claim.lock is None:
        raise MissingResourceError(f"{claim.source.origin}: no {LOCK_FILE}, so no program to compare with")
    found = program_of(claim.lock, wheel=wheel, environment=environment)
    same = "is the wheel" if found.same == "wheel" else "has the files of the program"
    installed = "" if environment is None else f"; installed into {environment}, where it runs"
    return f"{wheel}: {same} that made the lock{installed}"


def _other_program(claim: Claim) -> list[Finding]:
    """That this program is not the one that made the lock."""
    if claim.lock is None or claim.lock.made.source in (None, program().source):
        return []
    made = program_of(claim.lock)
    cure = f"; to get it: {', '.join(made.commands)}" if made.commands else ""
    known = ", ".join(filter(None, (made.program.version, made.program.code)))
    return [Finding(LOCK_FILE, f"another program made it: stlm-kd {known}{cure}", refutes=False)]


def _summary(claim: Claim) -> str:
    """What the first rung compares."""
    scores = sum(len(result.scores) for row in claim.rows for results in row.scores for result in results)
    examples = sum(len(result.examples) for row in claim.rows for results in row.scores for result in results)
    return (
        f"the files: {len(claim.rows)} rows, {scores} scores and {examples} per-example values, with lock, "
        "estimates, verdicts and card"
    )
