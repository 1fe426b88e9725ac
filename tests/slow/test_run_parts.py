from __future__ import annotations

import errno
import math
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from stlm_kd.artifacts.hashing import hashed_anew
from stlm_kd.artifacts.reports import AdaptationReport
from stlm_kd.artifacts.results import Row, Score, SuiteResult
from stlm_kd.artifacts.saved_results import read_results
from stlm_kd.artifacts.stage_store import Stages, copy_folder
from stlm_kd.comparison.compare import compare
from stlm_kd.comparison.metrics import estimate
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.errors import (
    CheckpointError,
    MissingResourceError,
    RecipeError,
    RecipeFault,
)
from stlm_kd.pipeline import context
from stlm_kd.pipeline.results import parameters_of
from stlm_kd.pipeline.stage_keys import model_identity
from stlm_kd.pipeline.summary import comparisons, selection_remark, weak_teachers
from stlm_kd.recipe import load
from stlm_kd.reporting.tables.adaptation import adaptation_table
from stlm_kd.reporting.tables.results import result_table
from stlm_kd.reporting.tables.scores import score_table
from stlm_kd.statistics import corrected
from stlm_kd.tracking import Trackers
from tests.support.compared import whole_run
from tests.support.pico import FAMILIES, pico_model


def test_a_stage_is_built_once_for_a_key_and_again_for_another(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "result.json").write_text(str(len(built)))

    first = stages.make("eval", {"a": 1, "b": [2]}, build)
    again = stages.make("eval", {"b": [2], "a": 1}, build)
    other = stages.make("eval", {"a": 1, "b": [3]}, build)
    assert first == again != other
    assert len(built) == 2
    assert (first / "result.json").read_text() == "1"


def test_of_several_that_want_a_stage_at_once_one_builds_it(tmp_path: Path) -> None:
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.2)
        (folder / "report.json").write_text("whole")

    def wanted(_: int) -> str:
        return (Stages(tmp_path).make("model", {"a": 1}, build) / "report.json").read_text()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(wanted, range(4))) == ["whole"] * 4
    assert len(built) == 1


def test_a_copied_folder_is_whole_shares_only_weights_and_leaves_checkpoints_behind(tmp_path: Path) -> None:
    (tmp_path / "source" / "checkpoints" / "step").mkdir(parents=True)
    (tmp_path / "source" / "model").mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "source" / "model" / name).write_text("1")
    (tmp_path / "target" / "old").mkdir(parents=True)
    copy_folder(tmp_path / "source", tmp_path / "target")
    copies = {path.name: path for path in (tmp_path / "target").rglob("*") if path.is_file()}
    assert sorted(copies) == ["config.json", "model.safetensors"]
    assert copies["model.safetensors"].samefile(tmp_path / "source/model/model.safetensors")
    assert copies["model.safetensors"].stat().st_mode & 0o222 == 0
    copies["config.json"].write_text("2")
    assert (tmp_path / "source/model/config.json").read_text() == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


