"""Bad input through the command line: one message on stderr, no traceback, the right exit code."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from stlm_kd.artifacts.record import read_record, write_record
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.models.load import save_model
from tests.support.pico import pico_model
from tests.support.road import LLAMA, distilled, done, model_folder, stlm_kd


@pytest.fixture(scope="module")
def bad(road: Path) -> Path:
    """Texts, models and tokenizers that cannot be used, beside the usable ones."""
    folder = road / "bad"
    folder.mkdir()
    own = load_tokenizer(str(road / "own"))
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text("\n \n")
    (folder / "tiny.txt").write_text("The dog sees a cat.\n")
    (folder / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (folder / "column.jsonl").write_text('{"body": "a"}\n')
    model_folder(folder / "other", "llama", load_tokenizer(str(road / "gpt2")))
    short = pico_model("gpt2", vocabulary=300)
    short.config.n_positions = 32
    short.transformer.wpe.weight.data = short.transformer.wpe.weight.data[:32].clone()
    save_model(short, own, folder / "short")
    save_model(pico_model("llama", vocabulary=290), own, folder / "few-rows")
    mute = load_tokenizer(str(road / "own"))
    mute.eos_token = mute.bos_token = None
    mute.save_pretrained(folder / "mute")
    for name, change in (("code-model", "config.json"), ("code-tokenizer", "tokenizer_config.json")):
        shutil.copytree(road / "same", folder / name)
        config = json.loads((folder / name / change).read_text())
        config["auto_map"] = {
            "AutoConfig": "own.OwnConfig",
            "AutoModelForCausalLM": "own.OwnModel",
            "AutoTokenizer": ["own.Own", None],
        }
        config["model_type"] = "own"
        config["tokenizer_class"] = "Own"
        (folder / name / change).write_text(json.dumps(config))
        (folder / name / "own.py").write_text("raise SystemExit('remote code ran')\n")
    (folder / "nothing").mkdir()
    return folder


MODEL = "teachers=[{name: a, model: %s}]"
BAD_RECIPES = [
    # misspelt, of a wrong type, unknown
    ("taught", ["train.stepz=3"], 3, "train.stepz", "did you mean steps?"),
    ("taught", ["train.steps=many"], 3, "train.steps", "'many' found; expected"),
    ("taught", ["objectives[1].loss=reverse_k"], 3, "objectives[1].loss", "did you mean reverse_kl?"),
    ("taught", ["data.validation=null", "train.validate_every=null", "teachers[0].adapt={}"], 3,
     "data.validation", "adapting a teacher"),
    ("taught", ["objectives[1].teacher=c"], 3, "objectives[1].teacher", "c is not a teacher"),
    ("plain", ["data.validation=null", "train.validate_every=null", "eval=[perplexity]"], 3, "eval[0]",
     "measured on data.validation"),
    ("plain", ["eval=[{suite: lm-eval, tasks: [no_task]}]"], 2, "no_task", "lm-eval"),
    # files
    ("taught", ["data.train=no.txt"], 5, "no.txt", "no such file"),
    ("plain", ["data.validation=no.txt"], 5, "no.txt", "no such file"),
    ("plain", ["data.train={hub: some/data}"], 5, "some/data", "not in the cache, and offline mode is on"),
    ("plain", ["student.tokenizer=some/tokenizer"], 5, "some/tokenizer", "not in the cache"),
    ("taught", [MODEL % "some/model"], 5, "some/model", "not in the cache, and offline mode is on"),
    ("taught", [MODEL % "bad/nothing"], 5, "teachers[0] (a): bad/nothing", "without config.json"),
    # text
    ("plain", ["data.train=bad/empty.txt"], 1, "bad/empty.txt", "no text in it"),
    ("plain", ["data.validation=bad/blank.txt"], 1, "bad/blank.txt", "no text in it"),
    ("plain", ["data.train=bad/tiny.txt"], 1, "data.train", "one row of data.context has 64"),
    ("plain", ["data.validation=bad/tiny.txt"], 1, "data.validation", "one row of data.context has 64"),
    ("plain", ["data.train=bad/broken.jsonl"], 1, "broken.jsonl:2", ""),
    ("plain", ["data.train=bad/column.jsonl"], 1, "column.jsonl", "body"),
    # models and tokenizers
    ("taught", [MODEL % "bad/other"], 3, "teachers[0] (a)", "it has all of these, so add adapt: {tokens: 0}"),
    ("taught", [MODEL % "bad/short"], 3, "teachers[0] (a)", "32 positions, but data.context is 64"),
    ("taught", [MODEL % "bad/few-rows"], 3, "teachers[0] (a)", "has 290 rows"),
    ("plain", ["student={tokenizer: own, model: bad/other}"], 3, "student.model", "(320 tokens)"),
    ("plain", ["student={tokenizer: own, model: bad/short}"], 3, "student.model", "32 positions"),
    ("plain", ["student.tokenizer=bad/mute"], 3, "bad/mute", "no eos token"),
    ("taught", ["student={tokenizer: own, init_from: {teacher: a, layers: [0, 2]}}"], 3,
     "student.init_from.layers", "the teacher has 2 layers; use different indices 0 to 1"),
    ("plain", ["student.architecture.hidden_size=4096", "student.architecture.intermediate_size=20000"], 3,
     "student", "at most 150,000,000"),
    ("plain", ["student.architecture.hiden_size=4"], 3, "student.architecture.hiden_size", "hidden_size?"),
    ("plain", ["student.architecture.model_type=lama"], 3, "student.architecture.model_type", "llama?"),
    ("taught", [MODEL % "bad/code-model"], 3, "bad/code-model", "--trust-remote-code"),
    ("plain", ["student.tokenizer=bad/code-tokenizer"], 3, "bad/code-tokenizer", "--trust-remote-code"),
]  # fmt: skip


def assert_one_message(stderr: str, *parts: str) -> None:
    assert "Traceback" not in stderr
    progress = ("scoring ", "still ")  # the latter where a busy machine takes long
    lines = [line for line in stderr.splitlines() if line.strip() and not line.startswith(progress)]
    assert len(lines) == 1 or (re.search(r"1 fault$", lines[0]) and len(lines) == 2), stderr
    for part in parts:
        assert part in " ".join(lines)


@pytest.mark.parametrize(("recipe", "changes", "code", "place_named", "words"), BAD_RECIPES)
def test_a_bad_recipe_is_refused_before_anything_is_trained(
    bad: Path, place: Path, tmp_path: Path,
    recipe: str, changes: list[str], code: int, place_named: str, words: str,
) -> None:  # fmt: skip
    result = stlm_kd("distill", "-r", f"{recipe}.yaml", *changes, "--output-dir", str(tmp_path))
    assert result.exit_code == code, f"{result.output}{result.exception!r}"
    assert_one_message(result.stderr, place_named, words)
    assert result.stdout == ""
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_all_faults_of_the_teachers_are_said_at_once(bad: Path, place: Path, tmp_path: Path) -> None:
    teachers = "teachers=[{name: a, model: bad/other}, {name: b, model: bad/short}]"
    result = stlm_kd("distill", "-r", "taught.yaml", teachers, "--output-dir", str(tmp_path))
    assert result.exit_code == 3
    lines = result.stderr.splitlines()
    assert lines[0].endswith("2 faults") and len(lines) == 3


def test_a_teacher_recipes_faults_are_found_before_it_is_trained(place: Path, tmp_path: Path) -> None:
    recipe = f"{{task: clm, student: {{tokenizer: gpt2, architecture: {LLAMA}}}, data: {{train: train.txt}}, "
    recipe += "objectives: [{loss: labels}], train: {steps: 2}}"
    teachers = f"teachers=[{{name: a, recipe: {recipe}}}]"
    result = stlm_kd("distill", "-r", "taught.yaml", teachers, "--output-dir", str(tmp_path))
    assert result.exit_code == 3, result.output
    assert_one_message(result.stderr, "teachers[0] (a)", "vocabulary (320 tokens)")
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize("part", ["eval: [perplexity]", "controls: [no-teacher]", "seeds: [1, 2]"])
def test_what_a_teachers_recipe_would_say_in_vain_is_refused(place: Path, tmp_path: Path, part: str) -> None:
    text = (place / "teacher-gpt2.yaml").read_text()
    (tmp_path / "teacher.yaml").write_text(f"{text}{part}\n")
    teachers = f"teachers=[{{name: a, recipe: {tmp_path}/teacher.yaml, adapt: {{}}}}]"
    result = stlm_kd("distill", "-r", "taught.yaml", teachers, "--output-dir", str(tmp_path))
    assert result.exit_code == 3
    assert f"teachers[0].recipe.{part.partition(':')[0]}" in result.stderr


def test_the_folder_of_another_recipes_run_is_refused(place: Path, tmp_path: Path) -> None:
    run = distilled("plain", output_dir=tmp_path)
    write_record(run / "run.json", replace(read_record(run / "run.json"), recipe_hash="0" * 64))
    result = stlm_kd("distill", "-r", "plain.yaml", "--output-dir", str(tmp_path))
    assert result.exit_code == 1
    assert_one_message(result.stderr, str(run), "the run of another recipe")


def test_checkpoints_of_other_text_are_refused_and_never_anew_is_a_way_out(
    place: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text((place / "train.txt").read_text())
    words = ["distill", "-r", "plain.yaml", f"data.train={text}", "--output-dir", str(tmp_path)]
    exploding = ["train.learning_rate=1e30", "train.clip=null", "train.warmup=0", "train.checkpoint_every=1"]
    assert stlm_kd(*words, *exploding).exit_code == 1
    text.write_text((place / "train.txt").read_text()[1000:])
    result = stlm_kd(*words, *exploding)
    assert result.exit_code == 1
    assert_one_message(result.stderr.splitlines()[-1], "made by another recipe")
    anew = stlm_kd(*words, *exploding, "--resume", "never")
    assert "not finite" in anew.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["distill", "-r", "no.yaml"], 5, "no.yaml"),
        (["distill", "-r", "adapts.yaml"], 2, "stlm-kd adapt-teacher"),
        (["adapt-teacher", "-r", "taught.yaml"], 2, "none of its teachers has adapt"),
        (["adapt-teacher", "gpt2", "--tokenizer", "own", "--data", "train.txt"], 2, "--validation"),
        (["eval", "same", "--suite", "perplexity"], 2, "--data"),
        (["eval", "same", "--suite", "perplexty", "--data", "valid.txt"], 2, "perplexity?"),
        (["eval", "same", "--suite", "{suite: lm-eval, tasks: [no_task]}"], 2, "no_task"),
        (["generate", "nowhere", "--prompt", "The"], 5, "nowhere"),
        (["generate", "same", "--prompt", "The dog " * 99], 2, "64 positions"),
        (["runs", "show", "nothing"], 5, "nothing"),
        (
            ["eval", "bad/code-model", "--suite", "perplexity", "--data", "valid.txt"],
            3,
            "--trust-remote-code",
        ),
        (["generate", "bad/mute", "--prompt", "The"], 5, "bad/mute"),
    ],
)
def test_wrong_words_on_the_command_line_are_one_message(
    bad: Path, place: Path, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    own = ["--output-dir", str(tmp_path)] if words[0] in ("distill", "adapt-teacher", "runs") else []
    result = stlm_kd(*words, *own)
    assert result.exit_code == code, f"{result.output}{result.exception!r}"
    assert_one_message(result.stderr, said)


def test_a_launcher_that_does_not_say_where_to_meet_is_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = stlm_kd("distill", "-r", "plain.yaml", "--output-dir", str(tmp_path))
    assert result.exit_code == 5
    assert_one_message(result.stderr, "WORLD_SIZE: 2 processes", "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT")


def test_the_run_that_failed_is_listed_with_its_reason(bad: Path, place: Path, tmp_path: Path) -> None:
    stlm_kd("distill", "-r", "plain.yaml", "data.train=bad/tiny.txt", "--output-dir", str(tmp_path))
    (run,) = done("runs", "list", "--output-dir", str(tmp_path))
    assert run["status"] == "failed"
    assert "one row of data.context" in stlm_kd("runs", "show", run["path"]).stdout
