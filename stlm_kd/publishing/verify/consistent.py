"""Whether the files of a claim agree with the recipe, with each other and with themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from stlm_kd.artifacts.hashing import sha256
from stlm_kd.artifacts.results import Row, SuiteResult
from stlm_kd.artifacts.run_dir import open_run
from stlm_kd.comparison.metrics import Metric
from stlm_kd.comparison.pairing import faults_of
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.pipeline.builders.models import open_precision
from stlm_kd.pipeline.stages.students import variants
from stlm_kd.pipeline.summary import comparisons, selection_remark, text_remark, weak_teachers
from stlm_kd.publishing.verify.card import card_findings
from stlm_kd.publishing.verify.claim import Claim
from stlm_kd.publishing.verify.recompute import values_of
from stlm_kd.publishing.verify.report import Finding, contradiction, listed
from stlm_kd.publishing.verify.score_checks import score_findings
from stlm_kd.publishing.verify.suite_checks import (
    average_findings,
    first_difference,
    is_average,
    suite_findings,
)
from stlm_kd.recipe import Recipe, recipe_hash
from stlm_kd.recipe.lock import Lock
from stlm_kd.reporting.tables.results import as_json

_OF_HARNESS = ("configs", "versions", "n-shot", "n-samples", "requests", "group_subtasks", "higher_is_better")
"""Parts of lm-eval's report that are the same for all models."""

_EXACT = {"bits_per_byte", "pseudo_bits_per_byte", "masked_loss", "mean_squared_error", "kl"}
"""Metrics of which two different models never have the same value in every example."""


def findings_of(claim: Claim) -> list[Finding]:
    """All that does not fit in a claim, and all that cannot be checked from its files alone."""
    rows = claim.rows
    found = [*_lock_findings(claim), *_row_findings(claim.recipe, rows)]
    if any(one.refutes for one in found):
        return found  # what follows would repeat it for every score
    for row, seed, results in _by_seed(rows):
        place = row.name if seed is None else f"{row.name}, seed {seed}"
        found += suite_findings(claim.recipe, claim.lock, row, results, place)
        found += chain.from_iterable(score_findings(one, place) for one in results if not is_average(one))
        found += average_findings(results, place)
    if any(one.refutes for one in found):
        return found  # what follows relies on the scores
    found += _weights_findings(claim)
    table = ResultsTable(rows)
    found += _pairing_findings(table)
    found += _repeat_findings(rows)
    found += _derived_findings(claim, table)
    found += _remark_findings(claim, table)
    if claim.card is not None:
        published = {} if claim.lock is None else claim.lock.published
        found += card_findings(claim.card, table, claim.results.remarks, published)
    return found


def _by_seed(rows: Sequence[Row]) -> Iterator[tuple[Row, int | None, tuple[SuiteResult, ...]]]:
    """Each row with each of its seeds (None: a row without seeds) and the results of that model."""
    for row in rows:
        for seed, results in zip(row.seeds or [None], row.scores, strict=True):
            yield row, seed, results


def _lock_findings(claim: Claim) -> Iterator[Finding]:
    lock, name = claim.lock, "recipe.lock"
    if lock is None:
        yield Finding(name, "missing, so nothing ties the results to this recipe", refutes=False)
        return
    expected, found = f"sha256:{recipe_hash(claim.recipe)}", f"sha256:{sha256(claim.file)}"
    if lock.recipe != expected:
        yield contradiction(name, "it is the lock of another recipe", lock.recipe, expected)
    if lock.results is None:
        yield Finding(name, "it names no results, so nothing ties them to this recipe", refutes=False)
    elif lock.results != found:
        yield contradiction("results.json", "not the results that the lock names", lock.results, found)
    if not lock.outputs:
        yield Finding(name, "it names no weights, so the scored ones are tied to no run", refutes=False)
    commits = {(one.id, one.commit) for one in lock.models.values()}
    commits |= {(one.hub, one.commit) for one in lock.data.values()}
    for suite in lock.eval.values():
        commits |= {(data.partition("@")[0], commit) for data, commit in suite.data.items()}
    for pin in claim.results.pins:
        if (pin.id, pin.commit) not in commits:
            message = f"{pin.id}@{pin.commit} is not in the lock"
            yield Finding("results.json", message, refutes=False)
    yield from _precision_findings(claim, lock)
    if lock.seeds != claim.recipe.seeds:
        yield contradiction(
            name, "its seeds are not the recipe's", listed(lock.seeds), listed(claim.recipe.seeds)
        )


