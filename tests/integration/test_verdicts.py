"""Verdicts: their requirements, wording and limits; each faulty case next to a sound one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from stlm_kd.artifacts.results import ExampleScore, Json, Score, SuiteResult
from stlm_kd.comparison.compare import compare
from stlm_kd.comparison.metrics import Metric
from stlm_kd.comparison.resampling import resampled_blocks
from stlm_kd.comparison.smallest import DEFAULTS, Smallest
from stlm_kd.comparison.verdicts import Compared, verdict_of
from stlm_kd.errors import DataError, UsageError
from stlm_kd.eval.language_modeling.likelihood import ScoredText
from stlm_kd.eval.language_modeling.perplexity import text_result
from stlm_kd.eval.language_modeling.text_blocks import TextBlocks
from stlm_kd.statistics import Difference, from_resamples
from tests.support.compared import classified, read_text, run_folder, score_file, seeds_of, whole_run
from tests.support.road import done, stlm_kd

ACCURACY = Metric("classification", "", "examples", "accuracy", True)
NOVELS = 4
"""Documents of some 200 blocks each."""


@pytest.mark.parametrize(
    ("mean", "half", "p", "equivalence", "words"),
    [
        (0.05, 0.02, 0.01, 1.0, "better"),
        (0.05, 0.045, 0.03, 1.0, "better (perhaps by less than 0.01)"),
        (-0.05, 0.02, 0.01, 1.0, "worse"),
        (0.004, 0.002, 0.01, 0.01, "equivalent (not 0, but below 0.01)"),
        (0.009, 0.004, 0.01, 0.2, "within noise (not 0, but perhaps below 0.01)"),
        (0.0, 0.003, 0.9, 0.001, "equivalent"),
        (0.002, 0.05, 0.9, 0.3, "within noise"),
        (0.05, 0.06, 0.08, 1.0, "within noise"),
        (0.0, 0.003, 0.9, None, "within noise"),
        (-0.00002, 0.00001, 0.001, 0.001, "equivalent (not 0, but below 0.01)"),
    ],
)
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_truth_table_of_verdicts(
    mean: float, half: float, p: float, equivalence: float | None, words: str, higher_is_better: bool
) -> None:
    difference = Difference(mean, mean - half, mean + half, p)
    verdict, limit = verdict_of(
        difference,
        corrected_p=p,
        equivalence_p=equivalence,
        smallest=0.01,
        higher_is_better=higher_is_better,
    )
    if not higher_is_better:
        words = words.replace("better", "WORSE").replace("worse", "better").replace("WORSE", "worse")
    assert words == (f"{verdict} ({limit})" if limit else verdict)


def test_a_difference_that_four_decimals_do_not_show_is_never_better() -> None:
    for asked in (Smallest(), Smallest(every=0.0), Smallest({"accuracy": 0.0})):
        smallest = asked.of(replace(ACCURACY, metric="strange"))
        difference = Difference(-0.00004, -0.00005, -0.00003, 1e-9)
        verdict, _ = verdict_of(
            difference, corrected_p=1e-9, equivalence_p=None, smallest=smallest, higher_is_better=True
        )
        assert verdict == "within noise"


def test_the_smallest_difference_is_asked_for_by_name_or_for_all() -> None:
    bits = Metric("perplexity", "", "text", "bits_per_byte", False)
    assert (Smallest().of(ACCURACY), Smallest().of(bits)) == (0.01, 0.01)
    asked = Smallest.read(["accuracy=.05", ".002"])
    assert (asked.of(ACCURACY), asked.of(bits)) == (0.05, 0.002)
    assert Smallest.read([]) == Smallest() and all(0 < size <= 0.02 for size in DEFAULTS.values())
    for wrong in ("accuracy", "accuracy=-1", "nan", "accuracy=inf", "=", "x=y=1,5"):
        with pytest.raises(UsageError, match=r"expected METRIC=NUMBER or NUMBER, at least 0"):
            Smallest.read([wrong])
    with pytest.raises(UsageError, match="given twice"):
        Smallest.read(["a=1", "a=2"])


def test_the_smallest_difference_decides_what_is_better(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    words = ("compare", run, "--metric", "accuracy")
    verdicts = [
        {row["name"]: row["verdict"] for row in done(*words, *options)["comparisons"]}
        for options in ((), ("--smallest", "accuracy=.2"), ("--smallest", ".2"))
    ]
    assert verdicts[0] == {"teacher t": "better", "student": "better", "all-data": "within noise"}
    assert verdicts[1] == verdicts[2]
    assert verdicts[1] == {"teacher t": "better", "student": "within noise", "all-data": "equivalent"}
    refused = stlm_kd(*words, "--smallest", "acuracy=.2")
    assert refused.exit_code == 2 and "did you mean accuracy?" in refused.stderr


def test_a_report_takes_the_smallest_difference_as_compare_does(tmp_path: Path) -> None:
    run = Path(whole_run(tmp_path / "run"))
    for name in ("recipe.yaml", "table.txt"):
        (run / name).write_text("")
    page = tmp_path / "page.html"
    words = ("report", str(run), "--html", str(page))
    for options, is_equivalent in ((), False), (("--smallest", "accuracy=.5"), True):
        assert stlm_kd(*words, *options).exit_code == 0
        rows = [part.partition("</tr>")[0] for part in page.read_text().split("<tr>")]
        found = [row for row in rows if "all-data" in row and "accuracy" in row]
        assert found and any("equivalent" in row for row in found) == is_equivalent
    refused = stlm_kd(*words, "--smallest", "acuracy=.2")
    assert refused.exit_code == 2 and "did you mean accuracy?" in refused.stderr


def test_one_seed_of_a_training_has_no_verdict_and_three_have(tmp_path: Path) -> None:
    for count, expected in ((1, {"not known"}), (3, {"better"})):
        rows = {
            "student": ("student", seeds_of(0.97, 10, count)),
            "no-teacher": ("control", seeds_of(0.5, 20, count)),
        }
        found = compare([run_folder(tmp_path / str(count), rows)])
        assert {one.verdict for one in found.differences} == expected
        for one in found.differences:
            assert one.evidence.difference is not None and one.evidence.difference.p < 0.05
            assert (one.corrected_p is None) == (count == 1)
            assert one.limit == ("one seed of a training" if count == 1 else "")


def test_one_seed_against_a_single_model_or_several_seeds_has_none_either(tmp_path: Path) -> None:
    rows = {
        "teacher t": ("teacher", seeds_of(0.97, 50, 1)),
        "student": ("student", seeds_of(0.5, 10, 1)),
    }
    found = compare([run_folder(tmp_path / "one", rows)], baseline="teacher t", only=["accuracy"])
    assert [one.words for one in found.differences] == ["not known (one seed of a training)"]
    models = {f"a/seed-{seed}": [classified(0.5, seed)] for seed in (1, 2, 3)}
    path = score_file(tmp_path / "s.json", {**models, "b/seed-1": [classified(0.97, 9)]})
    assert {one.verdict for one in compare([path]).differences} == {"not known"}


def test_a_verdict_of_single_models_speaks_of_these(tmp_path: Path) -> None:
    models = {"a": [classified(0.5, 1)], "b": [classified(0.9, 2)]}
    found = compare([score_file(tmp_path / "s.json", models)], only=["accuracy"])
    assert [one.words for one in found.differences] == ["better (of these two models)"]
    assert "of these two models" in " ".join(stlm_kd("compare", str(tmp_path / "s.json")).stdout.split())


def test_a_single_fine_tuning_has_no_verdict(tmp_path: Path) -> None:
    def tuned(accuracy: float, seed: int) -> SuiteResult:
        found = classified(accuracy, seed)
        return replace(found, report={**found.report, "fine_tuning": {"seed": seed}})

    path = score_file(tmp_path / "s.json", {"a": [tuned(0.5, 1)], "b": [tuned(0.95, 1)]})
    assert {one.words for one in compare([path]).differences} == {"not known (one fine-tuning)"}
    several = {name: [tuned(share, seed) for seed in (1, 2, 3)] for name, share in (("a", 0.5), ("b", 0.95))}
    path = score_file(tmp_path / "t.json", several)
    assert {one.verdict for one in compare([path], only=["accuracy"]).differences} == {"better"}


def scored(values: Sequence[float], rows: npt.NDArray[np.float64] | None = None) -> list[list[SuiteResult]]:
    """Seeds of a metric, with examples or without."""
    found = []
    for place, value in enumerate(values):
        examples = () if rows is None else tuple(
            ExampleScore("t", str(at), "acc", float(one)) for at, one in enumerate(rows[place])
        )  # fmt: skip
        found.append([SuiteResult("s", (Score("t", "acc", value, None, 100),), examples)])
    return found


def test_seeds_without_examples_have_no_verdict_and_with_them_have_one(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sides = [(generator.random((3, 300)) < share).astype(float) for share in (0.5, 0.9)]
    for place, told in enumerate((False, True)):
        first, second = (scored(side.mean(1).tolist(), side if told else None) for side in sides)
        rows = {"no-teacher": ("control", first), "student": ("student", second)}
        (one,) = compare([run_folder(tmp_path / str(place), rows)]).differences
        assert one.words == ("better" if told else "not known (the noise of examples is not known)")


def test_identical_differences_over_seeds_are_no_certainty(tmp_path: Path) -> None:
    """Each seed of the student has one more example right than that of the control, of ten."""
    base = np.tile([1.0] * 7 + [0.0] * 3, (3, 1))
    better = base.copy()
    better[:, 7] = 1
    rows = {
        "no-teacher": ("control", scored([0.7] * 3, base)),
        "student": ("student", scored([0.8] * 3, better)),
    }
    (one,) = compare([run_folder(tmp_path / "run", rows)]).differences
    assert one.evidence.difference is not None and one.evidence.difference.p > 0.2
    assert one.verdict == "within noise"
    rows = {"no-teacher": ("control", scored([0.7] * 3)), "student": ("student", scored([0.8] * 3))}
    (one,) = compare([run_folder(tmp_path / "bare", rows)]).differences
    assert (one.evidence.difference, one.verdict) == (None, "not known")


def test_the_same_answers_on_few_examples_are_not_equivalent_and_on_many_are(tmp_path: Path) -> None:
    for size, verdict in ((20, "within noise"), (2000, "equivalent")):
        rows = (np.arange(size) % 3 > 0).astype(float)[None]
        models = {name: scored([float(rows.mean())], rows)[0] for name in "ab"}
        models["b"] = [replace(models["b"][0], notes=("not the same result",))]
        (one,) = compare([score_file(tmp_path / f"{size}.json", models)]).differences
        assert one.verdict == verdict


def novels(generator: np.random.Generator, shift: float, noise: float, *, size: int = 200) -> SuiteResult:
    """Four novels of blocks of 1024 bytes; a seed's loss is shifted, and varies slowly along each."""
    documents = []
    for place in range(NOVELS):
        own = np.random.default_rng(place).normal(700 + 100 * place, 60, size)
        nats = own + 1024 * math.log(2) * (shift + noise * autocorrelated(generator, size, 0.4))
        blocks = TextBlocks(tuple(nats.tolist()), (1024,) * size)
        documents.append(ScoredText(math.fsum(nats), 300 * size, 1024 * size, blocks))
    return text_result(documents, 0, 64, 32)


