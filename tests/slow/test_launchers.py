"""Other launchers, SLURM's variables and several nodes, as real commands of two processes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stlm_kd.cli.launching import processes
from stlm_kd.cli.launching.nodes import START, Host, Nodes, address, launch_nodes, node_command, read_hosts
from stlm_kd.cli.launching.processes import FROM_STDIN
from stlm_kd.distributed import TIMEOUT
from stlm_kd.errors import MissingResourceError, UsageError
from stlm_kd.watchdog import ENDED, LostProcess
from tests.support.paths import ROOT
from tests.support.processes import free_port, lives

DOCTOR = ["-m", "stlm_kd", "doctor", "--offline", "--json"]
HERE = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
LOCAL = '#!/bin/sh\nshift\nexec sh -c "$1"\n'
"""In place of ssh: runs the command line here, whatever the host."""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What starts nodes; bare Python in place of the command."""
    script = tmp_path / "local"
    script.write_text(LOCAL)
    script.chmod(0o755)
    monkeypatch.setenv(START, str(script))
    monkeypatch.setattr(processes, "PROGRAM", (sys.executable, "-S", "-E", "-c"))
    monkeypatch.chdir(tmp_path)
    return str(script)


def met(output: str) -> str:
    """What the first process found of its meeting with the others."""
    (found,) = [one for one in json.loads(output[output.index("[\n") :]) if one["check"] == "processes"]
    assert found["status"] == "ok", found
    return str(found["found"])


