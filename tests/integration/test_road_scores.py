"""Scores that were computed once are found again, as long as all that decides them is the same."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.data.sources import sample
from stlm_kd.eval.harness import task_data, task_rows
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.stages.score import kept_scores
from stlm_kd.recipe import load
from stlm_kd.sharing.hub import RepoInfo
from tests.support.road import distilled, done, student

ARC = "{suite: lm-eval, tasks: [arc_easy], source: local}"
PAIRS = "{suite: lm-eval, tasks: [sample_minimal_pairs], limit: 2}"
OPTIONS = {"tasks": ("sample_minimal_pairs",), "source": "auto", "num_fewshot": None}


def scored(output_dir: Path, *changes: str) -> list[SuiteResult]:
    return kept_scores(load("plain.yaml", changes), "same", RunContext(output_dir))


def stages(output_dir: Path) -> dict[str, str]:
    """The folders of kept scores with their suites."""
    keys = [
        (path, json.loads(path.read_text())["key"]) for path in output_dir.glob("stages/eval-*/stage.json")
    ]
    return {path.parent.name: key["suite"] for path, key in keys}


def write_questions(data: Path, answer: str) -> None:
    """Five times a question with two choices, in the layout of ARC."""
    folder = data / "lm_eval" / "arc_easy"
    folder.mkdir(parents=True, exist_ok=True)
    choices = {"text": ["the dog", "a cat"], "label": ["A", "B"]}
    rows = [{"id": str(n), "question": "Who?", "choices": choices, "answerKey": answer} for n in range(5)]
    for split in ("train", "validation", "test"):
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def test_a_changed_local_file_is_scored_anew_and_an_old_one_found_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STLM_KD_DATA", str(tmp_path / "data"))
    found = {}
    for answer in ("A", "B"):
        write_questions(tmp_path / "data", answer)
        (result,) = scored(tmp_path, f"eval=[{ARC}]")
        found[answer] = result.score("arc_easy", "acc").value
    assert sorted(found.values()) == [0, 1]
    assert list(stages(tmp_path).values()) == ["lm-eval"] * 2
    write_questions(tmp_path / "data", "A")
    (again,) = scored(tmp_path, f"eval=[{ARC}]")
    assert again.score("arc_easy", "acc").value == found["A"]
    assert len(stages(tmp_path)) == 2


def test_held_out_text_decides_the_perplexity_alone(place: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text((place / "valid.txt").read_text()[:2000])
    for text in ("valid.txt", f"{tmp_path}/other.txt", "valid.txt"):
        scored(tmp_path, f"eval=[perplexity, {PAIRS}]", f"data.validation={text}")
    assert sorted(stages(tmp_path).values()) == ["lm-eval", "perplexity", "perplexity"]


def test_a_kept_score_that_was_edited_is_computed_again(place: Path, tmp_path: Path) -> None:
    run = distilled("plain", "eval=[perplexity]", output_dir=tmp_path)
    (name,) = stages(tmp_path)
    file = tmp_path / "stages" / name / "result.json"
    before, results = file.read_text(), (run / "results.json").read_text()
    file.write_text(before.replace("bits_per_byte", "bits"))
    distilled("plain", "eval=[perplexity]", output_dir=tmp_path)
    assert (file.read_text(), (run / "results.json").read_text()) == (before, results)


def another_version(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(metadata, "version", lambda name: "0.0")


def another_generator(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(sample, "VERSION", "another")


def another_template(patch: pytest.MonkeyPatch, folder: Path) -> None:
    shutil.copytree(Path(str(files("stlm_kd.eval.tasks"))), folder, dirs_exist_ok=True)
    file = folder / "sample_minimal_pairs.yaml"
    file.write_text(file.read_text().replace("pairs: 200", "pairs: 100"))
    patch.setattr(task_rows, "files", lambda package: folder)


def another_task(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setitem(OPTIONS, "tasks", ())


@pytest.mark.parametrize("change", [another_version, another_generator, another_template, another_task])
def test_what_lm_eval_and_its_tasks_are_decides_its_scores(
    change: Callable[[pytest.MonkeyPatch, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = task_rows.identity(OPTIONS)
    assert task_rows.identity(OPTIONS) == before
    change(monkeypatch, tmp_path)
    assert task_rows.identity(OPTIONS) != before


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("arc_easy", "467e50923ab655e6cf155e3401bcf7877144ee323a81666fa52e39154260b1fb"),
        ("hellaswag", "0cef392046c31514738d0993ed9df4bd10306ec88c4c42c6d02e62fc08da9fda"),
        ("sample_minimal_pairs", "9281425fb231da3e381b6cce2eb87af0d88d78ccaaa477cf70d8702aaf25736e"),
    ],
)
def test_scores_are_found_again_after_the_functions_that_read_rows_have_moved(
    task: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path
) -> None:
    """The keys are those under which scores have been stored from the beginning."""
    monkeypatch.setenv("STLM_KD_DATA", str(shared_data))
    options = {**OPTIONS, "tasks": (task,), "source": "auto" if task in OPTIONS["tasks"] else "local"}
    before = task_rows.identity(options)
    assert isinstance(before, dict) and before["tasks"][task][1][0] == key  # type: ignore[index, call-overload]  # JSON
    shutil.copytree(Path(str(files("stlm_kd.eval.tasks"))), tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("*.yaml"):
        file.write_text(file.read_text().replace("stlm_kd.eval.harness.local_rows", "elsewhere.rows"))
    monkeypatch.setattr(task_rows, "files", lambda package: tmp_path)
    assert task_rows.identity(options) == before
    for file in tmp_path.glob("*.yaml"):
        file.write_text(file.read_text().replace("elsewhere.rows.from_", "elsewhere.rows.other_"))
    assert task_rows.identity(options) != before


def test_rows_of_the_hub_count_by_their_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    task = SimpleNamespace(config=SimpleNamespace(dataset_path="some/rows", dataset_name="small"))
    built = [task_data.Built("some_task", task, "builtin")]  # type: ignore[arg-type]  # with as much of a task as is asked
    monkeypatch.setattr(task_data, "build", lambda tasks, **options: built)
    found = []
    for commit in ("one", "two"):
        at = RepoInfo("dataset", "some/rows", None, commit)
        monkeypatch.setattr(task_rows, "benchmark", lambda path, at=at: at)
        identity = task_rows.identity({**OPTIONS, "tasks": ("some_task",)})
        assert isinstance(identity, dict)
        found.append(identity["tasks"])
    assert found == [{"some_task": ["builtin", {"some/rows": commit}]} for commit in ("one", "two")]


def test_a_suite_asked_for_twice_has_two_columns(place: Path, tmp_path: Path) -> None:
    twice = "eval=[{suite: perplexity, window: 16}, {suite: perplexity, window: 64}, perplexity]"
    run = distilled("plain", twice, output_dir=tmp_path)
    (row,) = json.loads((run / "results.json").read_text())["rows"]
    windows = ("window 16", "window 64", "window default")
    assert list(row["estimates"]) == [f"bits_per_byte ({window})" for window in windows]
    values = [estimate["mean"] for estimate in row["estimates"].values()]
    assert values[0] != values[1] == values[2]
    assert all(f"({window})" in (run / "table.txt").read_text() for window in windows)
    words = ["--suite", "{suite: perplexity, window: 16}", "--suite", "perplexity"]
    labels = [result["label"] for result in done("eval", str(run), *words)[str(run)]]
    assert labels == ["window 16", "window default"]


def test_lm_evals_own_report_lies_beside_the_score_and_the_student(place: Path, tmp_path: Path) -> None:
    changes = (f"eval=[{PAIRS}]", "seeds=[1, 2]")
    run = distilled("plain", *changes, output_dir=tmp_path)
    results = json.loads((run / "results.json").read_text())["rows"][0]["suites"]
    files = [student(run, seed=seed) / "lm-eval.json" for seed in (1, 2)]
    for file, (result,) in zip(files, results, strict=True):
        report = json.loads(file.read_text())
        assert report == result["report"]
        assert report["results"]["sample_minimal_pairs"]["acc,none"] == result["scores"][0]["value"]
    kept = [path.read_text() for path in (tmp_path / "stages").glob("eval-*/lm-eval.json")]
    assert sorted(kept) == sorted(file.read_text() for file in files)
    times = [file.stat().st_mtime_ns for file in files]
    distilled("plain", *changes, output_dir=tmp_path)
    assert [file.stat().st_mtime_ns for file in files] == times