def autocorrelated(generator: np.random.Generator, size: int, share: float) -> npt.NDArray[np.float64]:
    """An autoregressive series of mean 0 and deviation 1."""
    found = generator.normal(size=size)
    for place in range(1, size):
        found[place] = share * found[place - 1] + math.sqrt(1 - share**2) * found[place]
    return found


def test_four_novels_show_what_all_seeds_show(tmp_path: Path) -> None:
    """By documents, the difference of .135 that each of three seeds shows was within noise."""
    generator = np.random.default_rng(0)
    seeds = generator.normal(0, 0.02, size=(2, 3))
    for shift, verdicts in ((-0.135, {"better"}), (0.0, {"within noise", "equivalent"})):
        rows = {
            name: (kind, [[novels(generator, of + seed, 0.05)] for seed in own])
            for name, kind, of, own in (
                ("no-teacher", "control", 0.0, seeds[0]), ("student", "student", shift, seeds[1])
            )
        }  # fmt: skip
        found = compare([run_folder(tmp_path / str(shift), rows)])
        (one,) = found.differences
        assert one.verdict in verdicts and one.scope == ("on these documents",)
        assert one.evidence.num_examples > 8 and one.evidence.noise == "seeds, examples"
        (told,) = (note for note in found.notes if "verdicts apply to these documents" in note)
        assert "stretches of text are resampled within each; the column examples counts them" in told


