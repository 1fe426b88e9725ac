"""``recipe verify``: climb from files to scores to trainings, and stop at the first contradiction."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from os import PathLike
from pathlib import Path

from stlm_kd.artifacts.output import write_output
from stlm_kd.errors import UsageError
from stlm_kd.publishing.verify.claim import Claim, read_claim
from stlm_kd.publishing.verify.comparing import Comparisons
from stlm_kd.publishing.verify.consistent import findings_of
from stlm_kd.publishing.verify.report import Finding, Rung, Verification


def verify(
    recipe: str | PathLike[str],
    *,
    rescore: bool = False,
    rerun: bool = False,
    seeds: int = 1,
    model: str | PathLike[str] | None = None,
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
        output: File for the result as JSON.
        output_dir: Keeps the new run; None: a temporary folder.

    Raises:
        UsageError: ``seeds``, ``model`` or ``output_dir`` without what uses it.
        MissingResourceError: The claim, weights or data cannot be had.
        RecipeError, CheckpointError: A file is invalid or damaged; or data differ from the lock.
    """
    if model is not None and not rescore:
        raise UsageError("--model: only --rescore scores a model; add it")
    if (seeds != 1 or output_dir is not None) and not rerun:
        raise UsageError("--seeds, --output-dir: only --rerun trains; add it")
    name = str(recipe)
    claim = read_claim(name)
    rung: Rung = "none"
    findings = findings_of(claim)
    compared = [_summary(claim)]
    with ExitStack() as folders:

        def run() -> Comparisons:
            from stlm_kd.publishing.verify.rerun import reproduced

            where = output_dir or folders.enter_context(tempfile.TemporaryDirectory(prefix="stlm-kd-verify-"))
            return reproduced(claim, name, seeds=seeds, output_dir=Path(where))

        def score() -> Comparisons:
            from stlm_kd.publishing.verify.rescore import rescored

            return rescored(claim, name, None if model is None else Path(model))

        steps: list[tuple[bool, Rung, Callable[[], Comparisons]]] = [
            (rescore, "rescored", score),
            (rerun, "reproduced", run),
        ]
        if not _refuted(findings):
            rung = "consistent"
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


def _summary(claim: Claim) -> str:
    """What the first rung compares."""
    scores = sum(len(result.scores) for row in claim.rows for results in row.scores for result in results)
    examples = sum(len(result.examples) for row in claim.rows for results in row.scores for result in results)
    return (
        f"the files: {len(claim.rows)} rows, {scores} scores and {examples} per-example values, with lock, "
        "estimates, verdicts and card"
    )
