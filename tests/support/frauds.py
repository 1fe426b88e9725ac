"""Claims that are not true, as edits of the files of one honest run.

An edit gets the ``results.json`` of the run, and its lock as values; both are written back with the lock
fitted to the results, as a forger would do. ``follow`` does more: it computes again all that follows from the
per-example values.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stlm_kd.artifacts.hashing import sha256
from stlm_kd.artifacts.results import Row
from stlm_kd.artifacts.saved_results import read_results
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.errors import DataError
from stlm_kd.pipeline.summary import comparisons, weak_teachers
from stlm_kd.publishing.verify.recompute import recomputed
from stlm_kd.recipe import load
from stlm_kd.recipe.lock import read_lock
from stlm_kd.recipe.yaml import dump, parse
from stlm_kd.reporting.model_card import RecipeFacts, recipe_card
from stlm_kd.reporting.tables.results import as_json

Values = dict[str, Any]
Edit = Callable[[Values, Values], None]
TEACHER, STUDENT, CONTROL = range(3)
FILES = ("recipe.yaml", "recipe.lock", "results.json", "README.md")
LINKED = ("students", "teachers.json", "run.json")


def claim_of(run: Path, folder: Path) -> Path:
    """A copy of a run with its own results and lock, and the run's models by a link."""
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes((run / name).read_bytes())
    for name in LINKED:
        if (run / name).exists():
            (folder / name).symlink_to(run / name)
    return folder


def edited(folder: Path, edit: Edit, *, fit: bool = True, follows: bool = False) -> Path:
    """Apply an edit to a claim."""
    results, lock = folder / "results.json", folder / "recipe.lock"
    values, locked = json.loads(results.read_text()), parse(lock.read_text()).plain()
    edit(values, locked)
    results.write_text(json.dumps(values))
    if follows:
        follow(results)
    if fit:
        locked["results"] = f"sha256:{sha256(results)}"
    lock.write_text(dump(locked))
    if follows:
        write_card(folder)
    return folder


def write_card(folder: Path) -> None:
    """Write the card that a recipe's lock and results have when they are pushed."""
    results, lock = (folder / name for name in ("results.json", "recipe.lock"))
    recipe, found = load(str(folder), is_stored=True), read_results(results)
    facts = RecipeFacts(
        name="tiny",
        address="hf://a/tiny",
        recipe=recipe,
        purpose="",
        lock=read_lock(lock.read_text()),
        pins=found.pins,
        results=found,
    )
    card = f"{recipe_card(facts)}\n| model | address |\n|---|---|\n| a | hf://a/b |\n"
    (folder / "README.md").write_text(card)


def follow(results: Path) -> None:
    """Compute all that follows from the per-example values of a file again, and write it."""
    values, rows = json.loads(results.read_text()), read_results(results).rows
    adapted = {row.name for row in rows if row.kind == "adapted"}
    again = [replace(_followed(row), teaches=f"{row.name}, adapted" not in adapted) for row in rows]
    table = ResultsTable(again)
    verdicts, notes = comparisons(table)
    selection = [one for one in values["remarks"] if one.startswith("train.keep")]
    remarks = [*weak_teachers(table), *verdicts, *notes, *selection]
    domains = values["tokens_of_text_by_domain"]
    found = as_json(table, remarks, domains, verdicts=verdicts)
    results.write_text(json.dumps({**found, "pins": values["pins"]}))


def _followed(row: Row) -> Row:
    scores = []
    for suites in row.scores:
        found = []
        for result in suites:
            try:
                again = {(s.task, s.metric): s for s in recomputed(result).scores}
            except DataError:
                again = {}
            new = tuple(again.get((s.task, s.metric), s) for s in result.scores)
            report: Any = copy.deepcopy(result.report)
            for one in new if result.suite == "lm-eval" else ():
                report["results"][one.task][f"{one.metric},none"] = one.value
            found.append(replace(result, scores=new, report=report))
        scores.append(tuple(found))
    return replace(row, scores=tuple(scores))


def suite(values: Values, row: int, seed: int = 0, name: str = "perplexity") -> Values:
    """A suite's result of a row and seed."""
    return next(one for one in values["rows"][row]["suites"][seed] if one["suite"] == name)


def score(result: Values, metric: str) -> Values:
    """The first score in a metric."""
    return next(one for one in result["scores"] if one["metric"] == metric)