@pytest.mark.parametrize(
    "share", [pytest.param(0.0, marks=pytest.mark.long), pytest.param(0.3, marks=pytest.mark.long), 0.6]
)
@pytest.mark.parametrize(
    "sizes",
    [pytest.param((300,) * 4, id="alike"), pytest.param((60, 100, 500), id="unlike", marks=pytest.mark.long)],
)
def test_the_interval_over_blocks_holds_where_neighbours_are_alike(
    share: float, sizes: tuple[int, ...]
) -> None:
    """Each document has a difference of its own, which is no noise of a verdict on these documents."""
    generator, missed, blocks_alone = np.random.default_rng(0), [], []
    for _ in range(150):
        own = generator.normal(0, 3, size=len(sizes))
        truth = float(np.average(own, weights=sizes))
        values = [of + autocorrelated(generator, size, share) for of, size in zip(own, sizes, strict=True)]
        mean = float(np.concatenate(values).mean())
        found = resampled_blocks(values, [np.ones(size) for size in sizes], resamples=1000)
        assert found is not None
        interval = from_resamples(mean, found[0], examples=found[1])
        missed.append(not interval.low <= truth <= interval.high)
        error = math.sqrt(sum(len(one) * one.var() for one in values)) / sum(sizes)
        blocks_alone.append(abs(mean - truth) > 1.96 * error)
    assert np.mean(missed) < 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / 150)
    assert share < 0.6 or np.mean(blocks_alone) > 0.2, "taking neighbours for independent misses often"


