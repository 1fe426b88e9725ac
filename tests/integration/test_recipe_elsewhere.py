"""A recipe in one folder, given from a second, whose run is used in a third."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.road import built, done, stlm_kd, weights


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders without any files of the recipe."""
    return tmp_path_factory.mktemp("second"), tmp_path_factory.mktemp("third")


@pytest.fixture(scope="module")
def run(road: Path, folders: tuple[Path, Path]) -> Path:
    """The run of a recipe with a teacher, made in the second folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folders[0])
        return Path(done("distill", "-r", str(road / "taught.yaml"), "eval=[perplexity]")["folder"]).resolve()


def test_a_recipe_is_checked_from_another_folder(
    road: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders[0])
    for words in (["recipe", "validate"], ["distill", "--dry-run", "-r"]):
        result = stlm_kd(*words, str(road / "taught.yaml"))
        assert result.exit_code == 0, result.output
    missing = stlm_kd("recipe", "validate", str(road / "taught.yaml"), "data.train=train.txt")
    assert missing.exit_code != 0 and f"seen from {folders[0]}" in missing.output


def test_the_run_is_the_one_of_the_recipes_own_folder(
    run: Path, road: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(road)
    output_dir = tmp_path / "runs"
    beside = Path(
        done("distill", "-r", "taught.yaml", "eval=[perplexity]", "--output-dir", str(output_dir))["folder"]
    )
    assert beside.name == run.name
    assert weights(beside) == weights(run)
    names = {name.rpartition("/")[0] for name in built(output_dir)}
    assert names == {name.rpartition("/")[0] for name in built(run.parent)}, "the keys of all stages"


def test_the_run_is_scored_compared_and_resumed_from_a_third_folder(
    run: Path, road: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders[1])
    ((found,),) = done("eval", str(run), "--suite", "perplexity").values()
    scores = {score["metric"]: score["value"] for score in found["scores"]}
    stored = json.loads((run / "results.json").read_text())["rows"][-1]["estimates"]["bits_per_byte"]["mean"]
    assert stored == pytest.approx(scores["bits_per_byte"])
    assert done("compare", str(run))["rows"]
    before = built(run.parent)
    again = done(
        "distill", "-r", str(road / "taught.yaml"), "eval=[perplexity]", "--output-dir", str(run.parent)
    )
    assert Path(again["folder"]) == run
    assert built(run.parent) == before
