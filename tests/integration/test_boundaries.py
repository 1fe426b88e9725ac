"""What the system hands to a command: paths, variables of launchers, ports; and what a terminal gets."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import distributed
from typer.core import TyperCommand
from typer.testing import CliRunner

from stlm_kd.cli.group import Command
from stlm_kd.cli.main import app
from stlm_kd.data.sources.files import text_files
from stlm_kd.distributed import TIMEOUT, join_processes
from stlm_kd.errors import DataError, MissingResourceError, Preempted, RemoteProcessError
from stlm_kd.extensions import load_extensions
from tests.support.compared import run_folder, seeds_of
from tests.support.pico import pico_model

SAMPLE = ["distill", "--dry-run", "-r", "sample-teacher-gpt2"]
NOBODY = "~nosuchuser/x"
LAUNCHED = {
    "WORLD_SIZE": "2",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29999",
}


def assert_one_message(words: list[str], code: int, *parts: str, **variables: str) -> None:
    result = CliRunner().invoke(app, words, env=variables)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code
    assert all(part in result.stderr for part in parts), result.stderr
    assert len(result.stderr.splitlines()) <= 3
    assert all(sign.isprintable() or sign == "\n" for sign in result.stderr)


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        pytest.param(["distill", "-r", NOBODY], 5, "no user nosuchuser", id="recipe"),
        pytest.param(["recipe", "show", "x" * 300], 5, "at most 255 bytes", id="long recipe"),
        pytest.param([*SAMPLE, f"data.train={NOBODY}"], 5, "no user nosuchuser", id="data"),
        pytest.param([*SAMPLE, f"student.tokenizer={NOBODY}"], 5, "no user nosuchuser", id="tokenizer"),
        pytest.param([*SAMPLE, "data.train=" + "a/" * 3000], 3, "fewer than 4096 in all", id="long data"),
        pytest.param(["generate", NOBODY, "--prompt", "x"], 5, "no user nosuchuser", id="model"),
        pytest.param(["compare", "x" * 300, "y"], 5, "no such run folder", id="run"),
        pytest.param(["recipe", "show", "\x1b[2J\u202ex"], 5, "\\x1b[2J\\u202ex", id="controls"),
    ],
)
def test_a_path_that_cannot_be_is_refused_by_its_name(words: list[str], code: int, part: str) -> None:
    assert_one_message(words, code, part)


@pytest.mark.parametrize("blank", ["", " \t"])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("--output-dir", (*SAMPLE, "--output-dir", "{}")),
        ("--recipe", ("distill", "--dry-run", "-r", "{}")),
        ("--data", ("adapt-teacher", "m", "--tokenizer", "t", "--data", "a.txt", "--data", "{}")),
        ("--html", ("report", "run", "--html={}")),
        ("[DEST]", ("recipe", "copy", "sample-teacher-gpt2", "{}")),
        ("RUN", ("runs", "show", "{}")),
    ],
)
def test_a_blank_value_names_nothing_and_not_the_current_folder(
    place: str, words: tuple[str, ...], blank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = f"{place}: {blank!r} found; expected text that is not blank"
    assert_one_message([word.format(blank) for word in words], 2, message)
    assert not [*tmp_path.iterdir()]


def test_only_a_prompt_may_be_blank() -> None:
    assert_one_message(["generate", "/nowhere", "--prompt", ""], 5, "/nowhere: no such folder")


@pytest.mark.parametrize("place", ["data.train", "student.tokenizer", "student.model"])
def test_a_blank_path_of_a_recipe_is_a_fault(place: str) -> None:
    assert_one_message(["recipe", "validate", SAMPLE[-1], f"{place}=' '"], 3, place, "' ' found; expected")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/dev/zero", "a pipe or a device"),
        ("pipe.txt", "a pipe or a device"),
        ("socket.txt", "a pipe or a device"),
        ("link.txt", "made by the system"),
        ("/proc", "made by the system"),
    ],
)
def test_data_whose_reading_may_never_end_are_named_when_a_recipe_is_checked(
    path: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.txt")
    Path("link.txt").symlink_to("/proc/kmsg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.txt")
        for words in (["recipe", "validate", SAMPLE[-1]], SAMPLE):
            assert_one_message([*words, f"data.train={path}"], 5, f"data.train.path: {path}: {found}; give a")
        with pytest.raises(DataError, match=found):
            text_files(Path(path))


@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "abc"])
def test_a_time_limit_is_blamed_on_the_option_or_the_variable_that_has_it(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIMEOUT, "")
    result = CliRunner().invoke(app, [*SAMPLE, "--process-timeout", value])
    assert result.exit_code == 2 and "--process-timeout" in result.stderr and TIMEOUT not in result.stderr
    assert os.environ[TIMEOUT] == ""
    assert_one_message(SAMPLE, 2, f"{TIMEOUT}: '{value}' found", **{TIMEOUT: value})
    result = CliRunner().invoke(app, [*SAMPLE, "--process-timeout", "3"], env={TIMEOUT: value})
    assert result.exit_code == 0


def test_a_module_is_blamed_on_the_variable_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STLM_KD_IMPORT", "nowhere")
    with pytest.raises(MissingResourceError, match=r"^STLM_KD_IMPORT=nowhere: its module cannot be imported"):
        load_extensions.__wrapped__()


def test_debug_shows_where_an_error_and_its_causes_arose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of an error in the program that a guard takes for one of the file."""

    def confused(*_: object, **__: object) -> None:
        raise KeyError("ours")

    pico_model("gpt2").save_pretrained(tmp_path)
    monkeypatch.setattr("stlm_kd.models.load.check_classes", confused)
    words = ["generate", str(tmp_path), "--prompt", "x"]
    assert_one_message(words, 3, f"{tmp_path}: not a language model")
    result = CliRunner().invoke(app, ["--debug", *words])
    assert result.exit_code == 3
    assert 0 < result.stderr.index("in confused") < result.stderr.index("stlm_kd.errors.ModelError: ")
    assert result.stderr.splitlines()[-1].startswith(f"{tmp_path}: not a language model")
    assert "--debug" in CliRunner().invoke(app, ["--help"]).stdout


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "abc"),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "-1"),
        ("WORLD_SIZE", ""),
        ("WORLD_SIZE", "9" * 5000),
        ("RANK", "x"),
        ("RANK", "2"),
        ("LOCAL_RANK", "\u0661"),
        ("MASTER_PORT", "abc"),
        ("MASTER_PORT", "70000"),
    ],
)
def test_a_launchers_variable_that_is_no_such_number_is_refused(name: str, value: str) -> None:
    assert_one_message(["recipe", "list"], 2, f"{name}: ", "expected", **{**LAUNCHED, name: value})


