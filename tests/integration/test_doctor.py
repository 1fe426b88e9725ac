"""``stlm-kd doctor``: each check finds what is really wrong, and passes without it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner

from stlm_kd.artifacts.record import new_record
from stlm_kd.cli.main import app
from stlm_kd.doctor import hub, versions
from stlm_kd.doctor.finding import Finding
from stlm_kd.doctor.hub import check_hub
from stlm_kd.doctor.machine import check_backends, check_devices, check_folders, check_port
from stlm_kd.doctor.processes import check_processes
from stlm_kd.doctor.runs import check_runs
from stlm_kd.doctor.versions import check_versions
from stlm_kd.placement import Placement
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command sets for its own process."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("STLM_KD_PROCESS_TIMEOUT", "1")


TOKEN = "hf_0123456789secret"


def of(findings: Iterator[Finding], check: str) -> Finding:
    (found,) = [finding for finding in findings if finding.check == check]
    assert bool(found.cure) == (found.status != "ok")
    return found


def test_the_tested_versions_are_those_of_the_lock() -> None:
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    tested = (ROOT / "stlm_kd" / "doctor" / "tested.txt").read_text().splitlines()
    assert set(tested) <= set(lock)
    required = (ROOT / "pyproject.toml").read_text().split("dependencies = [")[1].split("\n]")[0]
    assert {f'"{name}' in required for name in versions.tested_versions()} == {True}
    assert len(versions.tested_versions()) == len(required.strip().splitlines())


@pytest.mark.parametrize(
    ("name", "version", "check", "status"),
    [
        ("transformers", "4.0", "version of transformers", "fault"),
        ("transformers", "5.19.0", "version of transformers", "warning"),
        ("transformers", "none", "version of transformers", "fault"),
        ("stlm_kd", "9.9\nRequires-Python: >=99", "Python", "fault"),
        ("stlm_kd", "9.9\nRequires-Python: >=3\nRequires-Dist: no-such>=1", "version of no-such", "fault"),
    ],
    ids=["out of range", "not as tested", "unreadable", "Python", "missing"],
)
def test_another_version_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, check: str, status: str
) -> None:
    info = tmp_path / f"{name}-{version.split()[0]}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert of(check_versions(), check).status == status


def test_a_driver_without_a_build_for_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available() or torch.version.cuda:
        pytest.skip("this build of PyTorch is one for GPUs")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert of(check_devices(), "GPUs").status == "ok"
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 550.54.15\n")
    program.chmod(0o755)
    found = of(check_devices(), "GPUs")
    assert found.status == "warning" and "driver 550.54.15, but PyTorch" in found.found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert of(check_devices(), "GPUs").status == "ok"


def test_a_deepspeed_that_cannot_be_imported_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deepspeed.py").write_text("raise ValueError('no compiler\\nat all')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "deepspeed", raising=False)
    found = of(check_backends(), "DeepSpeed")
    assert found.status == "fault" and found.found == "cannot be imported (ValueError: no compiler)"


def test_an_occupied_port_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert of(check_port(), "port").status == "ok"
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("MASTER_PORT", port)
        found = of(check_port(), "port")
        assert found.status == "fault" and f"at {port} (" in found.found
    assert of(check_port(), "port").status == "ok"
    for port in ("99999", "x"):
        monkeypatch.setenv("MASTER_PORT", port)
        assert of(check_port(), "port").status == "fault"


def test_processes_that_cannot_meet_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # A training with DeepSpeed in this process leaves a group of one.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    assert of(check_processes(), "processes").status == "ok"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        launched = Placement(0, 2, 0, 2, 1, "127.0.0.1", port)
        for name, value in launched.variables.items():
            monkeypatch.setenv(name, value)
        assert list(check_port()) == [], "it is in use, by process 0"
        found = of(check_processes(), "processes")
    assert found.status == "fault" and f"port {port}: process 0 of 2 cannot listen there" in found.found


@pytest.mark.parametrize("place", ["file/runs", "/proc/runs", "closed/runs"])
def test_a_folder_that_cannot_be_written_is_found(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0o500)
    if place == "closed/runs" and os.geteuid() == 0:
        pytest.skip("root may write there")
    found = of(check_folders(tmp_path / place), "output folder")
    assert found.status == "fault" and "cannot be written" in found.found and "--output-dir" in found.cure
    assert of(check_folders(tmp_path / "new" / "runs"), "output folder").status != "fault"
    assert not (tmp_path / "new").exists()


class _Hub(BaseHTTPRequestHandler):
    status, wait_s = 200, 0.0

    def do_GET(self) -> None:
        time.sleep(self.wait_s)
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b'{"name": "ada"}')

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    from huggingface_hub import constants

    handler = type("Handler", (_Hub,), {})
    with HTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{serving.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "LIMIT_S", 0.3)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield handler
        serving.shutdown()


@pytest.mark.parametrize(
    ("answer", "wait_s", "status", "part"),
    [
        (200, 0, "ok", "as ada"),
        (401, 0, "fault", "does not accept the token (401)"),
        (503, 0, "warning", "status 503"),
        (200, 1, "warning", "cannot be reached"),
    ],
)
def test_a_hub_that_refuses_or_does_not_answer_is_found(
    server: type[_Hub], answer: int, wait_s: float, status: str, part: str
) -> None:
    server.status, server.wait_s = answer, wait_s
    found = of(check_hub(offline=False), "Hub")
    assert found.status == status and part in found.found and TOKEN not in str(found)
    assert of(check_hub(offline=True), "Hub").status == "ok"


def test_a_password_in_the_hubs_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stlm_kd.doctor.hub.is_offline", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://me:secret@127.0.0.1:9")
    found = of(check_hub(offline=False), "Hub")
    assert found.found.startswith("http://…@127.0.0.1:9 cannot be reached") and "secret" not in found.found


def test_the_lock_of_a_killed_run_is_found_and_who_holds_another(tmp_path: Path) -> None:
    for name in ("dead", "alive", "done"):
        (tmp_path / name).mkdir()
        record = new_record(name, "0" * 64, f"stlm-kd distill -r {name}.yaml")
        record = replace(record, status="done" if name == "done" else "running")
        (tmp_path / name / "run.json").write_text(json.dumps(asdict(record)))
        (tmp_path / name / ".lock").touch()
    with FileLock(tmp_path / "alive" / ".lock"):
        found = {finding.check: finding for finding in check_runs(tmp_path)}
    assert set(found) == {"run dead", "run alive"}
    assert found["run dead"].status == "warning"
    assert found["run dead"].cure == "resume it: stlm-kd distill -r dead.yaml"
    assert found["run alive"].status == "ok" and f"held by process {os.getpid()} " in found["run alive"].found
    assert of(check_runs(tmp_path / "none"), "unfinished runs").status == "ok"


def test_a_fault_is_the_exit_code_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ["doctor", "--output-dir", str(tmp_path / "file" / "runs"), "--offline"]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 5 and "output folder: choose another --output-dir" in ended.stdout
    ended = CliRunner().invoke(app, [*words, "--json"])
    assert [one["check"] for one in json.loads(ended.stdout) if one["status"] == "fault"] == ["output folder"]
    words[2] = str(tmp_path)
    assert CliRunner().invoke(app, words).exit_code == 0