def test_many_documents_are_drawn_whole() -> None:
    """Their own differences count then: the interval is the one of a ratio of sums."""
    generator = np.random.default_rng(0)
    sizes = [np.full(int(count), 10.0) for count in generator.integers(1, 6, size=40)]
    values = [size * generator.normal(1, 0.5) for size in sizes]
    found = resampled_blocks(values, sizes)
    assert found is not None and found[1] == 40
    below, above = np.array([s.sum() for s in sizes]), np.array([v.sum() for v in values])
    ratio = above.sum() / below.sum()
    expected = math.sqrt(((above - ratio * below) ** 2).sum()) / below.sum()
    assert found[0].std() == pytest.approx(expected, rel=0.05)
    assert resampled_blocks([np.ones(1)], [np.ones(1)]) is None


def drawn_windows(shift: float, *, with_windows: int, documents: int = 20) -> SuiteResult:
    """Pseudo-perplexity of two windows of some of the documents, 100 bytes each."""
    nats = np.random.default_rng(0).normal(100, 5, size=(with_windows, 2)) + shift
    nats += np.random.default_rng(int(shift)).normal(size=nats.shape)
    bits = float(nats.sum() / math.log(2) / (100 * nats.size))
    score = Score("text", "pseudo_bits_per_byte", bits, None, nats.size, higher_is_better=False)
    blocks: Json = {"nats": nats.tolist(), "bytes": np.full(nats.shape, 100).tolist()}
    return SuiteResult("pseudo-perplexity", (score,), (), (), {"documents": documents, "blocks": blocks})


@pytest.mark.parametrize(("with_windows", "is_limited"), [(16, True), (20, False)])
def test_documents_count_by_their_drawn_windows(with_windows: int, is_limited: bool, tmp_path: Path) -> None:
    """Of 20 documents 16 have windows: these alone are resampled, each within."""
    models = {name: [drawn_windows(shift, with_windows=with_windows)] for name, shift in (("a", 0), ("b", 9))}
    found = compare([score_file(tmp_path / "s.json", models)])
    (one,) = found.differences
    limits = ("on these documents",) if is_limited else ()
    assert one.scope == ("of these two models", *limits)
    told = [note for note in found.notes if "verdicts apply to these documents" in note]
    assert [f"({with_windows})" in note for note in told] == [True] * is_limited


def test_the_interval_holds_over_windows_drawn_at_random() -> None:
    """A third of each document's blocks, whose neighbours stand up to several blocks apart."""
    generator, missed = np.random.default_rng(0), []
    for _ in range(150):
        values = [autocorrelated(generator, 300, 0.6)[generator.random(300) < 1 / 3] for _ in range(4)]
        found = resampled_blocks(values, [np.ones(len(one)) for one in values], resamples=1000)
        assert found is not None and found[2] == 4
        mean = float(np.concatenate(values).mean())
        interval = from_resamples(mean, found[0], examples=found[1])
        missed.append(not interval.low <= 0 <= interval.high)
    assert np.mean(missed) < 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / 150)


