"""What the system hands to a command: paths, variables of launchers, ports; and what a terminal gets."""

from __future__ import annotations

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
from stlm_kd.distributed import join_processes
from stlm_kd.errors import MissingResourceError, Preempted, RemoteProcessError
from tests.support.compared import run_folder, seeds_of

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
        pytest.param([*SAMPLE, "data.train=" + "a/" * 3000], 5, "fewer than 4096 in all", id="long data"),
        pytest.param(["generate", NOBODY, "--prompt", "x"], 5, "no user nosuchuser", id="model"),
        pytest.param(["compare", "x" * 300, "y"], 1, "File name too long", id="another guard's path"),
        pytest.param(["recipe", "show", "\x1b[2J\u202ex"], 5, "\\x1b[2J\\u202ex", id="controls"),
    ],
)
def test_a_path_that_cannot_be_is_refused_by_its_name(words: list[str], code: int, part: str) -> None:
    assert_one_message(words, code, part)


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