def _precision_findings(claim: Claim, lock: Lock) -> Iterator[Finding]:
    """The lock states the precision of teachers that the recipe leaves open, which is the run's."""
    place, is_open = "recipe.lock", open_precision(claim.recipe) is not None
    if lock.teacher_precision is None and is_open:
        message = "it states no teacher_precision, so the machine decides in which precision teachers run"
        yield Finding(place, message, refutes=False)
    elif lock.teacher_precision is not None and not is_open:
        message = "it states a teacher_precision, but the recipe leaves none open"
        yield contradiction(place, message, lock.teacher_precision, "none")
    if claim.run is not None and lock.teacher_precision is not None:
        used = open_run(claim.run).record.teacher_precision
        if used != lock.teacher_precision:
            message = "not the teacher_precision that the run's record names"
            yield contradiction(place, message, lock.teacher_precision, used or "none")


def _row_findings(recipe: Recipe, rows: Sequence[Row]) -> Iterator[Finding]:
    wanted = variants(recipe)
    own = [row.variant for row in rows if row.variant is not None]
    if sorted(own) != sorted(wanted):
        yield contradiction(
            "results.json", "not the recipe's students and controls", listed(own), listed(wanted)
        )
    teachers = [f"teacher {one.name}" for one in recipe.teachers if not one.is_only_read]
    adapted = [
        f"teacher {one.name}, adapted" for one in recipe.teachers if one.adapt and not one.is_only_read
    ]
    names = [row.name for row in rows if row.variant is None]
    if sorted(names) != sorted([*teachers, *adapted]) or len({row.name for row in rows}) < len(rows):
        yield contradiction(
            "results.json",
            "not the recipe's teachers",
            listed(row.name for row in rows),
            listed([*teachers, *adapted]),
        )
    sizes = {row.parameters: row.name for row in rows if row.variant is not None}
    if len(sizes) > 1:
        message = (
            f"{listed(sizes.values())} differ in parameters, though the recipe gives them one architecture"
        )
        yield contradiction("results.json", message, *[*sizes][:2])
    for row in rows:
        if row.variant is not None and row.name not in (row.variant, "distilled student"):
            yield contradiction(row.name, "a row's name is not that of its variant", row.name, row.variant)
        kind = "student" if row.variant == "student" else "control"
        if row.variant is None:
            kind = "adapted" if row.name in adapted else "teacher"
        seeds = () if row.variant is None else recipe.seeds
        if row.seeds != seeds:
            message = "its seeds are not the recipe's"
            yield contradiction(row.name, message, listed(row.seeds), listed(seeds))
        if row.kind != kind:
            yield contradiction(row.name, "another kind of row than its name says", row.kind, kind)