@pytest.mark.parametrize("name", ["model/config.json", "model/model.safetensors"])
def test_a_stage_that_was_changed_is_made_again(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    stages = Stages(tmp_path)

    def build(folder: Path) -> None:
        (folder / "model").mkdir()
        for file in ("config.json", "model.safetensors"):
            (folder / "model" / file).write_text("as it was")
        (folder / "report.json").write_text("{}")

    folder = stages.make("model", {"a": 1}, build)
    assert stages.make("model", {"a": 1}, build) == folder
    (folder / "notes.txt").write_text("a file more does no harm")
    copy_folder(folder, tmp_path / "copy")
    assert stages.holds(tmp_path / "copy", "model", {"a": 1})
    for damage, change in (
        ("changed", lambda: (folder / name).write_text("as it is!")),
        ("gone", (folder / name).unlink),
    ):
        change()
        assert not stages.has("model", {"a": 1})
        assert stages.make("model", {"a": 1}, build) == folder
        assert (folder / name).read_text() == "as it was"
        assert f"{folder / name}: {damage} since this model was completed; it is made again" in caplog.text
    aside = tmp_path / f".{folder.name}.damaged"
    assert (aside / name).read_text() == "as it is!"
    assert not (aside.with_name(f"{aside.name}.2") / name).exists(), "as it was found"


def test_a_file_that_would_be_loaded_with_a_stages_model_is_damage(tmp_path: Path) -> None:
    stages = Stages(tmp_path)

    def build(folder: Path) -> None:
        for name in ("config.json", "report.json"):
            (folder / name).write_text("{}")

    folder = stages.make("model", {"a": 1}, build)
    for name in (".DS_Store", "._config.json", ".x.safetensors", "notes.txt"):
        (folder / name).write_text("{}")
    assert stages.has("model", {"a": 1})
    for name in ("added_tokens.json", "vocab.txt", "merges.txt"):
        (folder / name).write_text("{}")
        assert not stages.has("model", {"a": 1})
        (folder / name).unlink()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("name", ["", "stage.json", "model.safetensors"])
def test_a_stage_that_cannot_be_read_for_the_moment_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    stages = Stages(tmp_path)

    def build(folder: Path) -> None:
        for file in ("config.json", "model.safetensors", "report.json"):
            (folder / file).write_text(file)

    folder = stages.make("model", {"a": 1}, build)
    unreadable, call = (folder / name, os.open) if name else (folder, Path.lstat)

    def refused(path: Path, *rest: object) -> object:
        if Path(path) == unreadable:
            raise OSError(number, os.strerror(number), str(path))
        return call(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "open") if name else (Path, "lstat")), refused)
        with hashed_anew():
            for use in (stages.make, lambda *words: stages.has(*words[:2])):
                with pytest.raises(MissingResourceError, match=f"{unreadable}: cannot be read "):
                    use("model", {"a": 1}, build)
            if name:
                with pytest.raises(MissingResourceError, match=f"{unreadable}: cannot be read "):
                    stages.holds(folder, "model", {"a": 1})
    assert stages.has("model", {"a": 1})
    assert [path.name for path in tmp_path.iterdir() if path.name != ".locks"] == [folder.name]


@pytest.mark.parametrize(
    "text", ["", "{}", '{"kind": "eval", "key": {"a": 1}}', '{"kind": "eval", "key": {"a": 2}}']
)
def test_a_stage_without_its_list_of_files_is_made_again(tmp_path: Path, text: str) -> None:
    def build(folder: Path) -> None:
        built.append((folder / "result.json").write_text("x"))

    built: list[int] = []
    stages = Stages(tmp_path)
    folder = stages.make("eval", {"a": 1}, build)
    (folder / "stage.json").write_text(text)
    stages.make("eval", {"a": 1}, build)
    assert len(built) == 2


def test_an_interrupted_build_finds_its_files_again_and_the_stage_is_not_there(tmp_path: Path) -> None:
    stages = Stages(tmp_path)

    def interrupted(folder: Path) -> None:
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.make("model", {"a": 1}, interrupted)
    assert not stages.path("model", {"a": 1}).exists()
    seen = []
    stages.make("model", {"a": 1}, lambda folder: seen.extend(path.name for path in folder.iterdir()))
    assert seen == ["checkpoint"]


def test_of_a_build_that_failed_before_it_wrote_anything_nothing_is_left(tmp_path: Path) -> None:
    def failing(folder: Path) -> None:
        (folder / "checkpoints").mkdir()
        raise CheckpointError("no text")

    with pytest.raises(CheckpointError, match="no text"):
        Stages(tmp_path).make("tokenizer", {"a": 1}, failing)
    assert [path.name for path in tmp_path.rglob("*")] == [".locks"]


def test_without_resume_a_build_begins_anew(tmp_path: Path) -> None:
    stages = Stages(tmp_path, resume=False)
    partial = stages.path("model", {"a": 1}).with_name(stages.path("model", {"a": 1}).name + ".partial")
    partial.mkdir(parents=True)
    (partial / "checkpoint").write_text("old")
    seen = []
    stages.make("model", {"a": 1}, lambda folder: seen.extend(folder.iterdir()))
    assert seen == []