@pytest.mark.parametrize("size", ["1", None])
def test_one_process_does_without_another_programs_variables(
    monkeypatch: pytest.MonkeyPatch, size: str | None
) -> None:
    foreign = {"RANK": "3", "LOCAL_RANK": "x", "MASTER_PORT": "tcp://10.0.0.1:80", "WORLD_SIZE": size}
    result = CliRunner().invoke(app, ["recipe", "list"], env=foreign)
    assert (result.exit_code, result.stderr) == (0, "") and result.stdout
    result = CliRunner().invoke(app, ["recipe", "show", NOBODY], env=foreign)
    assert result.exit_code == 5 and "no user nosuchuser" in result.stderr, "as process 0 says it"


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        (["recipe", "list"], None, 0),
        (["recipe", "show", "x" * 300], None, 5),
        (["recipe", "list"], RemoteProcessError(3), 0),
        (["recipe", "list"], Preempted("stopped"), 0),
        (["recipe", "list"], ZeroDivisionError(), 1),
    ],
)
def test_the_other_processes_are_told_the_exit_code_of_an_error_that_they_do_not_know(
    monkeypatch: pytest.MonkeyPatch, words: list[str], error: Exception | None, told: int
) -> None:
    def invoke(self: Command, ctx: Any) -> Any:
        if error is not None:
            raise error
        return TyperCommand.invoke(self, ctx)

    codes: list[int] = []
    monkeypatch.setattr("stlm_kd.distributed._watchdog", SimpleNamespace(leave=codes.append))
    monkeypatch.setattr(Command, "invoke", invoke)
    CliRunner().invoke(app, words, env=LAUNCHED)
    assert codes == [told]


def test_an_occupied_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        port = str(occupied.getsockname()[1])
        for name, value in {**LAUNCHED, "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(MissingResourceError, match=f"127.0.0.1, port {port}: .*free the port"):
            join_processes()
    assert not distributed.is_initialized()


def test_names_in_results_of_others_cannot_steer_a_terminal(tmp_path: Path) -> None:
    """An escape that clears the screen, and a mark that reverses what follows."""
    evil = "\x1b[2J\u202evilO"
    run = run_folder(
        tmp_path / "run", {evil: ("student", seeds_of(0.9, 1)), "b": ("control", seeds_of(0.7, 9))}
    )
    (Path(run) / "table.txt").write_text(f"{evil}\n", "utf-8")
    (Path(run) / "recipe.yaml").write_text(f"task: {evil}\n", "utf-8")
    for words in (["compare", run], ["runs", "show", run]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        assert "\\x1b[2J" in result.stdout.replace("\n", "")
        assert all(sign.isprintable() or sign == "\n" for sign in result.output)


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (MemoryError("no 8 GiB"), 5, "out of memory (no 8 GiB); use smaller batches (train.micro_batch)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 137 bytes"), 5, "out of memory (Default"),
        (OSError(28, "No space left on device", "runs/x"), 1, "runs/x: No space left on device; correct"),
    ],
)
def test_what_the_system_refuses_is_one_message(
    error: Exception, code: int, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("stlm_kd.sweep_recipes", refuse)
    assert_one_message(SAMPLE, code, part)