def _edited_score(values: Values, lock: Values) -> None:
    score(suite(values, STUDENT), "bits_per_byte")["value"] -= 0.1


def _edited_task(values: Values, lock: Values) -> None:
    score(suite(values, STUDENT, name="lm-eval"), "acc")["value"] += 0.05


def _edited_estimate(values: Values, lock: Values) -> None:
    next(iter(values["rows"][STUDENT]["estimates"].values()))["mean"] -= 0.1


def _edited_interval(values: Values, lock: Values) -> None:
    next(iter(values["rows"][CONTROL]["estimates"].values()))["half_width"] = 0.001


def _edited_stderr(values: Values, lock: Values) -> None:
    score(suite(values, STUDENT), "bits_per_byte")["stderr"] /= 3


def _other_seeds(values: Values, lock: Values) -> None:
    values["rows"][STUDENT]["seeds"] = [7, 8]


def _dropped_seed(values: Values, lock: Values) -> None:
    for row in values["rows"][STUDENT:]:
        row["seeds"], row["suites"], row["of"] = row["seeds"][:1], row["suites"][:1], row["of"][:1]


def _dropped_seed_in_lock(values: Values, lock: Values) -> None:
    _dropped_seed(values, lock)
    lock["seeds"] = lock["seeds"][:1]


def _best_seed_for_all(values: Values, lock: Values) -> None:
    row = values["rows"][STUDENT]
    row["suites"][1] = copy.deepcopy(row["suites"][0])


def _other_text_in_one(values: Values, lock: Values) -> None:
    report = suite(values, STUDENT)["report"]
    report["documents"] += 1


def _shuffled(values: Values, lock: Values) -> None:
    _reverse(suite(values, STUDENT)["examples"])


def _reverse(examples: list[list[Any]], task: str | None = None) -> None:
    own = [one for one in examples if task in (None, one[0])]
    for one, value in zip(own, [one[3] for one in own][::-1], strict=True):
        one[3] = value


def _cut(values: Values, lock: Values) -> None:
    result = suite(values, STUDENT, name="lm-eval")
    task = result["examples"][0][0]
    own = [one for one in result["examples"] if one[0] == task]
    wrong = next(one for one in own if one[3] == min(each[3] for each in own))
    result["examples"].remove(wrong)


def _cut_with_texts(values: Values, lock: Values) -> None:
    for row in range(len(values["rows"])):
        for seed in range(len(values["rows"][row]["suites"])):
            result = suite(values, row, seed, "lm-eval")
            task = result["examples"][0][0]
            result["examples"] = [one for one in result["examples"] if (one[0], one[1]) != (task, "0")]
    for texts in values["texts"].values():
        for task, hashes in texts.items():
            if task != "text" and task == result["examples"][0][0]:
                hashes.pop("0", None)


def _twice(values: Values, lock: Values) -> None:
    result = suite(values, STUDENT, name="lm-eval")
    result["examples"].append(max(result["examples"], key=lambda one: one[3]))


def _other_weights(values: Values, lock: Values) -> None:
    values["rows"][STUDENT]["of"].reverse()


def _no_weights(values: Values, lock: Values) -> None:
    values["rows"][STUDENT]["of"][0]["weights"] = {}


def _control_as_student(values: Values, lock: Values) -> None:
    for key in ("suites", "of"):
        rows = values["rows"]
        rows[STUDENT][key], rows[CONTROL][key] = rows[CONTROL][key], rows[STUDENT][key]


def _edited_verdict(values: Values, lock: Values) -> None:
    (before, *_) = values["verdicts"]
    number = before.rpartition(": ")
    after = f"{number[0]}: better"
    values["verdicts"][0] = after
    values["remarks"][values["remarks"].index(before)] = after


def _no_warning(values: Values, lock: Values) -> None:
    warnings = [one for one in values["remarks"] if one not in values["verdicts"]]
    values["remarks"].remove(warnings[0])


def _stale_lock(values: Values, lock: Values) -> None:
    lock["recipe"] = f"sha256:{'0' * 64}"


def _other_tokenizer(values: Values, lock: Values) -> None:
    values["rows"][STUDENT]["of"][1]["tokenizer"] = "0" * 64


def _edited_hash(values: Values, lock: Values) -> None:
    result = suite(values, STUDENT)
    own = copy.deepcopy(values["texts"][result["texts"]])
    own["text"]["0"] = "0" * 32
    result["texts"] = own


