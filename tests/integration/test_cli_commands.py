"""``distill``, ``adapt-teacher``, ``eval``, ``generate``: arguments passed on, output and exit codes."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from stlm_kd.artifacts.record import new_record
from stlm_kd.artifacts.results import Score, SuiteResult
from stlm_kd.cli.main import app
from stlm_kd.errors import Interrupted, NonFiniteError, Preempted, StlmKdError
from stlm_kd.pipeline import adapt
from stlm_kd.pipeline.run import Run
from stlm_kd.recipe import Recipe

RECIPE = """
task: clm
student: {tokenizer: t, preset: stlm-nano}
teachers: [{name: a, model: m, adapt: {tokens: 1k}}, {name: b, model: n}]
data: {train: a.txt, validation: b.txt}
objectives: [{loss: labels}, {loss: forward_kl}]
train: {steps: 10}
"""


@dataclass
class Calls:
    """Stands in for the functions that do the work."""

    arguments: list[dict[str, Any]] = field(default_factory=list)
    result: Any = None
    error: BaseException | None = None

    def __call__(self, first: object, **arguments: Any) -> Any:
        self.arguments.append({"first": first, **arguments})
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(RECIPE)
    model = Path("run/students/student/seed-1/model")
    model.mkdir(parents=True)
    record = new_record("run", "0" * 64, "stlm-kd distill")
    written = {
        "table.txt": "the table\n",
        "results.json": '{"loss": 1}',
        "run.json": json.dumps(asdict(record)),
        "recipe.yaml": RECIPE,
    }
    for name, text in written.items():
        Path("run", name).write_text(text)
    (model / "config.json").write_text("{}")
    return CliRunner()


def replaced(monkeypatch: pytest.MonkeyPatch, module: str, name: str, calls: Calls) -> Calls:
    stand_in = ModuleType(f"stlm_kd.{module}")
    setattr(stand_in, name, calls)
    monkeypatch.setitem(sys.modules, f"stlm_kd.{module}", stand_in)
    return calls


def test_distill_hands_on_the_recipe_and_its_options(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = replaced(monkeypatch, "pipeline.distill", "distill", Calls(result=Run(Path("run"))))
    words = ["distill", "-c", "mine.yaml", "train.steps=3", "--seeds", "1,2", "--resume", "never"]
    done = runner.invoke(app, [*words, "--output-dir", "out", "--jobs", "2", "--trust-remote-code"])
    assert done.exit_code == 0, done.stderr
    (given,) = calls.arguments
    assert isinstance(given["first"], Recipe)
    assert (given["first"].train.steps, given["first"].seeds) == (3, (1, 2))
    assert (given["name"], given["output_dir"], given["resume"]) == ("mine", Path("out"), False)
    assert (given["jobs"], given["trust_remote_code"]) == (2, True)
    assert "the table" in done.stdout and "stlm-kd generate run" in done.stdout


def test_distill_prints_json_alone_on_stdout(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, "pipeline.distill", "distill", Calls(result=Run(Path("run"))))
    done = runner.invoke(app, ["distill", "-r", "mine.yaml", "--json"])
    assert json.loads(done.stdout) == {"folder": "run", "results": {"loss": 1}}


def test_a_dry_run_shows_the_plan_and_runs_nothing(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replaced(monkeypatch, "pipeline.distill", "distill", Calls())
    planned = SimpleNamespace(text="the plan", require=lambda: None, require_room=lambda **_: None)
    replaced(monkeypatch, "pipeline.plan", "plan", Calls(result=planned))
    monkeypatch.setattr("stlm_kd.cli.distill.print_of_recipes", lambda *_, **__: None)  # has no model here
    done = runner.invoke(app, ["distill", "-r", "mine.yaml", "--dry-run"])
    assert (done.exit_code, done.stdout, run.arguments) == (0, "the plan\n", [])
    refused = runner.invoke(app, ["distill", "-r", "mine.yaml", "--dry-run", "--json"])
    assert refused.exit_code == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Interrupted("saved"), 130),
        (Preempted("saved"), 75),
        (NonFiniteError("loss is nan"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_ends_in_its_exit_code_without_a_traceback(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    replaced(monkeypatch, "pipeline.distill", "distill", Calls(error=error))
    done = runner.invoke(app, ["distill", "-r", "mine.yaml"])
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.strip() == (str(error) if isinstance(error, StlmKdError) else "interrupted")


def test_distill_of_a_recipe_that_only_adapts_says_which_command_does(runner: CliRunner) -> None:
    done = runner.invoke(app, ["distill", "-r", "adapt-qwen2-0.5b"])
    assert done.exit_code == 2 and "stlm-kd adapt-teacher -r adapt-qwen2-0.5b" in done.stderr


@pytest.mark.parametrize("earlier", [False, True], ids=["changes", "options of earlier releases"])
def test_adapt_teacher_makes_a_recipe_of_its_words(
    earlier: bool, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(result=Run(Path("run")))
    monkeypatch.setattr(adapt, "adapt_teacher", calls)
    words = ["adapt-teacher", "org/model", "--tokenizer", "t", "--data", "a.txt", "--data", "c.txt"]
    words += ["--validation", "b.txt", "--suite", "{suite: lm-eval, tasks: [blimp, arc_easy]}"]
    given = {"tokens": "2M", "init": "mean", "seed": "3", "objective": "self-distillation"}
    given |= {"learning_rate": "0.001"}
    changes = [f"teachers[0].adapt.{name}={value}" for name, value in given.items()]
    changes += ["data.context=64", "task=clm"]
    options = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    options += ["--context=64", "--task", "clm"]
    done = runner.invoke(app, [*words, *(options if earlier else changes)])
    assert done.exit_code == 0, done.stderr
    replaced_by = [line.partition(" is replaced by ")[2] for line in done.stderr.splitlines()]
    expected = [f"{shlex.quote(change)}, and goes in the next release" for change in changes]
    assert replaced_by == (expected if earlier else [])
    (given,) = calls.arguments
    recipe = given["first"]
    (teacher,) = recipe.teachers
    assert (teacher.name, teacher.model, given["teacher"]) == ("model", "org/model", None)
    assert (teacher.adapt.tokens, teacher.adapt.init, teacher.adapt.seed) == (2_000_000, "mean", 3)
    assert teacher.adapt.learning_rate == 0.001
    assert teacher.adapt.objective == {"self-distillation": 1.0}
    (suite,) = recipe.eval
    assert (suite.suite, suite.options["tasks"]) == ("lm-eval", ("blimp", "arc_easy"))
    assert [source.path for source in recipe.data.train] == ["a.txt", "c.txt"]
    assert (recipe.data.context, recipe.student.tokenizer) == (64, "t")


def test_adapt_teacher_takes_a_recipe_and_a_teachers_name(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = replaced(monkeypatch, "pipeline.adapt", "adapt_teacher", Calls(result=Run(Path("run"))))
    words = ["adapt-teacher", "-r", "mine.yaml", "a", "teachers[0].adapt.tokens=5k", "--resume", "never"]
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done.stderr
    (given,) = calls.arguments
    assert (given["teacher"], given["first"].teachers[0].adapt.tokens) == ("a", 5000)
    assert given["resume"] is False


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "expected one TEACHER"),
        (["m"], 2, "--tokenizer, --data, --validation: not given"),
        (
            ["m", "--tokenizer", "t", "--data", "a", "--validation", "b", "teachers[0].adapt.init=men"],
            3,
            "did you mean mean?",
        ),
        (
            ["m", "--tokenizer", "t", "--data", "a", "--validation", "b", "teachers[0].adapt.tokens=few"],
            3,
            "adapt.tokens=few: 'few' found; expected an integer",
        ),
        (["m", "--tokenizer", "t", "--tasks", "blimp"], 2, "No such option: --tasks"),
        (["-r", "mine.yaml", "--tokenizer", "t"], 2, "change the recipe as in"),
        (["-r", "mine.yaml", "b"], 2, "b: not a teacher that mine adapts"),
        (["-r", "mine.yaml", "a", "b"], 2, "expected the name of one teacher"),
        (["-r", "mine.yaml", "teachers[0].adapt=null"], 2, "none of its teachers has adapt"),
    ],
)
def test_adapt_teacher_says_what_is_missing(
    runner: CliRunner, words: list[str], code: int, message: str
) -> None:
    done = runner.invoke(app, ["adapt-teacher", *words])
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in done.stderr


def test_eval_hands_on_checked_suites_and_prints_a_table(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = SuiteResult("lm-eval", (Score("blimp", "acc", 0.625, 0.01, 100, choices=2, chance=0.5),))
    calls = replaced(monkeypatch, "pipeline.scoring.evaluate", "evaluate", Calls(result={"m": [result]}))
    words = ["eval", "m", "--suite", "perplexity", "--suite", "lm-eval", "--tasks", "blimp", "--limit", "5"]
    words += ["--set", "seed=3"]
    done = runner.invoke(app, [*words, "--data", "b.txt"])
    assert done.exit_code == 0, done.stderr
    (given,) = calls.arguments
    assert given["suites"] == ["perplexity", "lm-eval"]
    assert given["options"] == {"tasks": ["blimp"], "limit": 5, "seed": 3}
    assert (given["first"], given["data"]) == (["m"], [Path("b.txt")])
    assert (given["text"], given["label"]) == (None, None)
    assert "0.625 ± 0.010" in done.stdout and "0.500" in done.stdout
    machine = json.loads(runner.invoke(app, [*words, "--json"]).stdout)
    assert machine["m"][0]["scores"][0]["value"] == 0.625


def test_eval_hands_on_the_columns_of_examples(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = replaced(monkeypatch, "pipeline.scoring.evaluate", "evaluate", Calls(result={}))
    words = ["eval", "m", "--suite", "classification", "--text", "one, two", "--label", "kind"]
    assert runner.invoke(app, words).exit_code == 0
    (given,) = calls.arguments
    assert (given["text"], given["label"], given["data"]) == (["one", "two"], "kind", ())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["m", "--suite", "perplexty"], 2, "did you mean perplexity?"),
        (["m", "--suite", "{suite: perplexity, strid: 3}"], 2, "did you mean stride?"),
        (["m", "--suite", "perplexity", "--limit", "3"], 2, "limit: not an option of perplexity"),
        (["m", "--suite", "[1"], 2, "not YAML"),
        (["m", "m", "--suite", "perplexity"], 2, "m: given twice"),
        (["m"], 2, "--suite"),
    ],
)
def test_eval_refuses_what_it_does_not_know(
    runner: CliRunner, words: list[str], code: int, message: str
) -> None:
    done = runner.invoke(app, ["eval", *words])
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in done.stderr


def test_generate_prints_the_text(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = replaced(monkeypatch, "pipeline.generate", "generate", Calls(result="The end."))
    done = runner.invoke(app, ["generate", "run", "--prompt", "The", "--temperature", "0", "--seed", "4"])
    assert done.stdout == "The end.\n"
    assert calls.arguments == [
        {
            "first": "run",
            "prompt": "The",
            "max_new_tokens": 50,
            "temperature": 0.0,
            "seed": 4,
            "trust_remote_code": False,
        }
    ]


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.distill",
        "recipe.describe",
        "pipeline.adapt",
        "pipeline.scoring.evaluate",
        "pipeline.generate",
    ],
)
def test_the_library_accepts_what_the_command_line_hands_on(module: str) -> None:
    import importlib
    import inspect

    name = {"pipeline.adapt": "adapt_teacher"}.get(module, module.split(".")[-1])
    given = {
        "pipeline.distill": "name output_dir resume jobs trust_remote_code command",
        "recipe.describe": "",
        "pipeline.adapt": "teacher name output_dir resume trust_remote_code command",
        "pipeline.scoring.evaluate": "suites options data text label teachers trust_remote_code",
        "pipeline.generate": "prompt max_new_tokens temperature seed trust_remote_code",
    }[module]
    function = getattr(importlib.import_module(f"stlm_kd.{module}"), name)
    bound = inspect.signature(function).bind(object(), **dict.fromkeys(given.split()))
    assert set(list(bound.arguments)[1:]) == set(given.split())


@pytest.mark.parametrize(("written", "tokens"), [("40000", 40_000), ("4k", 4_000), ("1e6", 1_000_000)])
def test_tokens_are_written_as_in_a_recipe(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, written: str, tokens: int
) -> None:
    calls = Calls(result=Run(Path("run")))
    monkeypatch.setattr(adapt, "adapt_teacher", calls)
    words = ["adapt-teacher", "m", "--tokenizer", "t", "--data", "a", "--validation", "b", "task=clm"]
    done = runner.invoke(app, [*words, f"teachers[0].adapt.tokens={written}"])
    assert done.exit_code == 0, done.stderr
    assert calls.arguments[0]["first"].teachers[0].adapt.tokens == tokens


@pytest.mark.parametrize("place", ["run", ".", "/", "/dev/null"])
@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["report", "nowhere"], "--html"),
        (["compare", "nowhere"], "--output"),
        (["eval", "nowhere", "--suite", "perplexity"], "--output"),
        (["agreement", "nowhere", "here"], "--output"),
        (["agreement", "nowhere", "here", "--attributions", "lime"], "--html"),
        (["interchange", "nowhere", "here"], "--output"),
    ],
)
def test_a_folder_is_no_file_to_write_and_keeps_what_it_holds(
    runner: CliRunner, words: list[str], option: str, place: str
) -> None:
    done = runner.invoke(app, [*words, option, place])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{option} {Path(place)}: ")
    assert done.stderr.count("\n") == 1 and "expected the name of a file" in done.stderr
    kept = ["recipe.yaml", "results.json", "run.json", "students", "table.txt"]
    assert sorted(path.name for path in Path("run").iterdir()) == kept
