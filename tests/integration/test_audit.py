"""``make audit`` with canned answers in place of the service: its messages and exit codes."""

from __future__ import annotations

import json
import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType, SimpleNamespace

import pytest

from tests.support.paths import ROOT

SOUND = {"name": "numpy", "version": "2.0.0", "vulns": []}
WEAK = {
    "name": "pillow",
    "version": "9.0.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["9.0.1", "10"]}, {"id": "PYSEC-2", "fix_versions": []}],
}
SKIPPED = {"name": "torch", "version": "2.9.0", "skip_reason": "not found on PyPI"}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("rows", "code", "said"),
    [
        pytest.param([SOUND, SOUND], 0, ["2 versions: no known vulnerability"], id="sound"),
        pytest.param(
            [SOUND, WEAK],
            1,
            ["pillow 9.0.0: PYSEC-1; fixed in 9.0.1, 10", "pillow 9.0.0: PYSEC-2; fixed in none"],
            id="weak",
        ),
        pytest.param([SOUND, SKIPPED], 2, ["1 of 2 versions not audited (not found on PyPI)"], id="skipped"),
        pytest.param(
            [WEAK, SKIPPED],
            1,
            ["pillow 9.0.0: PYSEC-1", "pillow 9.0.0: PYSEC-2", "1 of 2 versions not audited"],
            id="weak and skipped",
        ),
        pytest.param([], 2, ["0 of 0 versions not audited (no versions found)"], id="empty"),
    ],
)
def test_an_answer_gives_its_lines_and_exit_code(
    rows: list[object],
    code: int,
    said: list[str],
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(stdout=json.dumps({"dependencies": rows, "fixes": []}), stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    assert audit.main() == code
    told = capsys.readouterr()
    lines = (told.err if code else told.out).splitlines()
    assert len(lines) == len(said)
    assert all(line.startswith(part) for line, part in zip(lines, said, strict=True))
    assert not (told.out if code else told.err)
    (command,) = asked
    assert str(ROOT / "requirements.lock") in command and "pip_audit" in command


@pytest.mark.parametrize("stdout", ["", "[]", "{", '{"x": 1}', "null"])
def test_no_answer_is_no_pass(stdout: str, audit: ModuleType) -> None:
    code, lines = audit.report(stdout, "Traceback\nConnectionError: pypi.org\n")
    assert (code, len(lines)) == (2, 1) and "no answer (ConnectionError: pypi.org); repeat it" in lines[0]
    assert "(no output)" in audit.report(stdout, "")[1][0]