def test_a_models_identity_is_its_content(tmp_path: Path) -> None:
    for name, text in (("one", "x"), ("same", "x"), ("other", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        (tmp_path / name / "notes.md").write_text(name)
    one, same, other = (model_identity(str(tmp_path / name)) for name in ("one", "same", "other"))
    assert one == same != other


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
@settings(deadline=None, max_examples=30)
def test_an_interval_is_scipys(values: list[float]) -> None:
    found = estimate(values)
    if np.std(values) > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert math.isclose(found.mean - found.half_width, low, rel_tol=1e-6, abs_tol=1e-6)
        assert math.isclose(found.mean + found.half_width, high, rel_tol=1e-6, abs_tol=1e-6)


def row(
    name: str,
    kind: str,
    values: list[float],
    *,
    suite: str = "perplexity",
    metric: str = "bits_per_byte",
    teaches: bool = False,
    stderr: float | None = None,
) -> Row:
    suites = tuple(
        (SuiteResult(suite, (Score("text", metric, value, stderr, 1, False),)),) for value in values
    )
    seeds = tuple(range(len(values))) if len(values) > 1 else ()
    return Row(name, kind, 1, 1, 1, seeds, suites, teaches=teaches)


def test_a_comparison_says_better_worse_equivalent_or_within_noise() -> None:
    told, untold = (row("no-teacher", "control", [1.40, 1.41, 1.42], stderr=error) for error in (0.002, None))
    for values, verdict in (
        ([1.00, 1.01, 1.03], "better"),
        ([1.60, 1.61, 1.63], "worse"),
        ([1.30, 1.41, 1.52], "within noise"),
        ([1.4001, 1.4103, 1.4202], "equivalent"),
    ):
        (line,), (note,) = comparisons(
            ResultsTable([row("distilled student", "student", values, stderr=0.002), told])
        )
        assert line.endswith(f"corrected for 1 comparisons): {verdict}") and "seeds: 3 paired" in line
        assert "no results of several single examples" in note
        (line,), _ = comparisons(ResultsTable([row("distilled student", "student", values), untold]))
        assert line.endswith("]: not known (the noise of examples is not known)")
    alone = [row("distilled student", "student", [1.0]), row("no-teacher", "control", [1.4])]
    assert comparisons(ResultsTable(alone))[0][0].endswith(": not known (no noise estimate is available)")


def test_remarks_have_compares_evidence_corrected_for_all_of_them(tmp_path: Path) -> None:
    folder = whole_run(tmp_path / "run")
    lines, _ = comparisons(ResultsTable(read_results(tmp_path / "run" / "results.json").rows))
    evidence = []
    for line in lines:
        base = "no-teacher" if "student - no-teacher = " in line else "all-data"
        found = compare([folder], baseline=base, only=[line.partition(":")[0]]).differences
        (one,) = (one.evidence for one in found if one.name == "student")
        assert one.difference is not None and f" = {one.mean:+.4f} [{one.difference.low:+.4f}, " in line
        evidence.append((one.difference.p, one.equivalence_p))
    assert len(lines) == 4 * 2
    for line, (p, _) in zip(lines, corrected(evidence), strict=True):
        assert f"p {p:.3f}, corrected for 8 comparisons): {'better' if p < 0.05 else 'within noise'}" in line


def test_weights_chosen_on_the_scored_data_are_told() -> None:
    (line,) = selection_remark(load("attention-first-cola"))
    assert "train.keep: best" in line and "held-out data that classification, agreement scored" in line
    assert selection_remark(load("few-shot-cola")) == []


@pytest.mark.parametrize(("name", "kind"), [("teacher t, adapted", "adapted"), ("teacher t", "teacher")])
def test_a_teacher_that_is_no_better_than_the_control_is_reported(name: str, kind: str) -> None:
    rows = [row(name, kind, [1.5], teaches=True), row("no-teacher", "control", [1.40, 1.41, 1.42])]
    (line,) = weak_teachers(ResultsTable(rows))
    assert line.startswith(f"warning: {name} (1.5000 bits_per_byte) is not better than no-teacher (1.4100)")
    rows[0] = row(name, kind, [1.2], teaches=True)
    assert weak_teachers(ResultsTable(rows)) == []
    rows[0] = row(name, kind, [1.5], teaches=False)
    assert weak_teachers(ResultsTable(rows)) == []


@pytest.mark.parametrize(
    ("suite", "metric"),
    [("pseudo-perplexity", "pseudo_bits_per_byte"), ("masked-loss", "masked_loss")],
)
def test_a_masked_teacher_is_judged_by_what_measures_text_for_it(suite: str, metric: str) -> None:
    control = row("no-teacher", "control", [1.4, 1.42], suite=suite, metric=metric)
    weak, strong = (
        row("teacher t", "teacher", [value], suite=suite, metric=metric, teaches=True) for value in (1.5, 1.3)
    )
    (line,) = weak_teachers(ResultsTable([weak, control]))
    assert line.startswith(f"warning: teacher t (1.5000 {metric}) is not better than no-teacher (1.4100)")
    assert weak_teachers(ResultsTable([strong, control])) == []


def test_teachers_that_cannot_be_judged_are_one_remark_where_there_are_controls() -> None:
    teachers = [row(f"teacher {n}", "teacher", [0.5], suite="lm-eval", teaches=True) for n in "ab"]
    control = row("no-teacher", "control", [0.5], suite="lm-eval")
    (line,) = weak_teachers(ResultsTable([*teachers, control]))
    suites = "perplexity, pseudo-perplexity, masked-loss, classification, regression"
    assert line.endswith(f"is not known: eval has none of {suites}")
    assert weak_teachers(ResultsTable(teachers)) == weak_teachers(ResultsTable([control])) == []


def printed(*parts: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(*parts)
    return capture.get()


STRANGE = "[/news] [bold]x[/] :smile: [link=a]"


def test_names_from_outside_are_shown_as_they_are() -> None:
    scores = (SuiteResult(STRANGE, (Score(STRANGE, "acc", 0.5, None, 1),), label=STRANGE, notes=(STRANGE,)),)
    table = printed(result_table(ResultsTable([Row(STRANGE, "student", 1, 1, 1, (1,), (scores,))]), STRANGE))
    assert table.count(STRANGE) == 5
    assert printed(score_table({STRANGE: scores})).count(STRANGE) == 4
    counts = dict.fromkeys(("old_vocabulary", "new_vocabulary", "held_out", "trained_parameters"), 1)
    counts |= dict.fromkeys(("tokens_seen", "tokens_of_text", "steps", "seconds"), 1)
    bits = dict.fromkeys(("before", "initialised", "trained"), 1.0)
    report = AdaptationReport(
        teacher=STRANGE,
        task="clm",
        init=STRANGE,
        tokens_by_origin={},
        stopped="done",
        objective={},
        aligned=None,
        **counts,
        **bits,
    )
    assert printed(adaptation_table({STRANGE: report}, STRANGE)).count(STRANGE) == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_without_reading_weights(family: str, tied: bool, tmp_path: Path) -> None:
    model = pico_model(family, tied=tied)
    model.config.save_pretrained(tmp_path)
    assert parameters_of(str(tmp_path), False) == sum(p.numel() for p in model.parameters())


def test_a_recipes_faults_come_whole_from_another_process() -> None:
    error = RecipeError("a recipe", [RecipeFault("train.steps", "too few", 3)])
    sent = pickle.loads(pickle.dumps(error))
    assert (str(sent), sent.origin, sent.faults) == (str(error), error.origin, error.faults)


def test_trackers_group_a_runs_stages_by_the_runs_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}

    def opened(folder: Path, **options: object) -> Trackers:
        given.update(options)
        return Trackers()

    monkeypatch.setattr(context, "open_tracker", opened)
    place = context.RunContext(tmp_path, run_name="tiny-1a2b3c4d")
    place.tracker(tmp_path, recipe=load("sample-two-teachers"), stage="no-teacher seed 1")
    assert given["run_name"] == "tiny-1a2b3c4d"


def test_code_that_a_model_brings_is_part_of_it_where_it_is_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    told = []
    for code in ("one", "other"):
        (tmp_path / "modeling.py").write_text(code)
        told.append([model_identity(str(tmp_path), trust_remote_code=trust) for trust in (False, True)])
    assert told[0][0] == told[1][0]
    assert told[0][1] != told[1][1]
