"""One command from two teachers' own training to a table, and what a second command reuses."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from matplotlib import image
from transformers import AutoModelForCausalLM, AutoTokenizer

from stlm_kd.publishing.locking import locked
from stlm_kd.recipe import load
from stlm_kd.recipe.lock import read_lock
from tests.support.road import built, distilled, done, stlm_kd, student, weights

VARIANTS = ("student", "no-teacher", "all-data")


@pytest.fixture(scope="module")
def whole(road: Path) -> Path:
    """The run of the recipe ``whole``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(road)
        return (road / distilled("whole", output_dir=Path("runs"))).resolve()


def kinds(names: set[str]) -> Counter[str]:
    return Counter(Path(name).parts[1].partition("-")[0] for name in names if name.endswith("stage.json"))


def test_the_table_has_a_row_for_each_teacher_student_and_control(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == [
        "teacher g", "teacher g, adapted", "teacher l", "teacher l, adapted",
        "distilled student", "no-teacher", "all-data",
    ]  # fmt: skip
    assert [row["variant"] for row in results["rows"]] == [None] * 4 + list(VARIANTS)
    table = (whole / "table.txt").read_text()
    for name, row in rows.items():
        assert name in table
        assert f"{row['tokens_seen']:,}" in table
        assert set(row["estimates"]) == {"bits_per_byte", "sample_minimal_pairs acc"}
    for name in ("distilled student", "no-teacher", "all-data"):
        assert rows[name]["seeds"] == [1, 2]
        found = rows[name]["estimates"]["bits_per_byte"]
        assert found["mean"] == pytest.approx(sum(found["values"]) / 2)
        assert found["half_width"] > 0
    assert "distilled student - no-teacher" in table


def test_a_control_has_the_students_steps_and_all_data_has_all_the_text(whole: Path) -> None:
    reports = {name: json.loads((student(whole, name) / "report.json").read_text()) for name in VARIANTS}
    assert {report["steps"] for report in reports.values()} == {6}
    assert reports["student"]["tokens_of_text"] == reports["no-teacher"]["tokens_of_text"]
    ratio = reports["all-data"]["tokens_of_text"] / reports["student"]["tokens_of_text"]
    assert ratio == pytest.approx(2, rel=0.05)


def test_the_results_say_how_many_tokens_each_domain_has(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    domains = results["tokens_of_text_by_domain"]
    assert set(domains) == {"tales", "made"}
    assert sum(domains.values()) == json.loads((student(whole) / "report.json").read_text())["tokens_of_text"]
    assert f"tales {domains['tales']:,}" in (whole / "table.txt").read_text()


def test_a_domains_name_is_shown_as_it_is(place: Path, tmp_path: Path) -> None:
    text = (
        "data.train=[{path: train.txt, domain: '[/news]'}, {sample: train, size: 20k, domain: ':smile: [b]'}]"
    )
    table = (distilled("plain", text, output_dir=tmp_path) / "table.txt").read_text()
    assert "by domain: [/news] " in table and ", :smile: [b] " in table


def test_the_curves_are_a_picture(whole: Path) -> None:
    pixels = image.imread(whole / "curves.png", format="png")
    assert pixels.shape[0] > 300 and len({tuple(pixel) for pixel in pixels.reshape(-1, 4)[::7]}) > 5


@pytest.mark.parametrize("variant", VARIANTS)
def test_models_load_with_transformers_alone(whole: Path, variant: str) -> None:
    folder = student(whole, variant) / "model"
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert len(tokenizer) == model.config.vocab_size == 300
    ids = torch.tensor([tokenizer("The dog")["input_ids"]])
    assert torch.isfinite(model(ids).logits).all()


def test_seeds_differ_and_share_the_adapted_teachers(whole: Path) -> None:
    keys = [json.loads((student(whole, seed=seed) / "stage.json").read_text())["key"] for seed in (1, 2)]
    assert keys[0]["teachers"] == keys[1]["teachers"] and set(keys[0]["teachers"]) == {"g", "l"}
    assert weights(whole, seed=1) != weights(whole, seed=2)
    assert kinds(set(built(whole.parent)))["adapted"] == 2


def test_a_runs_model_can_be_edited_without_a_change_of_the_shared_one(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = distilled("plain", output_dir=tmp_path)
    before = built(tmp_path)
    config = student(run) / "model" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert built(tmp_path) == before
    refused = stlm_kd("eval", str(run), "--suite", "perplexity", "--data", "valid.txt")
    assert refused.exit_code == 1
    assert "config.json: changed since this model was completed; give the run's command" in refused.stderr
    distilled("plain", output_dir=tmp_path)
    assert "config.json: changed since this model was completed; it is made again" in caplog.text
    assert built(tmp_path) == before
    assert not config.read_text().endswith("\n\n")
    edited = student(run).with_name(f".{student(run).name}.damaged")
    assert (edited / "model" / "config.json").read_text() == config.read_text() + "\n"


def test_tracking_is_each_recipes_own(whole: Path) -> None:
    found = {}
    for folder in (whole.parent / "stages").glob("model-*"):
        fields = json.loads((folder / "stage.json").read_text())["key"]["student"]["fields"]
        found[fields["model_type"]] = (folder / "tensorboard").exists()
    assert found == {"gpt2": False, "llama": True}


def test_steps_are_logged_as_often_as_asked_for(place: Path, tmp_path: Path) -> None:
    for every, steps in ((2, [1, 2, 4, 6]), (6, [1, 6])):
        folder = tmp_path / str(every)
        run = distilled("plain", f"train.log_every={every}", output_dir=folder)
        lines = map(json.loads, (student(run) / "metrics.jsonl").read_text().splitlines())
        assert [line["step"] for line in lines if line["kind"] == "step"] == steps


def test_controls_do_not_depend_on_teachers_or_objectives(whole: Path) -> None:
    key = json.loads((student(whole, "no-teacher") / "stage.json").read_text())["key"]
    assert (key["teachers"], key["combine"]) == ({}, None)
    assert [term["loss"] for term in key["objectives"]] == ["labels"]


def test_the_lock_states_what_was_used_and_made(whole: Path, place: Path) -> None:
    lock = read_lock((whole / "recipe.lock").read_text())
    made = {
        path.name.rpartition("-")[2]: path.name.partition("-")[0] for path in whole.parent.glob("stages/*")
    }
    kinds_by_place = {name: made[digest] for name, digest in lock.stages.items()}
    teachers = {
        f"teachers.{t}.{s}": k for t in "gl" for s, k in (("trained", "model"), ("adapted", "adapted"))
    }
    students = {f"{variant}.seed-{seed}": "model" for variant in VARIANTS for seed in (1, 2)}
    assert kinds_by_place == {"student.tokenizer": "tokenizer", **teachers, **students}
    files = sorted(whole.glob("students/*/*/model/model.safetensors"))
    assert len(files) == 6
    assert lock.outputs == {path.relative_to(whole).as_posix(): hash_of(path) for path in files}
    assert lock.results == hash_of(whole / "results.json")
    assert lock.data["train.0"].sha256 == hash_of(place / "train.txt") and lock.data["train.0"].path
    assert lock.data["train.1"].name == "sample:train" and lock.data["teachers.g.train.0"].sha256
    assert lock.eval.keys() == {"lm-eval:sample_minimal_pairs"} and lock.seeds == (1, 2)
    record = json.loads((whole / "run.json").read_text())
    assert record["lock"] == hash_of(whole / "recipe.lock") and record["status"] == "done"
    with locked(str(whole), load(str(whole), is_stored=True), frozen=True):
        pass


def hash_of(path: Path) -> str:
    return f"sha256:{sha256(path.read_bytes()).hexdigest()}"


def test_the_same_command_again_builds_nothing(whole: Path, place: Path) -> None:
    before = built(whole.parent)
    written = [(whole / name).read_bytes() for name in ("recipe.lock", "results.json")]
    models = {path: path.stat().st_mtime_ns for path in (whole / "students").rglob("*") if path.is_file()}
    assert (place / distilled("whole", output_dir=Path("runs"))).resolve() == whole
    assert built(whole.parent) == before
    assert [(whole / name).read_bytes() for name in ("recipe.lock", "results.json")] == written
    assert {path: path.stat().st_mtime_ns for path in models} == models


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("eval=[perplexity]", {}),
        ("seeds=[1]", {}),
        ("tracking=[]", {}),
        ("objectives[1].temperature=3", {"model": 2, "eval": 4}),
        ("teachers[0].adapt.init=mean", {"adapted": 1, "model": 2, "eval": 6}),
        ("controls=[]", {}),
    ],
)
def test_a_changed_word_rebuilds_only_what_depends_on_it(
    whole: Path, place: Path, change: str, expected: dict[str, int]
) -> None:
    before = built(whole.parent)
    assert (place / distilled("whole", change, output_dir=Path("runs"))).resolve() != whole
    after = built(whole.parent)
    assert {name: after[name] for name in before} == before
    assert kinds(set(after) - set(before)) == expected


def test_runs_are_listed_and_shown(whole: Path, place: Path) -> None:
    (listed,) = [run for run in done("runs", "list") if run["path"].endswith(whole.name)]
    assert (listed["status"], listed["name"]) == ("done", "whole")
    shown = done("runs", "show", whole.name)
    assert shown["run"]["command"].startswith("stlm-kd") and "torch" in shown["run"]["versions"]
    assert len(shown["models"]) == 6
    assert "distilled student" in stlm_kd("runs", "show", whole.name).stdout


def test_each_student_has_a_card_that_its_shared_stage_has_not(whole: Path) -> None:
    rows = {row["variant"]: row for row in json.loads((whole / "results.json").read_text())["rows"]}
    for variant in VARIANTS:
        for place, seed in enumerate((1, 2)):
            card = (student(whole, variant, seed) / "model" / "README.md").read_text()
            bits, _ = rows[variant]["estimates"].values()
            assert f"| {bits['values'][place]:.4f}" in card and f"{bits['mean']:.4f} ± " in card
            assert "**synthetic**" in card and "license: unknown" in card
    assert not list((whole.parent / "stages").rglob("README.md"))


def test_a_report_tells_of_the_run_and_of_how_its_teachers_came_about(whole: Path, tmp_path: Path) -> None:
    shutil.move(shutil.copytree(whole, tmp_path / "there"), tmp_path / "elsewhere")
    target = tmp_path / "report.html"
    result = stlm_kd("report", str(tmp_path / "elsewhere"), "--html", str(target))
    assert result.exit_code == 0, result.output
    page = target.read_text(encoding="utf-8")
    for row in json.loads((whole / "results.json").read_text())["rows"]:
        assert row["name"] in page and f"{row['flops']:.2e}" in page
    for name in "gl":
        assert f"{name}, adaptation: " in page and f"{name}, training: " in page
    assert "CPU cores" in page and "corrected p" in page


def test_a_run_is_scored_again_and_continues_a_prompt(whole: Path, place: Path) -> None:
    scores = done("eval", str(whole), "--suite", "perplexity")[str(whole)]
    recorded = json.loads((whole / "results.json").read_text())["rows"][4]["suites"][0]
    assert scores[0]["scores"] == recorded[0]["scores"]
    words = ["generate", str(whole), "--prompt", "The", "--max-new-tokens", "5"]
    texts = [done(*words, "--seed", seed)["text"] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] and texts[0].startswith("The")


@pytest.mark.long
def test_side_by_side_gives_the_same_weights_as_one_after_the_other(place: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = distilled("plain", "seeds=[1, 2]", output_dir=tmp_path / "two", options=("--jobs", "2"))
        torch.set_num_threads(1)
        one = distilled("plain", "seeds=[1, 2]", output_dir=tmp_path / "one")
    finally:
        torch.set_num_threads(threads)
    for seed in (1, 2):
        assert weights(one, seed=seed) == weights(two, seed=seed)