def _weights_findings(claim: Claim) -> Iterator[Finding]:
    """What was scored is what the lock says was trained, with one tokenizer."""
    lock, tokenizers = claim.lock, dict[str, str]()
    for row in claim.rows:
        if len(row.of) != len(row.scores):
            message = "the scored weights are not recorded, so the scores are tied to no model"
            yield Finding(row.name, message, refutes=bool(row.of))
            continue
        if row.variant is None:
            known = None if lock is None else lock.models.get(row.name.replace("teacher ", "teachers.", 1))
            is_copy = any(one.classes and row.name == f"teacher {one.name}" for one in claim.recipe.teachers)
            is_folder = known is None or known.commit is None or is_copy  # a copy has other names of classes
            pinned = None if known is None or is_folder else f"{known.id}@{known.commit}"
            if lock is not None and pinned != row.of[0].name:
                message = "not the commit that the lock names"
                yield contradiction(row.name, message, row.of[0].name or "", pinned or "")
            continue
        for seed, model in zip(row.seeds, row.of, strict=True):
            if model.name is not None:
                yield contradiction(
                    f"{row.name}, seed {seed}", "it was trained here, not read", model.name, ""
                )
            tokenizers.setdefault(model.tokenizer, f"{row.name}, seed {seed}")
            for file, claimed in model.weights.items():
                path = f"students/{row.variant}/seed-{seed}/model/{file}"
                locked = None if lock is None else lock.outputs.get(path)
                if lock is not None and lock.outputs and locked != claimed:
                    message = "not the weights that the lock names"
                    yield contradiction(f"{row.name}, seed {seed}", message, claimed, locked or "")
            if not model.weights:
                yield Finding(f"{row.name}, seed {seed}", "it was scored without weights")
    if len(tokenizers) > 1:
        message = f"the tokenizers of {listed(tokenizers.values())} differ"
        yield contradiction("results.json", message, *[*tokenizers][:2])
    known = None if lock is None else lock.models.get("student.tokenizer")
    if known is not None and known.identity is not None and tokenizers and known.identity not in tokenizers:
        yield contradiction(
            "recipe.lock", "its tokenizer is not the scored one", known.identity, next(iter(tokenizers))
        )


def _pairing_findings(table: ResultsTable) -> Iterator[Finding]:
    """All rows, and all seeds of a row, were scored on the same examples of every task, with one chance."""
    for metric in table.metrics:
        having = [row for row in table.rows if (row.name, metric) in table.samples]
        first = table.results_of(having[0], metric)
        for row in having:
            own = table.results_of(row, metric)
            place = f"{row.name}: {metric.name}"
            for fault in faults_of(table, own, first, metric):
                yield Finding(place, f"not the examples of {having[0].name}: {fault}")
            for name in ("choices", "chance"):
                values = {*own[name].dropna(), *first[name].dropna()}
                if len(values) > 1:
                    message = f"its {name} is not that of {having[0].name}, on the same examples"
                    yield contradiction(place, message, *(f"{value:g}" for value in sorted(values)[:2]))
    yield from _report_findings(table.rows)
    for metrics in _metrics_by_suite(table).values():
        if len(metrics) > 1:
            (one, own), (other, theirs) = [*metrics.items()][:2]
            unlike = sorted({m.name for m in {*one} ^ {*other}})
            yield Finding(f"{own}, {theirs}", f"only one of them has {listed(unlike)}")


def _metrics_by_suite(table: ResultsTable) -> dict[str, dict[tuple[Metric, ...], str]]:
    """By suite and label, each different set of metrics and the first row that has it, of those scored."""
    found: dict[str, dict[tuple[Metric, ...], str]] = {}
    for row in table.rows:
        by_suite: dict[str, list[Metric]] = {}
        for metric in table.metrics:
            if (row.name, metric) in table.samples:
                by_suite.setdefault(f"{metric.suite} {metric.entry}", []).append(metric)
        for suite, metrics in by_suite.items():
            kept = tuple(
                metric for metric in metrics if metric.metric not in ("interchange_accuracy", "kappa")
            )
            found.setdefault(suite, {}).setdefault(kept, row.name)
    return found