def slurm_tasks(*words: str, **environ: dict[str, str]) -> list[subprocess.CompletedProcess[str]]:
    """Two tasks of a step, as srun starts them; ``environ`` by ``task0`` and ``task1``."""
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
    step["SLURM_STEP_NODELIST"] = "no-such-host7"
    begun = [
        subprocess.Popen(
            [sys.executable, *words],
            env={
                **HERE,
                **step,
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank),
                **environ.get(f"task{rank}", {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in begun]
    return [
        subprocess.CompletedProcess(words, process.returncode, *output)
        for process, output in zip(begun, outputs, strict=True)
    ]


@pytest.mark.long
def test_a_process_with_another_version_is_refused_by_its_name(tmp_path: Path) -> None:
    info = tmp_path / "transformers-5.19.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.19.9\n")
    other = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    words = ["-c", "from stlm_kd.distributed import wait_for_all; wait_for_all()"]
    for ended in slurm_tasks(*words, task1=other):
        last = ended.stderr.splitlines()[-1]
        assert ended.returncode == 1 and ("RemoteProcessError" in last or "has transformers 5.19.9" in last)
    ended, _ = slurm_tasks(*DOCTOR, task1=other)
    (found,) = [one for one in json.loads(ended.stdout) if one["check"] == "processes"]
    assert ended.returncode == 5 and found["status"] == "fault"
    assert found["found"].startswith("process 1 on ") and "5.19.9, process 0 on" in found["found"]


PORT = "PORT"
"""Stands for a port that is free when the command begins."""
ACCELERATE = ["accelerate.commands.launch", "--main_process_port", PORT, "--num_processes", "2"]
DEEPSPEED = ["deepspeed.launcher.runner", "--master_port", PORT, "--no_local_rank", "--num_gpus", "2"]


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [
        ["torch.distributed.run", "--master-port", PORT, "--nproc-per-node", "2", *DOCTOR],
        [*ACCELERATE, "--multi_gpu", *DOCTOR],
        [*ACCELERATE, "--use_deepspeed", *DOCTOR],
        [*DEEPSPEED, "--module", *DOCTOR[1:]],
    ],
    ids=["torchrun", "accelerate", "accelerate with deepspeed", "deepspeed"],
)
def test_other_launchers_start_processes_that_meet(words: list[str], tmp_path: Path) -> None:
    port = str(free_port())
    ended = subprocess.run(
        [sys.executable, "-m", *(word.replace(PORT, port) for word in words)],
        env=HERE,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stderr
    output = ended.stdout[: ended.stdout.rindex("]\n") + 2]
    start = output.index("[\n  {")
    assert met(output[start:]).startswith("2 on 1 node by gloo")


# --------------------------------------------------------------------------------------------- several nodes


@pytest.mark.long
def test_the_nodes_of_a_hostfile_meet(start: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# two\n127.0.0.1 slots=1\n\n127.0.0.2 slots=1  # another\n")
    ended = subprocess.run(
        [sys.executable, *DOCTOR, "--hostfile", "hosts"],
        env={**HERE, START: start},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert met(ended.stdout).startswith("2 on 2 nodes by gloo")


HOSTS = [Host("a", 2), Host("b", 2)]
TELLS = "import os, signal, sys, time; node = sys.argv[sys.argv.index('--node-rank') + 1]; "


def test_each_node_gets_its_command_and_only_the_first_ones_stdout_appears(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://u:secret@hub")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setenv("HF_HOME", "/a b")
    code = TELLS + f"print(sys.argv[1:], os.environ['HF_HOME'], {FROM_STDIN!r} in os.environ)"
    assert launch_nodes([code], HOSTS, "a:9") == 0
    out, err = capfd.readouterr()
    options = ["--processes", "2", "--nodes", "2", "--node-rank", "0", "--master", "a:9"]
    assert out == f"{options} /a b True\n"
    lines = [shlex.split(line) for line in err.splitlines()]
    assert [line[:2] for line in lines] == [[start, "a"], [start, "b"]]
    assert lines[1][2] == node_command([code], HOSTS[1], 1, 2, "a:9") and "secret" not in err
    assert "HF_HUB_DISABLE_IMPLICIT_TOKEN=1" in err
    ended = subprocess.run(lines[0], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ended.stdout == f"{options} /a b False\n", "typed by hand, nothing reads its stdin"


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("sys.exit(3 if node == '1' else 0)", 3, ""),
        (
            "sys.exit(255 if node == '1' else 1)",
            5,
            "b: cannot be reached, or it or the connection was lost; try",
        ),
        ("node == '1' and os.kill(os.getpid(), 9); sys.stdin.read()", 1, "b: "),
        ("node == '1' and sys.exit(5); sys.stdin.read(); sys.exit(75)", 5, ""),
    ],
)
def test_the_end_of_one_node_ends_all(
    start: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    code: str,
    status: int,
    said: str,
) -> None:
    monkeypatch.setattr("stlm_kd.cli.launching.nodes.GRACE_S", 0.2)
    assert launch_nodes([TELLS + code], HOSTS, "a:9") == status
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(said) if said else "cd " in last


def test_a_node_that_hears_nothing_more_is_killed(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stlm_kd.cli.launching.nodes.GRACE_S", 0.2)
    monkeypatch.setattr("stlm_kd.cli.launching.nodes._LAST_GRACE_S", 0.2)
    waits = "[time.sleep(.01) for _ in iter(lambda: os.path.exists('1'), True)] if node == '0' else "
    code = TELLS + waits + "open(node, 'w').write(str(os.getpid())) and time.sleep(60)"
    assert launch_nodes([code], HOSTS, "a:9") == 1
    assert not lives(int((tmp_path / "1").read_text()))


def test_what_starts_nodes_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(START, "no-such-program -x")
    with pytest.raises(MissingResourceError, match=r"no-such-program: cannot be run .*printed commands"):
        launch_nodes(["x"], HOSTS, None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"--hostfile: .*WORLD_SIZE=2.*leave --hostfile out"):
        launch_nodes(["x"], HOSTS, None)


LAUNCHER = """
import sys
from stlm_kd.cli.launching import processes
processes.PROGRAM = (sys.executable, "-S", "-E", "-c")
node = processes.Node(1, 2, "127.0.0.1", 9)
raise SystemExit(processes.launch([sys.argv[1]], 1, node))
"""
SAVES = (
    "import os, signal, time; "
    "[signal.signal(n, lambda n, _: os._exit({15: 75, 2: 130}[n])) for n in (2, 15)]; "
    "open('begun', 'w').write(os.environ['RANK'] + os.environ['WORLD_SIZE']); time.sleep(60)"
)


@pytest.mark.parametrize(("told", "code"), [(b"2\n", 130), (b"15\n", 75), (b"", 75)], ids=["2", "15", "end"])
def test_a_node_is_stopped_by_the_one_that_started_it(tmp_path: Path, told: bytes, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, SAVES],
        cwd=tmp_path,
        env={**HERE, FROM_STDIN: "1"},
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as launcher:
        deadline = time.monotonic() + 30
        while not (tmp_path / "begun").exists() or (tmp_path / "begun").read_text() != "12":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert launcher.stdin is not None
        launcher.stdin.write(told)
        launcher.stdin.flush() if told else launcher.stdin.close()
        assert launcher.wait(20) == code


def test_a_node_of_one_process_waits_for_it(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT, "0.001")
    assert processes.launch(["import time; time.sleep(.5)"], 1, processes.Node(1, 2)) == 0


def test_a_process_that_was_lost_on_another_node_is_named() -> None:
    lost = LostProcess(2, 4, ENDED, "pid 7 on b", "step 5")
    places = processes.Node(0, 2).places(2)
    assert processes.exit_status([1, 1], [], lost, places) == (1, str(lost))
    there = processes.Node(1, 2).places(2)
    code, message = processes.exit_status([-signal.SIGKILL, 1], [], lost, there)
    assert code == 1 and message.startswith("process 2 of 4 was killed by SIGKILL, perhaps because memory")
    told = LostProcess(2, 4, ENDED, "pid 7 on b", "step 5", exit_code=3)
    assert processes.exit_status([3, 3], [], told, places) == (3, "")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "no host found"),
        ("a", "line 1: 'a' found; expected HOST slots=N"),
        ("a slots=0", "expected HOST slots=N"),
        ("-oProxyCommand=x slots=1", "expected HOST slots=N"),
        ("a slots=2\nb slots=1", "line 2: .* expected slots=2, as a has"),
        ("a slots=2\n#\na slots=2", "line 3: .* twice"),
        ("localhost slots=2\nb slots=2", "others cannot reach localhost"),
    ],
)
def test_a_hostfile_that_cannot_be_is_refused(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "hosts"
    with pytest.raises(MissingResourceError, match="cannot be read"):
        read_hosts(path)
    path.write_text(text)
    with pytest.raises(UsageError, match=f"--hostfile {path}.*{part}"):
        read_hosts(path)


@pytest.mark.parametrize(
    ("nodes", "part"),
    [
        (Nodes(2), "--node-rank is missing"),
        (Nodes(2, 0), "--master is missing"),
        (Nodes(2, 2, "a:1"), "--node-rank 2: expected less than --nodes, which is 2"),
        (Nodes(1, 0), "--node-rank 0: there is one node"),
        (Nodes(1, None, "a:1"), "--master a:1: there is one node"),
        (Nodes(2, hostfile=Path("x")), "leave --nodes and --node-rank out"),
    ],
    ids=["rank", "master", "too high", "one node", "one node's master", "hostfile"],
)
def test_options_on_nodes_that_contradict_are_refused(nodes: Nodes, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        nodes.check()


@pytest.mark.parametrize("text", ["a", "a:", "a:0", "a:65536", "a:x", "a b:1", ":1", "fe80::1:80"])
def test_a_master_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--master: .* expected an address and a port"):
        address(text)
