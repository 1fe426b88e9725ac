"""``runs list --stages``, ``show`` and ``clean``, and what is found again by whole commands."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml

from stlm_kd.artifacts import hashing
from stlm_kd.artifacts.stage_store import Stages
from stlm_kd.artifacts.uses import USES
from stlm_kd.pipeline import recording
from stlm_kd.pipeline.recording import create, recorded
from stlm_kd.recipe import from_values
from tests.support.road import distilled, stlm_kd, student, weights


def build(folder: Path) -> None:
    (folder / "report.json").write_text("{}")


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    """Two runs with a stage each, and one that both use."""
    for steps, what in ((10, "teacher qwen, adapted"), (20, "teacher q, adapted")):
        values = {
            "task": "clm",
            "student": {"tokenizer": "t", "preset": "stlm-nano"},
            "data": {"train": "a.txt"},
            "objectives": [{"loss": "labels"}],
            "train": {"steps": steps},
        }
        recipe = from_values(values, origin="a test")
        run = create(recipe, name=str(steps), output_dir=tmp_path, command="").restart("")
        stages = Stages(tmp_path / "stages", run=run.path)
        for key, name in ((0, what), (steps, "student seed 1")):
            stages.make(
                "model",
                {"a": key},
                lambda folder: (folder / "report.json").write_text("x") and None,
                what=name,
            )
        run.finish("done")
    return tmp_path


def runs(*words: str) -> tuple[int, str, str]:
    result = stlm_kd("runs", *words)
    return result.exit_code, result.stdout, result.stderr


def test_stages_are_listed_by_what_they_are_and_shown_for_a_run(output_dir: Path) -> None:
    code, text, _ = runs("list", "--stages", "--output-dir", str(output_dir))
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert code == 0 and {*lines} == {"STAGE", "teacher qwen, adapted; teacher q, adapted", "student seed 1"}
    (run,) = output_dir.glob("10-*")
    code, text, _ = runs("show", str(run), "--json")
    shared, own = sorted(json.loads(text)["stages"], key=lambda stage: -len(stage["runs"]))
    assert code == 0 and len(shared["runs"]) == 2 and own["runs"] == [run.name]
    assert own["what"] == ["student seed 1"] and own["state"] == "finished"


def test_clean_asks_and_deletes_what_no_run_uses(output_dir: Path) -> None:
    place = ("--output-dir", str(output_dir))
    assert runs("clean", *place) == (0, "", f"nothing to delete in {output_dir}\n")
    (run,) = output_dir.glob("20-*")
    shutil.rmtree(run)
    code, _, message = runs("clean", *place)
    assert code == 2 and "--yes: not given, and no terminal to ask whether to delete 1 stages" in message
    (would,) = json.loads(runs("clean", *place, "--dry-run", "--json")[1])
    assert Path(would["path"]).is_dir() and would["runs"] == []
    code, text, message = runs("clean", *place, "--yes")
    assert code == 0 and would["path"] in text and message.startswith("deleted: ")
    assert not Path(would["path"]).exists() and len(list((output_dir / "stages").glob("model-*"))) == 2
    assert runs("clean", "--output-dir", str(output_dir / "none"))[0] == 2
    (output_dir / "stages" / f"fine-tuned-{'0' * 12}.partial").mkdir()
    assert runs("clean", *place, "--yes") == (0, "", f"nothing to delete in {output_dir}\n")
    assert "fine-tuned (unfinished, last changed 0 days ago)" in runs("list", "--stages", *place)[1]


def test_a_run_that_lost_the_list_of_its_stages_stops_clean_until_it_is_done(output_dir: Path) -> None:
    run = next(output_dir.glob("20-*"))
    recipe = from_values(yaml.safe_load((run / "recipe.yaml").read_text()), origin="a test")
    words = ("clean", "--output-dir", str(output_dir), "--yes")
    start = partial(recorded, recipe, name="20", output_dir=output_dir, command="")
    with pytest.raises(ZeroDivisionError), start():
        (run / USES).unlink()
        Stages(output_dir / "stages", run=run).use(output_dir / "stages" / "model-x", "student seed 1")
        raise ZeroDivisionError
    code, _, message = runs(*words)
    assert code == 1 and "give the run's command again and let it end" in message
    with pytest.raises(ZeroDivisionError), start():
        raise ZeroDivisionError
    assert runs(*words)[0] == 1
    with start():
        for stage in (output_dir / "stages").glob("model-*"):
            Stages(output_dir / "stages", run=run).use(stage, "used once more")
    assert runs(*words) == (0, "", f"nothing to delete in {output_dir}\n")


def test_a_list_that_was_cut_between_lines_is_said_to_be_damaged(output_dir: Path) -> None:
    run = next(output_dir.glob("20-*"))
    (run / USES).write_bytes((run / USES).read_bytes()[: (run / USES).read_bytes().rindex(b"\n", 0, -1)])
    code, text, _ = runs("list", "--stages", "--output-dir", str(output_dir))
    assert code == 0 and f"not known: the list of {run.name} is damaged" in text and "no run" not in text
    code, _, message = runs("clean", "--output-dir", str(output_dir), "--yes")
    assert code == 1 and "(changed since the run was done)" in message


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "a\0b"])
@pytest.mark.parametrize("words", [("runs", "show"), ("eval", "--suite", "perplexity", "--data", "x.txt")])
def test_what_is_no_name_of_a_run_is_one_message(words: tuple[str, ...], name: str, tmp_path: Path) -> None:
    found = stlm_kd(*words, "--output-dir", str(tmp_path), name)
    assert isinstance(found.exception, SystemExit) and found.exit_code in (2, 3, 5), found.exception
    assert "Traceback" not in found.stderr


def test_a_run_whose_creation_was_cut_has_no_record_without_a_list(
    output_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = next(output_dir.glob("20-*"))
    recipe = from_values(yaml.safe_load((run / "recipe.yaml").read_text()), origin="a test")
    seen: list[str] = []

    def write(path: Path, _: object) -> None:
        seen.extend(sorted(file.name for file in path.parent.iterdir()))

    monkeypatch.setattr(recording, "write_record", write)
    create(recipe, name="new", output_dir=output_dir, command="")
    assert seen == ["recipe.yaml", USES]


@pytest.mark.long
def test_a_zeroed_token_store_does_not_move_a_result(place: Path, tmp_path: Path) -> None:
    distilled("plain", output_dir=tmp_path / "damaged")
    for file in (tmp_path / "damaged" / "stages" / "tokens").glob("*/tokens-00000.bin"):
        file.write_bytes(bytes(file.stat().st_size))
    found, expected = (
        weights(distilled("plain", "seeds=[2]", output_dir=tmp_path / name), seed=2)
        for name in ("damaged", "fresh")
    )
    assert found == expected


@pytest.mark.long
def test_verify_finds_what_no_time_shows(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = distilled("plain", output_dir=tmp_path)
    monkeypatch.setattr(hashing, "_stamp", lambda path: (0, 0, 0, 0))  # as if no time and size ever changed
    words = ("eval", str(run), "--suite", "perplexity", "--data", "valid.txt")
    assert stlm_kd(*words).exit_code == 0
    file = student(run) / "model" / "config.json"
    file.write_text(file.read_text() + " ")
    assert stlm_kd(*words).exit_code == 0
    refused = stlm_kd(*words, "--verify")
    assert refused.exit_code == 1 and "config.json: changed since this model was completed" in refused.stderr