def texts_of_nothing(values: Values, lock: Values) -> None:
    suite(values, STUDENT)["texts"] = "0" * 32


def _missing_hash(values: Values, lock: Values) -> None:
    for texts in values["texts"].values():
        texts.get("text", {}).pop("0", None)


def _direction(values: Values, lock: Values) -> None:
    for row in values["rows"]:
        for suites in row["suites"]:
            for one in suites:
                for each in one["scores"]:
                    if each["metric"] == "bits_per_byte":
                        each["higher_is_better"] = True


def _chance(values: Values, lock: Values) -> None:
    score(suite(values, STUDENT, name="lm-eval"), "acc")["chance"] = 0.25


def _impossible(values: Values, lock: Values) -> None:
    for one in suite(values, STUDENT, name="lm-eval")["examples"]:
        one[3] = 1.5


def _invented_control(values: Values, lock: Values) -> None:
    values["rows"].append({**values["rows"][CONTROL], "name": "all-data", "variant": "all-data"})


def _no_control(values: Values, lock: Values) -> None:
    del values["rows"][CONTROL]


def _no_teacher(values: Values, lock: Values) -> None:
    del values["rows"][TEACHER]


def _no_suite(values: Values, lock: Values) -> None:
    for row in values["rows"]:
        row["suites"] = [[one for one in suites if one["suite"] != "lm-eval"] for suites in row["suites"]]


def _rescaled(values: Values, lock: Values) -> None:
    for one in suite(values, STUDENT, name="lm-eval")["scores"]:
        one["centred"] = 0.9


def _fewer_examples(values: Values, lock: Values) -> None:
    score(suite(values, STUDENT), "bits_per_byte")["examples"] += 100


def _edited_blocks(values: Values, lock: Values) -> None:
    report = suite(values, STUDENT)["report"]
    report["blocks"]["nats"] = [[one * 0.9 for one in row] for row in report["blocks"]["nats"]]


def _other_names(values: Values, lock: Values) -> None:
    values["rows"][STUDENT]["name"] = "the best student"


def _one_name(values: Values, lock: Values) -> None:
    values["rows"][STUDENT]["name"] = values["rows"][CONTROL]["name"]


def _invented_task(values: Values, lock: Values) -> None:
    for result in _all(values, "lm-eval"):
        (task,) = [one["task"] for one in result["scores"] if one["part_of"] is None]
        for part in ("results", "n-samples", "configs", "versions", "n-shot", "higher_is_better"):
            if task in result["report"].get(part, {}):
                result["report"][part]["invented"] = result["report"][part][task]
        own = next(one for one in result["scores"] if one["part_of"] is None)
        result["scores"].append({**own, "task": "invented"})
        result["report"]["group_subtasks"]["invented"] = result["report"]["group_subtasks"].get(task, [])


def _no_pieces(values: Values, lock: Values) -> None:
    for result in _all(values, "perplexity"):
        result["report"].pop("pieces")


def _secret_limit(values: Values, lock: Values) -> None:
    for result in _all(values, "lm-eval"):
        result["report"]["config"]["limit"] = None
        result["notes"] = [note for note in result["notes"] if "a trial" not in note]


def _told_limit(values: Values, lock: Values) -> None:
    for result in _all(values, "lm-eval"):
        result["report"]["config"]["limit"] = 20


def _all(values: Values, name: str) -> Iterator[Values]:
    for row in values["rows"]:
        for suites in row["suites"]:
            yield from (one for one in suites if one["suite"] == name)


def _fewer_parameters(values: Values, lock: Values) -> None:
    values["rows"][STUDENT]["parameters"] //= 2


def _named_teacher(values: Values, lock: Values) -> None:
    values["rows"][TEACHER]["of"][0]["name"] = f"big/model@{'0' * 40}"


def _named_student(values: Values, lock: Values) -> None:
    values["rows"][STUDENT]["of"][0]["name"] = f"big/model@{'0' * 40}"


# what only scoring again finds


def _fewer_parameters_of_all(values: Values, lock: Values) -> None:
    for row in values["rows"][STUDENT:]:
        row["parameters"] //= 2


