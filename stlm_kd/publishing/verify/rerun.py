"""Train and score a claim's recipe again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stlm_kd.artifacts.results import Row
from stlm_kd.artifacts.saved_results import RESULTS, read_results
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.pipeline.distill import distill
from stlm_kd.publishing.verify.claim import Claim
from stlm_kd.publishing.verify.comparing import Comparisons
from stlm_kd.publishing.verify.report import Finding, contradiction
from stlm_kd.publishing.verify.rescore import as_locked
from stlm_kd.recipe import load

_NAME, _COMMAND = "verify", "stlm-kd recipe verify --rerun"
_COSTS = ("tokens_of_text", "tokens_seen", "steps", "flops")


def reproduced(claim: Claim, *, seeds: int, output_dir: Path) -> Comparisons:
    """Run the recipe of a claim with its lock, and compare weights and scores.

    Equal weights must have equal scores. Other weights are another draw of the seed: their scores are
    compared with the claimed ones over seeds.

    Args:
        claim: The claim; its files agree with each other.
        seeds: Number of its seeds to run, the first ones.
        output_dir: Gets the run.

    Raises:
        StlmKdError: As ``distill``.
    """
    chosen = claim.recipe.seeds[:seeds]
    changes = [f"seeds=[{','.join(map(str, chosen))}]", "tracking=[]"]
    recipe = load(claim.source.origin, changes, is_stored=claim.run is not None)
    with as_locked(claim):
        run = distill(recipe, name=_NAME, output_dir=output_dir, command=_COMMAND)
    again = {row.variant or row.name: row for row in read_results(run.path / RESULTS).rows}
    done, table = Comparisons(), ResultsTable(claim.rows)
    if seeds > len(chosen):
        message = f"{seeds} asked for, but the claim has {len(chosen)}, which were trained"
        done.findings.append(Finding("--seeds", message, refutes=False))
    found_table = ResultsTable(again.values())
    for row in claim.rows:
        own = again[row.variant or row.name]
        done.findings += _unlike_costs(row, own)
        if row.variant is None:
            if own.of == row.of and row.of:
                done.add(row.name, row.scores[0], own.scores[0])
            continue
        for at, seed in enumerate(chosen):
            place = f"{row.name}, seed {seed}"
            if len(row.of) == len(row.scores) and row.of[at].weights == own.of[at].weights:
                done.lines.append(f"{place}: trained again to the same weights, bit for bit")
                done.add(place, row.scores[at], own.scores[at])
                done.confirms = True
                continue
            done.findings.append(Finding(place, _other_weights(claim), refutes=False))
            for metric in table.metrics:
                value = found_table.scores_by_seed.get((own.name, metric), {}).get(seed)
                if value is not None and table.complete_values(row, metric):
                    done.add_seed(place, row, table, metric, value.value)
    done.close()
    return done


def _other_weights(claim: Claim) -> str:
    """That weights differ, and whether they should not."""
    from stlm_kd.artifacts.record import versions

    locked = {} if claim.lock is None else claim.lock.packages
    now = versions()
    moved = [
        f"{name} {locked[name]} → {now.get(name, 'none')}" for name in locked if now.get(name) != locked[name]
    ]
    if moved:
        return f"trained again to other weights, with other versions ({', '.join(moved)})"
    return "trained again to other weights, with the same versions: another processor, or not these weights"


def _unlike_costs(row: Row, own: Row) -> Iterator[Finding]:
    """Parameters; and text, steps and FLOPs, each the most over seeds, where the weights are the same."""
    is_same = bool(row.of) and list(own.of) == list(row.of[: len(own.of)])
    for name in ("parameters", *(_COSTS if is_same else ())):
        claimed, found = getattr(row, name), getattr(own, name)
        of_other_seed = name != "parameters" and len(own.of) < len(row.of) and (claimed or 0) > (found or 0)
        if claimed is not None and claimed != found and not of_other_seed:
            message = f"another number of {name.replace('_', ' ')}"
            yield contradiction(row.name, message, claimed, found)