def _report_findings(rows: Sequence[Row]) -> Iterator[Finding]:
    """lm-eval asked all models the same in the same way."""
    first: dict[str, tuple[str, SuiteResult]] = {}
    for row, seed, results in _by_seed(rows):
        place = row.name if seed is None else f"{row.name}, seed {seed}"
        for result in results:
            if result.suite == "lm-eval":
                other, base = first.setdefault(result.label, (place, result))
                for name in _OF_HARNESS:
                    one, two = result.report.get(name), base.report.get(name)
                    unlike = first_difference(one, two, name) or first_difference(two, one, name)
                    if unlike is not None:
                        message = f"{unlike[0]} is not that of {other}"
                        yield contradiction(f"{place}: lm-eval", message, *unlike[1:])


def _repeat_findings(rows: Sequence[Row]) -> Iterator[Finding]:
    """Models with different weights do not have equal values in every example of a loss."""
    seen: dict[object, tuple[str, object]] = {}
    for row in rows:
        for at, results in enumerate(row.scores if len(row.of) == len(row.scores) else ()):
            model = tuple(sorted(row.of[at].weights.items())) or row.of[at].name
            place = f"{row.name}, seed {row.seeds[at]}" if row.seeds else row.name
            for result in results:
                for metric in _EXACT:
                    for task in dict.fromkeys(
                        score.task for score in result.scores if score.metric == metric
                    ):
                        values = values_of(result, task, metric)
                        key = (result.suite, result.label, task, metric, tuple(sorted(values.items())))
                        other = seen.setdefault(key, (place, model))
                        if len(values) > 1 and other[1] != model and "fine_tuning" not in result.report:
                            message = f"it has the values of {other[0]} in every example, with other weights"
                            yield Finding(f"{place}: {result.suite} {metric}", message)


def _derived_findings(claim: Claim, table: ResultsTable) -> Iterator[Finding]:
    """Means over seeds, intervals and other numbers that the file derives from its scores."""
    again = as_json(table, (), {})["rows"]
    for row, claimed, expected in zip(table.rows, claim.values["rows"], again, strict=True):
        places = [("estimates", claimed.get("estimates"), expected["estimates"])]
        for at, (suites, ours) in enumerate(zip(claimed["suites"], expected["suites"], strict=True)):
            seed = f"seed {row.seeds[at]}" if row.seeds else "scores"
            for one, own in zip(suites, ours, strict=True):
                places.append((f"{seed}: {own['suite']}", one["scores"], own["scores"]))
        for place, one, own in places:
            unlike = first_difference(one, own)
            if unlike is not None:
                where, found, wanted = unlike
                message = f"{where} does not follow from the scores"
                yield contradiction(f"{row.name}, {place}", message, str(found), str(wanted))


def _remark_findings(claim: Claim, table: ResultsTable) -> Iterator[Finding]:
    """The verdicts and notes are those that the scores give."""
    results = claim.results
    verdicts, notes = comparisons(table)
    if "verdicts" in claim.values:
        for claimed, expected in _unlike(results.verdicts, verdicts):
            yield contradiction("results.json", "a verdict that the scores do not give", claimed, expected)
    domains = claim.values.get("tokens_of_text_by_domain")
    counted = isinstance(domains, dict) and all(isinstance(count, int) for count in domains.values())
    expected_remarks = [
        *weak_teachers(table),
        *verdicts,
        *notes,
        *selection_remark(claim.recipe),
        *(text_remark(domains) if counted and isinstance(domains, dict) else []),
    ]
    for remark in expected_remarks:
        if remark not in results.remarks:
            yield contradiction("results.json", "a note that the scores give is missing", "", remark)
    for remark in results.remarks:
        if remark not in expected_remarks:
            yield Finding("results.json", f"a note that scores alone do not give: {remark}", refutes=False)


def _unlike(claimed: Sequence[str], expected: Sequence[str]) -> Iterator[tuple[str, str]]:
    size = max(len(claimed), len(expected))
    padded = ([*lines, *[""] * (size - len(lines))] for lines in (claimed, expected))
    return ((one, other) for one, other in zip(*padded, strict=True) if one != other)
