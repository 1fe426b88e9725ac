"""A unit test starts no process and calls no command."""

import subprocess

import pytest
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def _nothing_but_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError(
            "a unit test starts no process and calls no command: tests/integration, tests/slow"
        )

    monkeypatch.setattr(subprocess, "Popen", refused)
    monkeypatch.setattr(CliRunner, "invoke", refused)
