"""A run's folder: one recipe each, written whole, refused for others."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from stlm_kd.artifacts.run_dir import LOCK_FILE, RECIPE, RECORD, file_name, list_runs, open_run
from stlm_kd.artifacts.uses import USES
from stlm_kd.errors import CheckpointError, MissingResourceError
from stlm_kd.pipeline.recording import create, open_for
from stlm_kd.recipe import Recipe, from_values, load, recipe_hash


def recipe(steps: int = 10) -> Recipe:
    return from_values(
        {
            "task": "clm",
            "student": {"tokenizer": "t", "preset": "stlm-nano"},
            "data": {"train": "a.txt"},
            "objectives": [{"loss": "labels"}],
            "train": {"steps": steps},
        },
        origin="a test",
    )


def test_the_folder_holds_the_resolved_recipe_its_hash_and_the_versions(tmp_path: Path) -> None:
    run = create(recipe(), name="a run", output_dir=tmp_path, command="stlm-kd distill -r x")
    assert run.path.name == f"a-run-{recipe_hash(recipe())[:8]}"
    assert load(str(run.path / RECIPE)) == recipe()
    record = json.loads((run.path / RECORD).read_text())
    assert record["recipe_hash"] == recipe_hash(recipe())
    assert record["command"] == "stlm-kd distill -r x"
    assert record["status"] == "running" and record["finished"] is None
    assert {"torch", "transformers", "pydantic"} <= set(record["versions"])


def test_the_same_recipe_finds_its_folder_again_with_its_first_start(tmp_path: Path) -> None:
    first = create(recipe(), name="x", output_dir=tmp_path, command="one").finish("interrupted", "Ctrl-C")
    again = create(recipe(), name="x", output_dir=tmp_path, command="two")
    assert again.record == first.record
    running = again.restart("two")
    assert (running.record.status, running.record.command) == ("running", "two")
    assert (running.record.started, running.record.message) == (first.record.started, "")
    assert open_run(first.path).record == running.record


def test_a_run_that_changed_code_began_stays_one(tmp_path: Path) -> None:
    run = create(recipe(), name="x", output_dir=tmp_path, command="one")
    assert run.restart("one", "git:1").restart("two", "git:2 dirty").record.code == "git:2 dirty"
    assert open_run(run.path).restart("three", "git:3").restart("four").record.code == "git:2 dirty"


def test_a_lock_is_of_a_finished_run_alone(tmp_path: Path) -> None:
    run = create(recipe(), name="x", output_dir=tmp_path, command="")
    (run.path / LOCK_FILE).write_text("a lock")
    assert run.finish("done").record.lock == f"sha256:{sha256(b'a lock').hexdigest()}"
    assert run.restart("again").record.lock is None and not (run.path / LOCK_FILE).exists()
    (run.path / LOCK_FILE).write_text("a lock")
    assert run.finish("interrupted").record.lock is None and not (run.path / LOCK_FILE).exists()


def test_the_folder_of_another_recipe_is_refused_with_what_differs(tmp_path: Path) -> None:
    run = create(recipe(), name="x", output_dir=tmp_path, command="")
    with pytest.raises(CheckpointError, match=r"train\.steps is 10 there and 20 here") as caught:
        open_for(recipe(20), run.path)
    assert caught.value.exit_code == 1


def test_a_folder_whose_recipe_was_edited_is_refused(tmp_path: Path) -> None:
    run = create(recipe(), name="x", output_dir=tmp_path, command="")
    text = (run.path / RECIPE).read_text()
    (run.path / RECIPE).write_text(text.replace("steps: 10", "steps: 11"))
    with pytest.raises(CheckpointError, match=r"train\.steps is 11 there and 10 here"):
        create(recipe(), name="x", output_dir=tmp_path, command="")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1, "nonsense": 2}'])
def test_a_damaged_record_is_said_and_listed_as_damaged(tmp_path: Path, text: str) -> None:
    run = create(recipe(), name="x", output_dir=tmp_path, command="")
    (run.path / RECORD).write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.json: (damaged|not of format)"):
        open_run(run.path)
    assert [summary.status for summary in list_runs(tmp_path)] == ["damaged"]


def test_a_place_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingResourceError, match="file: in the way is a file; move it away, or choose"):
        create(recipe(), name="x", output_dir=tmp_path / "file", command="")


def test_no_unfinished_file_is_left(tmp_path: Path) -> None:
    run = create(recipe(), name="x", output_dir=tmp_path, command="").finish("done")
    assert sorted(path.name for path in run.path.iterdir()) == [RECIPE, RECORD, USES]


def test_other_folders_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    assert list_runs(tmp_path) == []
    assert list_runs(tmp_path / "nowhere") == []
    with pytest.raises(CheckpointError, match="not a run's folder"):
        open_run(tmp_path / "stages")


@pytest.mark.parametrize(
    ("name", "safe"), [("a b/c", "a-b-c"), ("../..", "run"), ("", "run"), ("x" * 99, "x" * 64)]
)
def test_names_become_safe_file_names(name: str, safe: str) -> None:
    assert file_name(name) == safe