def _better_losses(values: Values, lock: Values) -> None:
    for one in suite(values, STUDENT)["examples"]:
        one[3] *= 0.98
    blocks = suite(values, STUDENT)["report"]["blocks"]
    blocks["nats"] = [[value * 0.98 for value in row] for row in blocks["nats"]]
    suite(values, STUDENT)["report"]["nats"] *= 0.98


def _points_for_wrong(values: Values, lock: Values) -> None:
    for seed in range(2):
        wrong = [one for one in suite(values, STUDENT, seed, "lm-eval")["examples"] if one[3] < 1]
        for one in wrong[::3]:
            one[3] = 1.0


def _shuffled_task(values: Values, lock: Values) -> None:
    result = suite(values, STUDENT, name="lm-eval")
    for task in dict.fromkeys(one[0] for one in result["examples"]):
        _reverse(result["examples"], task)


def _teacher_as_student(values: Values, lock: Values) -> None:
    values["rows"][STUDENT]["suites"][0], values["rows"][TEACHER]["suites"][0] = (
        values["rows"][TEACHER]["suites"][0],
        values["rows"][STUDENT]["suites"][0],
    )


def _scores_of_control(values: Values, lock: Values) -> None:
    rows = values["rows"]
    rows[STUDENT]["suites"], rows[CONTROL]["suites"] = rows[CONTROL]["suites"], rows[STUDENT]["suites"]


def _swapped_seeds(values: Values, lock: Values) -> None:
    values["rows"][STUDENT]["suites"].reverse()


def _other_texts(values: Values, lock: Values) -> None:
    for texts in values["texts"].values():
        for hashes in texts.values():
            for name in hashes:
                hashes[name] = hashes[name][::-1]


def _other_weights_and_lock(values: Values, lock: Values) -> None:
    weights = values["rows"][STUDENT]["of"][0]["weights"]
    for file in weights:
        weights[file] = f"sha256:{'0' * 64}"
        lock["outputs"][f"students/student/seed-1/model/{file}"] = weights[file]


def _tokenizer_of_all(values: Values, lock: Values) -> None:
    for row in values["rows"][STUDENT:]:
        for one in row["of"]:
            one["tokenizer"] = "0" * 64
    lock["models"]["student.tokenizer"]["identity"] = "0" * 64


def _chance_of_all(values: Values, lock: Values) -> None:
    for result in _all(values, "lm-eval"):
        for one in result["scores"]:
            one["chance"] = 0.25


@dataclass(frozen=True)
class Fraud:
    """An edit, what is said of it, and whether the forger computes again all that follows."""

    edit: Edit
    said: str
    follows: bool = False


IN_FILES: Mapping[str, Fraud] = {
    "edited score": Fraud(_edited_score, "its value is not that of its examples"),
    "edited score of a group": Fraud(_edited_task, "its value is not that of its examples"),
    "edited estimate": Fraud(_edited_estimate, "mean does not follow from the scores"),
    "edited interval": Fraud(_edited_interval, "half_width does not follow from the scores"),
    "edited standard error": Fraud(_edited_stderr, "its standard error is not that of its examples"),
    "other seeds": Fraud(_other_seeds, "its seeds are not the recipe's"),
    "one seed dropped": Fraud(_dropped_seed, "its seeds are not the recipe's"),
    "one seed dropped in the lock too": Fraud(_dropped_seed_in_lock, "recipe.lock: its seeds are not"),
    "the best seed for all": Fraud(_best_seed_for_all, "in every example, with other weights", follows=True),
    "one row on other text": Fraud(_other_text_in_one, "not the examples of", follows=True),
    "shuffled losses": Fraud(_shuffled, "not that of its examples"),
    "shuffled losses that fit": Fraud(_shuffled, "its blocks of text", follows=True),
    "a wrong example cut": Fraud(_cut, "have no score", follows=True),
    "an example cut from all": Fraud(_cut_with_texts, "has other examples", follows=True),
    "a right example twice": Fraud(_twice, "is there twice"),
    "weights of other seeds": Fraud(_other_weights, "not the weights that the lock names"),
    "no weights": Fraud(_no_weights, "scored without weights"),
    "control and student exchanged": Fraud(
        _control_as_student, "not the weights that the lock", follows=True
    ),
    "edited verdict": Fraud(_edited_verdict, "a verdict that the scores do not give"),
    "a warning dropped": Fraud(_no_warning, "a note that the scores give is missing"),
    "stale lock": Fraud(_stale_lock, "the lock of another recipe"),
    "one seed with another tokenizer": Fraud(_other_tokenizer, "the tokenizers of .* differ"),
    "edited hash of a text": Fraud(_edited_hash, "the texts of 1 of .* examples differ", follows=True),
    "an example without text": Fraud(_missing_hash, "have no text", follows=True),
    "the other direction": Fraud(_direction, "less is better in this metric"),
    "another chance in one row": Fraud(_chance, "its chance is not that of"),
    "impossible values": Fraud(_impossible, "outside 0 to 1", follows=True),
    "an invented control": Fraud(_invented_control, "not the recipe's students and controls"),
    "a control dropped": Fraud(_no_control, "not the recipe's students and controls"),
    "a teacher dropped": Fraud(_no_teacher, "not the recipe's teachers"),
    "a suite dropped": Fraud(_no_suite, "not the recipe's suites", follows=True),
    "another name of a row": Fraud(_other_names, "a row's name is not that of its variant"),
    "one name of two rows": Fraud(_one_name, "not the recipe's teachers|name is not that"),
    "an invented task": Fraud(_invented_task, "scores of invented, which the recipe does not ask for"),
    "facts dropped from a report": Fraud(_no_pieces, "its report lacks what its scores follow from"),
    "rescaled score": Fraud(_rescaled, "centred does not follow"),
    "another number of examples": Fraud(_fewer_examples, "number of examples is not that"),
    "edited blocks of text": Fraud(_edited_blocks, "its blocks of text"),
    "a smaller student than its control": Fraud(_fewer_parameters, "differ in parameters", follows=True),
    "a teacher with a name": Fraud(_named_teacher, "not the commit that the lock names"),
    "a student with a name": Fraud(_named_student, "trained here, not read"),
    "a trial called whole": Fraud(_secret_limit, "calls itself whole"),
    "a limit that the recipe lacks": Fraud(_told_limit, "not the recipe's limit"),
}
"""Found in the files."""