def lossy(kept: float | None, tokens: int, seed: int) -> SuiteResult:
    nats = np.random.default_rng(seed).uniform(200, 400, size=40)
    found = read_text(nats.tolist(), tokens=tokens)
    share: Mapping[str, Json] = {} if kept is None else {"bytes_kept": kept}
    return replace(found, report={**found.report, **share})


def test_lossy_tokenizers_are_refused_as_a_pair_unless_asked(tmp_path: Path) -> None:
    path = score_file(tmp_path / "s.json", {"cased": [lossy(None, 100, 0)], "uncased": [lossy(0.93, 80, 1)]})
    with pytest.raises(DataError, match=r"93\.00% with uncased's, 100\.00% with cased's\n.*--allow-lossy"):
        compare([path])
    assert stlm_kd("compare", path).exit_code == 1
    (row,) = done("compare", path, "--allow-lossy")["comparisons"]
    assert row["metric"] == "bits_per_byte"


@pytest.mark.parametrize("kept", [None, 1.0, 0.93])
def test_one_tokenizer_on_both_sides_is_never_refused(kept: float | None, tmp_path: Path) -> None:
    path = score_file(tmp_path / "s.json", {"a": [lossy(kept, 100, 0)], "b": [lossy(kept, 100, 1)]})
    assert len(compare([path]).differences) == 1


def test_notes_of_results_are_shown_with_their_rows(tmp_path: Path) -> None:
    for accuracy, other in ((1.0, 0.5), (0.8, 0.5)):
        noted = replace(classified(accuracy, 1), notes=("everywhere", *(["of a"] if accuracy == 1 else [])))
        models = {"a": [noted], "b": [replace(classified(other, 2), notes=("everywhere",))]}
        found = compare([score_file(tmp_path / f"{accuracy}.json", models)])
        assert "everywhere" in found.notes and ("a: of a" in found.notes) == (accuracy == 1)


@pytest.mark.parametrize("said", ["degenerate: predicts a single class", None])
def test_degenerate_models_are_named(said: str | None, tmp_path: Path) -> None:
    found = classified(0.8, 1)
    found = replace(found, scores=tuple(replace(score, degenerate=said) for score in found.scores))
    path = score_file(tmp_path / "s.json", {"a": [found], "b": [classified(0.7, 2)]})
    told = [note for note in compare([path], only=["accuracy"]).notes if "degenerate" in note]
    assert told == ([f"a: examples: {said}"] if said else [])


def test_one_difference_has_one_p_on_a_page(tmp_path: Path) -> None:
    """A run's own verdicts are corrected for other comparisons than those of the page."""
    from stlm_kd.reporting.run_page.gather import gather

    folder = Path(whole_run(tmp_path / "run"))
    content = json.loads((folder / "results.json").read_text())
    verdicts = ["accuracy: student - no-teacher = +0.1 (p 0.020)"]
    content |= {"remarks": ["first", *verdicts, "last"], "verdicts": verdicts}
    (folder / "results.json").write_text(json.dumps(content))
    for name in ("recipe.yaml", "table.txt"):
        (folder / name).write_text("")
    facts = gather([str(folder)])
    assert facts.comparison is not None and facts.runs[0].results.remarks == ("first", "last")
    content |= {"rows": content["rows"][:1]}
    (folder / "results.json").write_text(json.dumps(content))
    alone = gather([str(folder)])
    assert alone.comparison is None and alone.runs[0].results.remarks == ("first", *verdicts, "last")


def test_a_page_shows_the_p_of_what_its_verdict_claims(tmp_path: Path) -> None:
    found = compare([whole_run(tmp_path / "run")], only=["accuracy"], smallest=Smallest(every=0.2))
    by_name: dict[str, Compared] = {one.name: one for one in found.differences}
    assert by_name["all-data"].p == by_name["all-data"].equivalence_p != by_name["all-data"].corrected_p
    assert by_name["teacher t"].p == by_name["teacher t"].corrected_p
