"""The commands ``recipe`` and ``runs`` through the real application."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stlm_kd.cli.console import print_json, print_rows
from stlm_kd.cli.main import app
from stlm_kd.pipeline import recording
from stlm_kd.recipe import load, recipe_hash
from stlm_kd.recipe.locate import built_in, built_in_objectives

RECIPE = """# Purpose: a test.
task: clm
student: {tokenizer: {train: bpe, size: 300}, preset: stlm-nano}
data: {train: a.txt}
objectives: [{loss: labels}]
train: {steps: 10}
"""


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(RECIPE)
    Path("a.txt").write_text("some text")
    return CliRunner()


def test_a_name_that_steers_terminals_is_escaped_in_messages(runner: CliRunner) -> None:
    done = runner.invoke(app, ["recipe", "validate", "a\x1b[2J\u202eb"])
    assert done.exit_code == 5 and done.output.startswith(r"a\x1b[2J\u202eb: neither a file")


def test_list_shows_every_built_in_recipe_with_its_purpose(runner: CliRunner) -> None:
    done = runner.invoke(app, ["recipe", "list"])
    assert done.exit_code == 0
    for recipe in [*built_in(), *built_in_objectives()]:
        assert recipe.name in done.stdout and recipe.purpose in done.stdout
    listed = json.loads(runner.invoke(app, ["recipe", "list", "--json"]).stdout)
    for kind, known in (("recipe", built_in()), ("objectives", built_in_objectives())):
        assert [entry["name"] for entry in listed if entry["kind"] == kind] == [one.name for one in known]


def test_show_prints_the_file_as_it_is(runner: CliRunner) -> None:
    assert runner.invoke(app, ["recipe", "show", "mine.yaml"]).stdout == RECIPE


def test_what_does_not_print_is_escaped_as_text_and_as_json(
    runner: CliRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = "\u202e\u009b\U000e0041"
    Path("odd.yaml").write_text(f"# {odd.replace(chr(0x9B), '')}\n{RECIPE}")
    shown = runner.invoke(app, ["recipe", "show", "odd.yaml"]).stdout
    assert shown.startswith("# \\u202e\\U000e0041\n") and shown.endswith(RECIPE)
    print_json({odd: [odd, "é\n"]})
    document = capsys.readouterr().out
    assert json.loads(document) == {odd: [odd, "é\n"]} and "é" in document
    print_rows(("NAME",), [(odd,)])
    assert all(line.isprintable() for line in (document + capsys.readouterr().out).split("\n"))


def test_show_resolved_applies_changes_and_fills_in_defaults(runner: CliRunner) -> None:
    done = runner.invoke(app, ["recipe", "show", "mine.yaml", "--resolved", "train.steps=8k"])
    Path("again.yaml").write_text(done.stdout)
    assert "learning_rate: 0.0005" in done.stdout
    assert load("again.yaml") == load("mine.yaml", ["train.steps=8000"])


def test_show_with_changes_wants_resolved(runner: CliRunner) -> None:
    done = runner.invoke(app, ["recipe", "show", "mine.yaml", "train.steps=8k"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--resolved" in done.stderr


def test_copy_never_overwrites_unless_it_is_told_to(runner: CliRunner) -> None:
    first = runner.invoke(app, ["recipe", "copy", "stlm-47m-clm"])
    assert first.exit_code == 0
    copied = Path("stlm-47m-clm.yaml")
    original = copied.read_text()
    assert recipe_hash(load("stlm-47m-clm.yaml")) == recipe_hash(load("stlm-47m-clm"))
    copied.write_text("mine")
    second = runner.invoke(app, ["recipe", "copy", "stlm-47m-clm", "."])
    assert second.exit_code == 2 and copied.read_text() == "mine" and "--force" in second.stderr
    assert runner.invoke(app, ["recipe", "copy", "stlm-47m-clm", ".", "--force"]).exit_code == 0
    assert copied.read_text() == original


def test_copy_to_a_folder_that_is_not_there_is_one_message(runner: CliRunner) -> None:
    done = runner.invoke(app, ["recipe", "copy", "stlm-47m-clm", "nowhere/x.yaml"])
    assert done.exit_code == 5 and "cannot be written" in done.stderr


def test_validate_says_ok_with_the_hash(runner: CliRunner) -> None:
    done = runner.invoke(app, ["recipe", "validate", "mine.yaml", "--json"])
    assert json.loads(done.stdout) == {
        "recipe": "mine.yaml",
        "ok": True,
        "hash": recipe_hash(load("mine.yaml")),
        "missing": [],
    }


def test_validate_says_every_fault_and_exits_with_3(runner: CliRunner) -> None:
    words = ["recipe", "validate", "mine.yaml", "train.stpes=3", "data.contxt=8"]
    done = runner.invoke(app, words)
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.splitlines() == [
        "mine.yaml: 2 faults",
        "  data.contxt=8: not a key of data (did you mean context?)",
        "  train.stpes=3: not a key of train (did you mean steps?)",
    ]
    machine = runner.invoke(app, [*words, "--json"])
    assert machine.exit_code == 3
    assert [fault["place"] for fault in json.loads(machine.stdout)["faults"]] == [
        "data.contxt=8",
        "train.stpes=3",
    ]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["recipe", "show", "nowhere"], 5),
        (["recipe", "validate", "mine.yaml", "train.steps"], 2),
        (["recipe", "shwo"], 2),
        (["runs", "show", "nowhere"], 5),
        (["runs", "show", "."], 1),
    ],
)
def test_errors_are_one_message_and_an_exit_code(runner: CliRunner, words: list[str], code: int) -> None:
    done = runner.invoke(app, words)
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr and "Traceback" not in done.stderr


def test_runs_are_listed_and_shown(runner: CliRunner) -> None:
    assert runner.invoke(app, ["runs", "list"]).stdout == ""
    run = recording.create(load("mine.yaml"), name="mine", output_dir=Path("runs"), command="stlm-kd distill")
    (run.path / "table.txt").write_text("the table\n")
    model = run.path / "students" / "student" / "seed-1" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    run.finish("done")
    listed = json.loads(runner.invoke(app, ["runs", "list", "--json"]).stdout)
    assert [(entry["name"], entry["status"]) for entry in listed] == [("mine", "done")]
    assert str(run.path) in runner.invoke(app, ["runs", "list"]).stdout
    shown = runner.invoke(app, ["runs", "show", run.path.name]).stdout
    for part in ("done", "stlm-kd distill", "the table", f"model: {model}", run.record.recipe_hash):
        assert part in shown
    assert json.loads(runner.invoke(app, ["runs", "show", str(run.path), "--json"]).stdout)["models"] == [
        str(model)
    ]