BY_SCORING: Mapping[str, Fraud] = {
    "all losses a little better": Fraud(_better_losses, "not the score of these weights|other values"),
    "points for wrong answers": Fraud(_points_for_wrong, "other values|not the score"),
    "shuffled answers": Fraud(_shuffled_task, "have other values"),
    "teacher's scores for the student": Fraud(_teacher_as_student, "other values|not the score"),
    "control's scores for the student": Fraud(_scores_of_control, "other values|not the score"),
    "scores of the seeds exchanged": Fraud(_swapped_seeds, "other values|not the score"),
    "other texts": Fraud(_other_texts, "are others than claimed"),
    "other weights, also in the lock": Fraud(_other_weights_and_lock, "its weights are none of those"),
    "fewer parameters": Fraud(_fewer_parameters_of_all, "another number of parameters"),
    "another tokenizer": Fraud(_tokenizer_of_all, "tokenizer is not the one"),
    "another chance in all rows": Fraud(_chance_of_all, "its chance is another"),
}
"""Consistent in themselves; found by scoring the weights again."""

# what only training again finds


def _invented(values: Values, lock: Values) -> None:
    """Weights that were never trained, with losses that nothing so small has."""
    _of_other_weights(values, lock)
    for row in range(STUDENT, len(values["rows"])):
        for seed in range(len(values["rows"][row]["of"])):
            result = suite(values, row, seed)
            for one in result["examples"]:
                one[3] *= 0.02
            blocks = result["report"]["blocks"]
            blocks["nats"] = [[value * 0.02 for value in each] for each in blocks["nats"]]
            result["report"]["nats"] *= 0.02


def _of_other_weights(values: Values, lock: Values) -> None:
    """As if another recipe had been trained: other weights, with scores that may well be."""
    for row in range(STUDENT, len(values["rows"])):
        for seed, of in enumerate(values["rows"][row]["of"]):
            variant = values["rows"][row]["variant"]
            of["weights"]["model.safetensors"] = f"sha256:{row}{seed}{'0' * 62}"
            path = f"students/{variant}/seed-{seed + 1}/model/model.safetensors"
            lock["outputs"][path] = of["weights"]["model.safetensors"]


BY_TRAINING: Mapping[str, Fraud] = {
    "an invented run": Fraud(_invented, "outside what 2 claimed seeds give"),
    "weights of another recipe": Fraud(_of_other_weights, "within noise"),
}
"""Found by training again: refuted, or the weights are named as others."""
