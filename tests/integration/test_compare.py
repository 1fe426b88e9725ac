"""Comparing runs and files of scores: what is joined, what is refused, what is called a difference."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from seqeval import metrics

from stlm_kd.artifacts.results import ExampleScore, Json, Score, SuiteResult
from stlm_kd.comparison.compare import compare
from stlm_kd.comparison.entries import read_rows
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.errors import UsageError
from stlm_kd.eval.classification.metrics import regression_scores
from stlm_kd.eval.fine_tuning.entities import entity_scores
from stlm_kd.pipeline.run import open_run
from tests.support.compared import LABELS, classified, read_text, run_folder, score_file, seeds_of, whole_run
from tests.support.road import distilled, done, stlm_kd


@pytest.fixture
def run(tmp_path: Path) -> str:
    return whole_run(tmp_path / "run")


def test_a_large_difference_is_better_and_a_small_one_noise(run: str) -> None:
    found = compare([run], only=["accuracy"])
    assert found.baseline == "no-teacher"
    assert [(one.name, one.verdict) for one in found.differences] == [
        ("teacher t", "better"), ("student", "better"), ("all-data", "within noise")
    ]  # fmt: skip
    turned = compare([run], baseline="student", only=["accuracy"])
    assert {one.name: one.verdict for one in turned.differences} == {
        "teacher t": "better", "no-teacher": "worse", "all-data": "within noise"
    }  # fmt: skip


def test_shared_seeds_are_paired_and_noise_of_examples_is_added(run: str) -> None:
    found = next(one for one in compare([run], only=["accuracy"]).differences if one.name == "student")
    students, controls = ([classified(a, s + i) for i in range(3)] for a, s in ((0.85, 10), (0.65, 20)))
    values = [[one.score("examples", "accuracy").value for one in side] for side in (students, controls)]
    seeds_alone = stats.ttest_rel(*values)
    assert (found.seeds, found.evidence.num_examples) == ("3 paired", 300)
    assert found.evidence.noise == "seeds, examples"
    assert found.evidence.mean == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    assert found.evidence.difference is not None
    assert found.evidence.difference.p >= seeds_alone.pvalue * (1 - 1e-9)
    assert found.evidence.difference.low <= seeds_alone.confidence_interval().low + 1e-9
    examples = [
        np.mean([[row.value for row in one.examples] for one in side], 0) for side in (students, controls)
    ]
    assert found.evidence.of_examples is not None
    assert found.evidence.of_examples.p < 0.01 > stats.ttest_rel(*examples).pvalue
    assert [len(found.evidence.mcnemar), found.evidence.mcnemar[0].only_first] == [
        3, sum(a.value > b.value for a, b in zip(students[0].examples, controls[0].examples, strict=True))
    ]  # fmt: skip


def test_the_table_says_how_wide_few_seeds_are_and_the_correction(run: str) -> None:
    shown = stlm_kd("compare", run, "--metric", "accuracy").stdout
    assert "3 seeds is 2.48 sd either way; over 5 it would be 1.24" in " ".join(shown.split())
    assert "no-teacher (baseline)" in shown and "for 3 comparisons" in shown
    assert "within noise" in shown


def test_the_correction_counts_the_comparisons_that_are_made(run: str) -> None:
    every, one = compare([run]), compare([run], only=["accuracy"])
    assert len(every.differences) == 4 * len(one.differences) == 12
    for found in (every, one):
        for each in found.differences:
            assert each.evidence.difference is not None and each.corrected_p is not None
            assert each.corrected_p >= each.evidence.difference.p
    least = min(one.differences, key=lambda each: each.corrected_p or 0)
    same = next(each for each in every.differences if (each.name, each.metric) == (least.name, least.metric))
    assert (same.corrected_p or 0) > (least.corrected_p or 0)


def test_the_command_gives_json_and_writes_it(run: str, tmp_path: Path) -> None:
    found = done("compare", run, "--output", str(tmp_path / "new" / "c.json"))
    assert json.loads((tmp_path / "new" / "c.json").read_text()) == found
    assert found["baseline"] == "no-teacher"
    student = next(row for row in found["rows"] if row["name"] == "student")
    scores = student["scores"]["accuracy"]
    assert scores["mean"] == pytest.approx(np.mean(scores["values"]))
    assert scores["deviation"] == pytest.approx(np.std(scores["values"], ddof=1))
    assert scores["half_width"] == pytest.approx(2.484 * scores["deviation"], rel=1e-3)
    entry = next(row for row in found["comparisons"] if row["name"] == "student" and row["metric"] == "f1")
    (own,) = (one for one in compare([run]).differences if (one.name, one.metric.metric) == ("student", "f1"))
    assert (entry["num_examples"], entry["verdict"]) == (300, own.verdict)
    assert entry["difference"] == asdict(own.evidence)["difference"]


def test_metrics_that_are_no_means_are_paired_by_predictions_and_labels(tmp_path: Path) -> None:
    """Two models with the same mistakes: nothing of the noise of the examples is left."""
    first, other = classified(0.8, 1), classified(0.7, 2)
    path = score_file(tmp_path / "s.json", {"a": [first], "same": [first], "b": [other]})
    found = {(one.name, one.metric.metric): one for one in compare([path]).differences}
    for metric in ("f1", "macro_f1", "matthews"):
        same = found["same", metric].evidence.difference
        assert same is not None and (same.low, same.high, same.p) == (0, 0, 1)
        apart = found["b", metric].evidence.difference
        assert apart is not None
        errors = [one.score("examples", metric).stderr or 0 for one in (first, other)]
        assert apart.high - apart.low == pytest.approx(2 * 1.96 * math.hypot(*errors), rel=0.2)


def test_entities_are_paired_by_sentence(tmp_path: Path) -> None:
    """Two taggers that err on the same sentences differ surely; against a slower bootstrap by seqeval."""
    generator, ids = np.random.default_rng(0), [f"s{place}" for place in range(40)]
    labels = [[["B-PER", "B-LOC", "O"][tag] for tag in generator.integers(3, size=4)] for _ in ids]
    first = [["O"] * 4 if place < 12 else tags for place, tags in enumerate(labels)]
    other = [["O"] * 4 if place < 20 else tags for place, tags in enumerate(labels)]
    models = {
        name: [entity_scores(told, labels, task="t", ids=ids, suite="ner")]
        for name, told in (("a", first), ("b", other))
    }
    found = compare([score_file(tmp_path / "s.json", models)], only=["entity_f1", "entity_macro_f1"])
    for one, average in zip(found.differences, ("micro", "macro"), strict=True):
        chosen = [generator.integers(40, size=40) for _ in range(200)]
        drawn = [
            np.subtract(*(
                metrics.f1_score([labels[i] for i in places], [told[i] for i in places], average=average)
                for told in (other, first)
            ))
            for places in chosen
        ]  # fmt: skip
        difference = one.evidence.difference
        assert (one.evidence.num_examples, one.verdict) == (40, "worse") and difference is not None
        assert difference.high - difference.low == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.25)


def test_a_teacher_that_runs_share_is_counted_once(tmp_path: Path) -> None:
    def run_of(name: str, first: int) -> str:
        rows = {"teacher t": ("teacher", seeds_of(0.97, 50, 1)), "student": ("student", seeds_of(0.6, first))}
        return run_folder(tmp_path / name, rows)

    runs = [run_of("one", 10), run_of("two", 20), run_of("three", 30)]
    found = compare(runs, baseline="one: student", only=["accuracy"])
    p = {one.name: one.evidence.difference.p for one in found.differences if one.evidence.difference}
    assert [one.repeats for one in found.differences if one.name.endswith("teacher t")] == [
        "", "one: teacher t", "one: teacher t"
    ]  # fmt: skip
    names = ["one: teacher t", "two: student", "three: student"]
    in_order = sorted(names, key=p.__getitem__)
    steps = [min(1.0, (len(names) - rank) * p[name]) for rank, name in enumerate(in_order)]
    by_hand = {name: max(steps[: rank + 1]) for rank, name in enumerate(in_order)}  # Holm's correction
    expected = {name: by_hand.get(name, by_hand[names[0]]) for name in p}
    assert {one.name: one.corrected_p for one in found.differences} == expected
    shown = " ".join(stlm_kd("compare", *runs, "--baseline", "one: student").stdout.split())
    assert "for 12 comparisons" in shown
    assert "three: teacher t: the same results as one: teacher t, and shown and counted once" in shown
    assert (
        shown.count("│ one: teacher t │") == shown.count("│ three: student │") == 5
    )  # a mean, and four metrics
    assert "│ three: teacher t │" not in shown


def test_correlations_are_paired_too(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=80)
    ids = [*map(str, range(80))]
    models = {}
    for name, noise in (("good", 0.3), ("bad", 2.0)):
        predicted = labels + noise * generator.normal(size=80)
        result = regression_scores(predicted, labels, task="examples", ids=ids, suite="regression")
        known: dict[str, Json] = {"labels": dict(zip(ids, labels.tolist(), strict=True))}
        models[name] = [replace(result, report={**result.report, **known})]
    found = compare([score_file(tmp_path / "s.json", models)])
    assert {one.metric.metric: one.verdict for one in found.differences} == {
        "pearson": "worse", "spearman": "worse", "mean_squared_error": "worse"
    }  # fmt: skip
    assert {one.evidence.num_examples for one in found.differences} == {80}


def test_examples_in_another_order_are_joined_by_their_ids(tmp_path: Path) -> None:
    first, other = classified(0.8, 1), classified(0.7, 2)
    turned = replace(other, examples=other.examples[::-1])
    found = [
        compare([score_file(tmp_path / f"{place}.json", {"a": [first], "b": [each]})])
        for place, each in enumerate((other, turned))
    ]
    assert found[0].differences == found[1].differences


def test_scores_without_examples_are_taken_for_independent(tmp_path: Path) -> None:
    models = {name: [SuiteResult("s", (Score("t", "acc", value, 0.03, 100),))] for name, value in
              (("a", 0.5), ("b", 0.6))}  # fmt: skip
    found = compare([score_file(tmp_path / "s.json", models)])
    (one,) = found.differences
    assert one.evidence.difference is not None
    assert one.evidence.difference.p == pytest.approx(2 * stats.norm.sf(0.1 / math.hypot(0.03, 0.03)))
    assert one.evidence.noise == "examples, not paired"
    assert "errors are treated as independent" in found.notes[0]


def test_a_score_without_any_noise_has_no_verdict(tmp_path: Path) -> None:
    models = {name: [SuiteResult("s", (Score("t", "acc", 0.5, None, 1),))] for name in "ab"}
    (one,) = compare([score_file(tmp_path / "s.json", models)]).differences
    assert (one.evidence.difference, one.corrected_p, one.verdict) == (None, None, "not known")


def test_a_file_groups_the_seeds_of_a_model_by_their_folders(tmp_path: Path) -> None:
    models = {f"r/students/s/seed-{seed}": [classified(0.8, seed)] for seed in (2, 1)}
    path = score_file(tmp_path / "s.json", {**models, "r/other/seed-1/model": [classified(0.7, 3)], "x": [
        classified(0.7, 4)]})  # fmt: skip
    found = {one.name: one for one in read_rows([path])}
    assert {name: one.seeds for name, one in found.items()} == {
        "r/students/s": (1, 2), "r/other": (1,), "x": ()
    }  # fmt: skip
    assert found["r/students/s"].scores[0] == (classified(0.8, 1),)


def test_fine_tunings_of_one_seed_are_averaged_within_it(tmp_path: Path) -> None:
    tuned = {f"a/seed-{seed}": [classified(0.8, 10 * seed + k) for k in range(4)] for seed in (1, 2, 3)}
    path = score_file(tmp_path / "s.json", {**tuned, "b": [classified(0.6, 5)]})
    one = read_rows([path])[0]
    (metric,) = (metric for metric in compare([path]).metrics if metric.metric == "accuracy")
    expected = [np.mean([r.score("examples", "accuracy").value for r in found]) for found in tuned.values()]
    assert ResultsTable([one]).complete_values(one, metric) == pytest.approx(expected)


def test_the_fine_tunings_of_a_single_model_are_noise(tmp_path: Path) -> None:
    """Three of one model against three of another: by the examples alone the better one is sure to be so."""
    accuracies = {"a": (0.55, 0.6, 0.65), "b": (0.6, 0.7, 0.9)}

    def tuned(name: str, *, told: bool) -> list[SuiteResult]:
        found = [classified(share, ord(name) + 7 * place) for place, share in enumerate(accuracies[name])]
        facts = [{"fine_tuning": {"seed": place}} if told else {} for place in (1, 2, 3)]
        return [replace(one, report={**one.report, **fact}) for one, fact in zip(found, facts, strict=True)]

    for told in (True, False):
        models = {name: tuned(name, told=told) for name in "ab"}
        path = score_file(tmp_path / f"{told}.json", models)
        found = {one.metric.metric: one.evidence for one in compare([path]).differences}
        for metric in ("accuracy", "matthews"):
            first, other = (
                [one.score("examples", metric).value for one in models[name]] for name in ("b", "a")
            )
            test = stats.ttest_rel(first, other) if told else stats.ttest_ind(first, other, equal_var=False)
            evidence = found[metric]
            assert evidence.noise == "fine-tunings, examples"
            assert evidence.mean == pytest.approx(np.mean(first) - np.mean(other))
            assert evidence.difference is not None and evidence.of_examples is not None
            assert evidence.of_examples.p < 0.01 < 0.05 < test.pvalue <= evidence.difference.p + 1e-9
            assert evidence.difference.low <= test.confidence_interval().low + 1e-9
    row = next(row for row in done("compare", path)["rows"] if row["name"] == "b")
    errors = [one.score("examples", "accuracy").stderr or 0 for one in models["b"]]
    between = np.var([one.score("examples", "accuracy").value for one in models["b"]], ddof=1) / 3
    expected = math.sqrt(np.mean(np.square(errors)) + between)
    assert row["scores"]["accuracy"]["stderr_of_first"] == pytest.approx(expected)


def test_a_single_fine_tuning_is_told(tmp_path: Path) -> None:
    def tuned(accuracy: float, seed: int) -> SuiteResult:
        found = classified(accuracy, seed)
        return replace(found, report={**found.report, "fine_tuning": {"seed": 1}})

    models = {"a": [tuned(0.6, 1)], "b": [tuned(0.9, 2)]}
    found = compare([score_file(tmp_path / "s.json", models)], only=["accuracy"])
    for name in "ab":
        assert f"{name} was fine-tuned once: variation over fine-tunings is not included" in found.notes
    assert found.differences[0].evidence.noise == "examples"


def test_seeds_that_only_one_has_are_left_out_of_the_pairs(tmp_path: Path) -> None:
    rows = {"student": ("student", seeds_of(0.8, 10, 4)), "no-teacher": ("control", seeds_of(0.6, 20, 2))}
    found = compare([run_folder(tmp_path / "run", rows)], only=["accuracy"])
    assert found.differences[0].seeds == "2 paired"
    assert "student: differences are over the 2 seeds that both have" in found.notes


def test_documents_of_one_text_are_joined_whatever_the_tokenizer(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    nats = generator.uniform(200, 400, size=60)
    models = {
        "a": [read_text(nats.tolist())],
        "b": [read_text((nats - 5 + generator.normal(size=60)).tolist(), tokens=50)],
    }
    (one,) = compare([score_file(tmp_path / "s.json", models)]).differences
    assert one.metric.metric == "bits_per_byte" and one.verdict == "better"
    assert one.evidence.num_examples == 60
    assert one.evidence.difference is not None and one.evidence.difference.high < 0


def test_a_group_is_joined_over_the_examples_of_its_parts(tmp_path: Path) -> None:
    def grouped(seed: int) -> list[SuiteResult]:
        values = np.random.default_rng(seed).integers(2, size=(2, 50)).astype(float)
        scores = [Score("g", "acc", float(values.mean()), 0.05, 100)]
        scores += [
            Score(f"p{part}", "acc", float(row.mean()), 0.07, 50, part_of="g")
            for part, row in enumerate(values)
        ]
        rows = [
            ExampleScore(f"p{part}", str(place), "acc", float(value))
            for part, row in enumerate(values)
            for place, value in enumerate(row)
        ]
        return [SuiteResult("lm-eval", tuple(scores), tuple(rows))]

    (one,) = compare([score_file(tmp_path / "s.json", {"a": grouped(1), "b": grouped(2)})]).differences
    assert (one.metric.task, one.evidence.num_examples) == ("g", 100)
    assert one.evidence.difference is not None
    assert one.evidence.difference.p >= one.evidence.mcnemar[0].p


def test_a_score_that_is_not_finite_is_shown_and_not_compared(tmp_path: Path) -> None:
    models = {name: [SuiteResult("s", (Score("t", "acc", value, 0.1, 9), Score("t", "f1", 0.5, 0.1, 9)))] for
              name, value in (("a", 0.5), ("b", math.nan))}  # fmt: skip
    path = score_file(tmp_path / "s.json", models)
    result = stlm_kd("compare", path)
    assert "not finite" in result.stdout and "has a score that is not finite" in " ".join(
        result.stdout.split()
    )
    assert [row["metric"] for row in done("compare", path)["comparisons"]] == ["t f1"]


def test_rows_of_several_runs_bear_their_runs_names(run: str, tmp_path: Path) -> None:
    other = run_folder(tmp_path / "other", {"student": ("student", seeds_of(0.66, 40))})
    found = compare([other, run], only=["accuracy"])
    assert found.baseline == "other: student"
    assert {one.name for one in found.differences} == {
        "run: teacher t", "run: student", "run: no-teacher", "run: all-data"
    }  # fmt: skip
    assert compare([other, run], baseline="all-data").baseline == "run: all-data"
    with pytest.raises(UsageError, match="--baseline student: several rows"):
        compare([other, run], baseline="student")


def test_equal_students_are_called_different_in_at_most_five_percent_of_tables(tmp_path: Path) -> None:
    """Students of three seeds, whose skill varies with the seed, against a control of the same kind."""
    generator = np.random.default_rng(0)
    found = []
    for place in range(60):
        base = generator.random(len(LABELS)) < 0.6  # examples that are easy for all
        models = {}
        for name in ("base", "a", "b"):
            for seed in (1, 2, 3):
                skill = 0.5 + 0.1 * generator.normal()
                right = base | (generator.random(len(LABELS)) < skill)
                rows = tuple(ExampleScore("t", str(i), "acc", float(value)) for i, value in enumerate(right))
                score = Score("t", "acc", float(right.mean()), 0.02, len(right))
                models[f"{name}/seed-{seed}"] = [SuiteResult("s", (score,), rows)]
        verdicts = [
            one.verdict for one in compare([score_file(tmp_path / f"{place}.json", models)]).differences
        ]
        found.append(verdicts != ["within noise"] * 2)
    assert np.mean(found) < 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / len(found))


def test_runs_that_were_distilled_are_compared(place: Path, tmp_path: Path) -> None:
    pairs = "eval=[perplexity, {suite: lm-eval, tasks: [sample_minimal_pairs], limit: 4}]"
    folders = [
        distilled("plain", pairs, "seeds=[1,2]", f"train.steps={steps}", output_dir=tmp_path)
        for steps in (1, 6)
    ]
    found = done("compare", *map(str, folders))
    assert found["baseline"] == f"{folders[0].name}: student"
    compared = {row["metric"]: row for row in found["comparisons"]}
    assert compared.keys() == {"bits_per_byte", "sample_minimal_pairs acc"}
    for row in compared.values():
        assert (row["name"], row["seeds"]) == (f"{folders[1].name}: student", "2 paired")
    told = [row["scores"]["bits_per_byte"]["mean"] for row in found["rows"]]
    assert compared["bits_per_byte"]["mean"] == pytest.approx(told[1] - told[0])
    assert told[1] < told[0]
    assert compared["sample_minimal_pairs acc"]["num_examples"] == 36


def test_a_run_gives_its_scores_as_one_long_table(run: str) -> None:
    found = open_run(run).scores
    own = found[(found["model"] == "student") & (found["metric"] == "accuracy")]
    by_hand = own.dropna(subset="example").groupby("seed")["value"].mean()
    stored = own[own["example"].isna()].set_index("seed")["value"]
    assert by_hand.to_dict() == pytest.approx(stored.to_dict()) and [*stored.index] == [1, 2, 3]
    assert len(own) == 3 * 301


def test_a_comparison_is_a_table_of_verdicts_and_markdown(run: str) -> None:
    found = compare([open_run(run)], only=["accuracy"])
    verdicts = found.verdicts.set_index("model")
    for one in found.differences:
        assert one.evidence.difference is not None
        line = verdicts.loc[one.name]
        assert (line["difference"], line["low"], line["verdict"]) == (
            one.evidence.mean, one.evidence.difference.low, one.words
        )  # fmt: skip
    header, _, first, *_ = found.to_markdown().splitlines()
    assert header.startswith("| model - no-teacher | metric | difference |")
    assert first.startswith(f"| teacher t | accuracy | {verdicts['difference'].iloc[0]:.4f} |")
    odd = replace(found, differences=tuple(replace(one, name="a|b\nc") for one in found.differences))
    assert r"| a\|b c | accuracy |" in odd.to_markdown()
