"""Commands that run as two processes, against one: the same numbers; and what becomes of them when they fail.

The processes are real ones; ``tests.support.nursery`` only saves them the import of PyTorch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from stlm_kd.pipeline.checks import requirements
from stlm_kd.recipe import load
from tests.integration.test_finetuning import write_task
from tests.integration.test_road_faults import assert_one_message
from tests.support.counted import PLACE
from tests.support.counted import read as read_counts
from tests.support.nursery import forked, opened, program
from tests.support.paths import ROOT
from tests.support.road import LLAMA, RECIPES, TEXT, built, done, stlm_kd
from tests.support.road import TRAIN as TRAIN_PLAIN
from tests.support.trained import curves, largest_difference, same_curves

BERT = (
    "{model_type: bert, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, hidden_dropout_prob: 0, attention_probs_dropout_prob: 0}"
)
"""Without dropout, whose draws depend on the process."""
TRAIN = """
train: {steps: 5, effective_batch: 6, micro_batch: 2, learning_rate: 5e-3, validate_every: 3, log_every: 1}
"""
ADAPT = "{tokens: 1500, effective_batch: 4, micro_batch: 1, learning_rate: 3e-3, validate_every: 2}"
DATA = "data: {train: few.txt, validation: fewer.txt, context: 64}"
TWO = {
    "clm": f"""
task: clm
student: {{tokenizer: own, architecture: {LLAMA}}}
teachers:
  - {{name: g, model: gpt2, adapt: {ADAPT}}}
  - {{name: l, recipe: nested.yaml}}
{DATA}
objectives: [{{loss: labels, weight: 0.5}}, {{loss: forward_kl, weight: 0.5, temperature: 2}}]
{TRAIN}
tracking: []
""",
    "mlm": f"""
task: mlm
student: {{tokenizer: own-masked, architecture: {BERT}}}
teachers: [{{name: b, model: bert, adapt: {ADAPT}}}, {{name: d, model: distilbert}}]
{DATA}
objectives: [{{loss: labels, weight: 0.5}}, {{loss: forward_kl, weight: 0.5, temperature: 2}}]
{TRAIN}
tracking: []
""",
    "adapted": f"""
task: clm
student: {{tokenizer: own}}
teachers: [{{name: g, model: gpt2, adapt: {ADAPT.replace("{", "{old_rows_learning_rate: 0, ")}}}]
{DATA}
eval: [{{suite: glue, tasks: [rte], seeds: 1, steps: 2, effective_batch: 4, context: 16, source: local}}]
tracking: []
""",
    "nested": RECIPES["plain"].replace(TEXT, DATA).replace(TRAIN_PLAIN, TRAIN),
}
COUNTED = {
    "divided": f"""
task: clm
student: {{tokenizer: own, architecture: {LLAMA}}}
teachers: [{{name: a, model: same}}]
{DATA}
objectives: [{{loss: labels}}, {{loss: forward_kl}}]
train: {{epochs: 2, effective_batch: 4, micro_batch: 2, learning_rate: 5e-3, log_every: 1}}
tracking: []
""",
    "labelled": f"""
task: classification
student: {{tokenizer: own, architecture: {LLAMA}}}
data: {{train: rows.jsonl, validation: rows.jsonl, allow_overlap: true, context: 32}}
objectives: [{{loss: labels}}]
train: {{steps: 2, effective_batch: 4, micro_batch: 2, learning_rate: 5e-3}}
eval: []
tracking: []
""",
}
"""What is counted of their set-up; without suites, which hash and tokenise for themselves."""
SPOKEN = re.compile(
    r"(adapt|teacher|student|still) [a-z]|step \d+/\d+ |[gb]: |resumed after|rehearsal: .* passed"
)
STEPS = range(1, 6)
ZERO, ZERO_3 = "engine.deepspeed.zero=2", "engine.deepspeed.zero=3"
SAVED = "*/students/student/seed-1/checkpoints/step-*/checksums.json"


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where processes are forked."""
    with opened(tmp_path_factory.mktemp("nursery")) as place:
        yield place


@dataclass(frozen=True)
class Command:
    """One that runs, or has run, as real processes."""

    process: subprocess.Popen[str]
    errors: Path

    def ended(self) -> tuple[int, str, list[str]]:
        """The exit code, stdout, and the lines on stderr without those that say what was launched."""
        out, _ = self.process.communicate(timeout=240)
        err = self.errors.read_text()
        lines = [line for line in err.splitlines() if line and not line.startswith(("RANK=", "equivalent"))]
        return self.process.returncode, out, lines

    def workers(self) -> dict[int, psutil.Process]:
        """Its processes that are there, by rank."""
        folder = self.process.args[-1] if isinstance(self.process.args, list) else None
        found = {}
        for process in psutil.process_iter(["cmdline", "environ"]):
            if folder in (process.info["cmdline"] or ()) and "RANK" in (process.info["environ"] or ()):
                found[int(process.info["environ"]["RANK"])] = process
        return found


Begin = Callable[..., Command]


@pytest.fixture(scope="module")
def begin(road: Path, nursery: str) -> Iterator[Begin]:
    """Begins a command in the small world."""
    text = (road / "train.txt").read_text()
    (road / "few.txt").write_text(text[:1400])
    (road / "long.txt").write_text(text * 10)
    (road / "fewer.txt").write_text(text[-600:])
    for name, recipe in {**TWO, **COUNTED}.items():
        (road / f"{name}.yaml").write_text(recipe)
    begun: list[Command] = []

    def begin(*words: str, **environment: str) -> Command:
        errors = road / f"stderr-{len(begun)}"
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                [*program(nursery), *words],
                cwd=road,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", **environment},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        begun.append(Command(process, errors))
        return begun[-1]

    yield begin
    for command in begun:
        command.process.kill()
        command.process.communicate()


def await_(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def distil(recipe: str, *changes: str, output_dir: Path) -> list[str]:
    return ["distill", "-r", f"{recipe}.yaml", *changes, "--output-dir", str(output_dir)]


def two(*words: str) -> list[str]:
    """With ``--output-dir DIR`` at the end, by which the processes are found."""
    return [*words] if "--processes" in words else [words[0], "--processes", "2", *words[1:]]


# ---------------------------------------------------------------------------------------- the same numbers


@pytest.fixture(scope="module")
def one_process(begin: Begin, road: Path) -> Callable[[str], Path]:
    """The folder of a recipe that one process distilled with plain PyTorch."""

    def folder(task: str) -> Path:
        if not (road / f"one-{task}").exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(road)
                done(*distil(task, output_dir=Path(f"one-{task}")))
        return road / f"one-{task}"

    return folder


@pytest.fixture(scope="module", params=["clm", pytest.param("mlm", marks=pytest.mark.long)])
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def by_zero_2(begin: Begin, road: Path, task: str) -> Path:
    """The run folder of two processes under ZeRO 2, after a check of their output."""
    folder = road / f"zero-{task}"
    code, out, lines = begin(*two(*distil(task, ZERO, "--json", output_dir=folder))).ended()
    assert code == 0, lines
    (run,) = folder.glob(f"{task}-*")
    assert json.loads(out)["folder"] == str(run)
    assert all(SPOKEN.match(line) for line in lines), lines
    once = [line for line in lines if not line.startswith("step 0/")]  # as equal as the models at first
    assert len(once) == len(set(once))
    return folder


def test_two_processes_under_zero_2_report_the_losses_of_one(
    one_process: Callable[[str], Path], by_zero_2: Path, task: str
) -> None:
    expected = curves(one_process(task))
    assert same_curves(by_zero_2, one_process(task))
    logged = {(stage, step) for stage, _, step, name in expected if name == "loss"}
    trained = {"clm": ("teacher l", "student seed 1"), "mlm": ("student seed 1",)}[task]
    adapted = {"clm": "adapt g", "mlm": "adapt b"}[task]
    assert logged == {(adapted, 1), (adapted, 6), *product(trained, STEPS)}


def test_some_steps_were_smaller_and_none_fitted_into_a_micro_batch(
    one_process: Callable[[str], Path], task: str
) -> None:
    found = curves(one_process(task))
    seen = {step: value for (stage, _, step, name), value in found.items()
            if name == "tokens" and stage == "student seed 1"}  # fmt: skip
    read = [seen[step] - seen.get(step - 1, 0) for step in STEPS]
    assert min(read) < 5 / 6 * max(read), "the last step of an epoch has fewer rows"
    assert min(read) > 2 * 64, "more rows than one process takes at once"


def test_two_processes_under_zero_2_save_the_weights_of_one(
    one_process: Callable[[str], Path], by_zero_2: Path, task: str
) -> None:
    assert largest_difference(by_zero_2, one_process(task)) < 1e-2


@pytest.fixture(scope="module")
def by_torchrun(begin: Begin, road: Path) -> Path:
    """The folder of what torchrun started, under DDP: nothing of this project takes part in starting it."""
    words = distil("clm", output_dir=road / "torchrun")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, "-m", "stlm_kd", *words],
        cwd=road,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Table and results") == 1
    return road / "torchrun"


def test_torchrun_does_the_same_and_so_does_ddp(
    one_process: Callable[[str], Path], by_torchrun: Path
) -> None:
    assert same_curves(by_torchrun, one_process("clm"))
    assert largest_difference(by_torchrun, one_process("clm")) < 1e-2


def test_a_run_that_one_process_finished_is_not_trained_again_by_two(
    begin: Begin, one_process: Callable[[str], Path]
) -> None:
    folder = one_process("clm")
    before = built(folder)
    for changes in ((), (ZERO,)):
        code, out, lines = begin(*two(*distil("clm", *changes, output_dir=folder))).ended()
        assert (code, lines) == (0, []) and out.count("Table and results") == 1
        assert built(folder) == before
        assert len(list(folder.glob("clm-*/table.txt"))) == 1, "the engine is none of what a run is"


def test_two_processes_adapt_and_fine_tune_a_teacher_as_one_does(
    begin: Begin, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both train; then the first one alone scores and reports, with nothing left to train."""
    write_task(place / "glue" / "rte", "rte", (place / "train.txt").read_text().splitlines())
    monkeypatch.setenv("STLM_KD_DATA", str(place))
    folders = [place / f"adapted-by-{processes}" for processes in (1, 2)]
    one, both = (["adapt-teacher", "-r", "adapted.yaml", "--output-dir", str(folder)] for folder in folders)
    (place / "adapted-counts").mkdir()
    words = ["--import", "tests.support.counted", *two(*both)]
    code, _, lines = begin(*words, **{PLACE: str(place / "adapted-counts")}).ended()
    assert code == 0, lines
    done(*one)
    found = [{at: x for at, x in curves(folder).items() if at[0] == "adapt g"} for folder in folders]
    assert len(found[0]) > 6 and found[0] == pytest.approx(found[1], rel=1e-5)
    assert len(list(folders[1].glob("stages/fine-tuned-*/metrics.jsonl"))) == 2
    alone, report = (
        json.loads(file.read_text()) for folder in folders for file in folder.glob("*/results.json")
    )
    assert {name: len(found) for name, found in report["suites"].items()} == {"g": 1, "g, adapted": 1}
    for one_model, expected in alone["suites"].items():
        for name in "scores", "examples":
            assert report["suites"][one_model][0][name] == expected[0][name]
    assert largest_difference(*folders) < 1e-2
    first, second = read_counts(place / "adapted-counts")
    assert first["read"] == second["read"] != 0, "both train on the same rows"
    assert first["tokenised"] == 2 * 2 * (40 + 12), "two models; pairs to train on, and to score"
    assert first["heads"] == 3, "the rehearsal, and each model"
    assert first["parts"] > 0
    assert second["tokenised"] == second["heads"] == second["parts"] == second["hashed"] == 0


@pytest.fixture(scope="module")
def counts(begin: Begin, road: Path) -> Callable[[str, int], list[Counter[str]]]:
    """What each of so many processes did for the set-up of a recipe of two epochs."""
    rows = [
        {"sentence": line or ".", "label": str(len(line) % 2)}
        for line in (road / "few.txt").read_text().split("\n")
    ]
    (road / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def counts(recipe: str, processes: int) -> list[Counter[str]]:
        folder = road / f"counted-{recipe}-{processes}"
        folder.mkdir()
        words = ["--import", "tests.support.counted", *distil(recipe, output_dir=folder / "runs")]
        words[3:3] = ["--processes", str(processes)] if processes > 1 else []
        changes = {PLACE: str(folder / "counts"), "STLM_KD_CACHE": str(folder / "cache")}
        (folder / "counts").mkdir()
        code, _, lines = begin(*words, **changes).ended()
        assert code == 0, lines
        return read_counts(folder / "counts")

    return counts


def test_one_process_sets_up_for_both_and_they_divide_a_teachers_rows(
    counts: Callable[[str, int], list[Counter[str]]],
) -> None:
    (one,), (first, second) = counts("divided", 1), counts("divided", 2)
    assert first["known"] == second["known"] == one["known"], "the outputs of one process, bit for bit"
    assert second["checked"] == 0 < first["checked"] <= one["checked"]
    assert second["hashed"] == 0 < first["hashed"] < 1.001 * one["hashed"]
    measured = 2  # rows of the first batch, whose memory is measured
    assert first["rows"] + second["rows"] == one["rows"] + measured
    assert 0 <= first["rows"] - second["rows"] < 2, "the last of eight batches has one row"


def test_one_process_tokenises_examples_for_both(counts: Callable[[str, int], list[Counter[str]]]) -> None:
    (one,), (first, second) = counts("labelled", 1), counts("labelled", 2)
    assert first["read"] == second["read"] == one["read"] != 0
    assert second["tokenised"] == 0 < first["tokenised"] == one["tokenised"]
    assert second["checked"] == second["hashed"] == 0 < first["hashed"] < 1.001 * one["hashed"]


@pytest.mark.parametrize("change", ["train.effective_batch=4", "teachers[0].adapt.init=mean"])
def test_other_batches_are_told_apart(one_process: Callable[[str], Path], place: Path, change: str) -> None:
    """The negative control: what the comparisons above rest on fails where batches differ."""
    other = Path(f"other-{change[0]}")
    done(*distil("clm", change, output_dir=other))
    assert not same_curves(other, one_process("clm"))
    assert largest_difference(other, one_process("clm")) > 0.1


# ------------------------------------------------------------------------------------- stopped and gone on

LONG = ("train.steps=120", "train.effective_batch=4", "train.checkpoint_every=5", "train.validate_every=60",
        "train.keep=last", "train.log_every=60")  # fmt: skip


def last_saved(output_dir: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    return max((int(path.parent.name.removeprefix("step-")) for path in output_dir.glob(SAVED)), default=0)


def only_status(output_dir: Path) -> str:
    (record,) = output_dir.glob("*/run.json")
    status = json.loads(record.read_text())["status"]
    assert isinstance(status, str)
    return status


def model(output_dir: Path) -> bytes:
    (file,) = output_dir.glob("plain-*/students/student/seed-1/model/model.safetensors")
    return file.read_bytes()


LAST_AT = rf".*\(pid \d+ on {re.escape(socket.gethostname())}; last at: plain.*\); "
"""What it was at when it last told: this training may be faster than a beat of the watchdog."""
LIMIT = {"STLM_KD_PROCESS_TIMEOUT": "0.05"}


@dataclass(frozen=True)
class Ended:
    """Exit code and last message of an interrupted command, its checkpoints, and its recorded status."""

    code: int
    out: str
    message: str
    saved: int
    status: str


def stopped(
    begin: Begin, words: Sequence[str], folder: Path, *, stop: Callable[[Command], None], **environment: str
) -> Ended:
    """The command, stopped in some way once it has saved something more than was there."""
    before = last_saved(folder)
    command = begin(*words, **environment)
    await_(lambda: last_saved(folder) > before or command.process.poll() is not None)
    stop(command)
    code, out, lines = command.ended()
    await_(lambda: not forked(), seconds=10)
    messages = [line for line in lines if not SPOKEN.match(line)]
    assert len(messages) <= 1, messages
    return Ended(code, out, "".join(messages), last_saved(folder), only_status(folder))


@pytest.fixture(scope="module")
def stops(begin: Begin, road: Path) -> dict[str, Ended]:
    """One training of two processes, stopped in six ways, one after the other."""
    folder = road / "stopped"
    words = two(*distil("plain", *LONG, output_dir=folder))
    ways: dict[str, Callable[[Command], None]] = {
        "SIGINT": lambda command: command.process.send_signal(signal.SIGINT),
        "worker killed": lambda command: command.workers()[1].kill(),
        "worker stopped": lambda command: command.workers()[1].send_signal(signal.SIGUSR1),
        "first killed": lambda command: command.workers()[0].kill(),
        "launcher killed": lambda command: command.process.kill(),
        "SIGTERM": lambda command: command.process.send_signal(signal.SIGTERM),
    }
    found = {name: stopped(begin, words, folder, stop=stop, **LIMIT) for name, stop in ways.items()}
    shutil.copytree(folder, road / "alone")
    return found


@pytest.mark.parametrize(
    ("way", "code", "said", "status"),
    [
        ("SIGINT", 130, "stopped by Ctrl-C after step", "interrupted"),
        ("worker killed", 1, f"process 1 of 2 was killed by SIGKILL, perhaps {LAST_AT}", "failed"),
        ("worker stopped", 1, f"process 1 of 2 did not answer for 3s {LAST_AT}", "failed"),
        ("first killed", 1, f"process 0 of 2 was killed by SIGKILL, perhaps {LAST_AT}", "running"),
        ("launcher killed", -signal.SIGKILL, "stopped by SIGTERM after step", "interrupted"),
        ("SIGTERM", 75, "stopped by SIGTERM after step", "interrupted"),
    ],
)
def test_however_it_is_stopped_one_message_says_why(
    stops: dict[str, Ended], way: str, code: int, said: str, status: str
) -> None:
    found = stops[way]
    assert (found.code, found.out, found.status) == (code, "", status)
    assert re.match(said, found.message), found.message
    assert 0 < found.saved < 120


@pytest.fixture(scope="module")
def whole(begin: Begin, road: Path) -> Path:
    """The same training without a stop."""
    code, _, lines = begin(*two(*distil("plain", *LONG, output_dir=road / "whole"))).ended()
    assert code == 0, lines
    return road / "whole"


@pytest.fixture(scope="module")
def whole_by_zero_3(begin: Begin, road: Path) -> Path:
    """The same under ZeRO 3."""
    code, _, lines = begin(*two(*distil("plain", *LONG, ZERO_3, output_dir=road / "whole-zero-3"))).ended()
    assert code == 0, lines
    return road / "whole-zero-3"


def test_a_training_stopped_six_times_ends_bit_for_bit_like_one_that_was_not(
    begin: Begin, stops: dict[str, Ended], whole: Path, road: Path
) -> None:
    code, _, lines = begin(*two(*distil("plain", *LONG, output_dir=road / "stopped"))).ended()
    assert code == 0, lines
    assert only_status(road / "stopped") == "done"
    assert model(road / "stopped") == model(whole)


@pytest.mark.long
def test_a_training_goes_on_beside_a_stopped_launcher_and_ends_as_without_the_stop(
    begin: Begin, whole: Path, tmp_path: Path
) -> None:
    command = begin(*two(*distil("plain", *LONG, output_dir=tmp_path)), **LIMIT)
    await_(lambda: last_saved(tmp_path) > 0)
    command.process.send_signal(signal.SIGUSR1)
    await_(lambda: bool([*tmp_path.glob("*/run.json")]) and only_status(tmp_path) == "done")
    (launcher,) = (one for one in forked() if one.status() == psutil.STATUS_STOPPED)
    assert command.process.poll() is None
    launcher.resume()
    code, _, lines = command.ended()
    assert code == 0, lines
    assert model(tmp_path) == model(whole)


@pytest.mark.long
def test_a_training_by_zero_goes_on_without_deepspeed_where_that_is_missing(
    begin: Begin, road: Path, tmp_path: Path
) -> None:
    words = two(*distil("plain", *LONG, ZERO, output_dir=tmp_path))
    ended = stopped(begin, words, tmp_path, stop=lambda command: command.process.terminate())
    assert ended.code == 75
    (road / "without_deepspeed.py").write_text("import sys\n\nsys.modules['deepspeed'] = None\n")
    code, out, lines = begin("--import", "without_deepspeed", *words).ended()
    assert (code, out, last_saved(tmp_path)) == (5, "", ended.saved)
    assert_one_message("\n".join(lines), "engine.deepspeed: the package deepspeed is not installed; pip")
    words.remove(ZERO)  # or without it
    code, _, lines = begin(*words).ended()
    assert code == 0 and any("resumed after step" in line for line in lines), lines


def test_one_process_goes_on_where_two_stopped(
    begin: Begin, stops: dict[str, Ended], whole: Path, road: Path
) -> None:
    code, _, lines = begin(*distil("plain", *LONG, output_dir=road / "alone")).ended()
    assert code == 0, lines
    assert largest_difference(road / "alone", whole) < 1e-2


def test_two_processes_go_on_by_another_engine_where_one_stopped(
    begin: Begin, whole: Path, road: Path
) -> None:
    folder = road / "joined"
    words = distil("plain", *LONG, output_dir=folder)
    ended = stopped(begin, words, folder, stop=lambda command: command.process.terminate())
    assert ended.code == 75 and 0 < ended.saved < 120
    code, _, lines = begin(*two(*distil("plain", *LONG, ZERO, output_dir=folder))).ended()
    assert code == 0 and any("resumed after step" in line for line in lines), lines
    (run,) = folder.glob("*/run.json")
    assert load(str(run.parent)).engine.deepspeed is not None
    assert largest_difference(folder, whole) < 1e-2


MOMENTS: dict[str, tuple[str, str]] = {
    "training": ("train.checkpoint_every=50 train.steps=100000 train.validate_every=100000", "step 20/"),
    "validation": (
        "train.validate_every=1 train.steps=100000 data.validation=train.txt data.allow_overlap=true",
        "step 1/",
    ),
    "checkpoint": ("train.checkpoint_every=1 train.steps=100000 train.validate_every=100000", "step 3/"),
    "scoring": (
        "train.steps=1 data.validation=long.txt data.allow_overlap=true eval=[perplexity]",
        "scoring ",
    ),
}
"""What makes a moment long, and the line on stderr after which it comes."""
SHORT = ("SIGKILL", 1, "scoring", None)
LOST = (
    *product(("SIGKILL", "SIGUSR1"), (0, 1), MOMENTS, (None, 0, 1, 2)),
    *product(("SIGKILL", "SIGUSR1"), (0, 1), ("training", "validation"), (3,)),
)


@pytest.mark.parametrize(
    ("way", "rank", "moment", "zero"),
    [pytest.param(*case, marks=[] if case == SHORT else pytest.mark.long) for case in LOST],
)
def test_a_process_lost_at_any_moment_is_named_and_all_end(
    begin: Begin, tmp_path: Path, way: str, rank: int, moment: str, zero: int | None
) -> None:
    changes, mark = MOMENTS[moment]
    engine = [] if zero is None else [f"engine.deepspeed.zero={zero}"]
    changed = ["train.effective_batch=4", "train.log_every=1", "train.keep=last", *changes.split(), *engine]
    command = begin(*two(*distil("plain", *changed, output_dir=tmp_path)), **LIMIT)
    await_(lambda: f"\n{mark}" in command.errors.read_text() or command.process.poll() is not None)
    time.sleep(1)  # the watchdog reports every 0.4 s
    began = time.monotonic()
    command.workers()[rank].send_signal(getattr(signal, way))
    code, _, lines = command.ended()
    assert time.monotonic() - began < 20  # 10 where the machine is free
    await_(lambda: not forked(), seconds=2)
    fate = "was killed by SIGKILL" if way == "SIGKILL" else "did not answer for 3s"
    assert code == 1 and lines[-1].startswith(f"process {rank} of 2 {fate}"), lines
    doing = lines[-1].partition("last at: ")[2]
    at_scoring = ("on the main process", "waiting for the main process")[rank]
    assert doing.startswith(f"plain: {at_scoring if moment == 'scoring' else 'student seed 1, step '}"), doing


@pytest.mark.long
def test_sigterm_to_one_process_under_zero_3_saves_and_it_goes_on_to_the_same_end(
    begin: Begin, whole_by_zero_3: Path, tmp_path: Path
) -> None:
    words = two(*distil("plain", *LONG, ZERO_3, output_dir=tmp_path))
    ended = stopped(begin, words, tmp_path, stop=lambda command: command.workers()[1].terminate())
    assert (ended.code, ended.status) == (75, "interrupted"), ended
    assert 0 < ended.saved < 120 and ended.message.startswith("stopped by SIGTERM after step")
    await_(lambda: not forked(), seconds=2)
    code, _, lines = begin(*words).ended()
    assert code == 0, lines
    assert model(tmp_path) == model(whole_by_zero_3)


@pytest.mark.parametrize(
    ("rank", "said"),
    [
        ("0", "process 0 of 2 cannot listen there"),
        pytest.param("1", "process 1 of 2 cannot reach process 0 there", marks=pytest.mark.long),
        pytest.param("0 of a free port", "process 1 of 2 did not start within 1m", marks=pytest.mark.long),
    ],
)
def test_processes_that_do_not_meet_say_so(begin: Begin, tmp_path: Path, rank: str, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        if rank != "0":
            taken.close()
        place = {"RANK": rank[0], "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = begin(*distil("plain", output_dir=tmp_path), WORLD_SIZE="2", **place, **LIMIT)
        code, _, lines = command.ended()
    lines = [line for line in lines if not SPOKEN.match(line)]  # torch's own log may stand before the message
    assert code == 5 and said in lines[-1] and not any("Traceback" in line for line in lines), lines


@pytest.mark.parametrize("rank", [pytest.param("0", marks=pytest.mark.long), "1"])
def test_a_name_that_does_not_resolve_is_refused_at_once(begin: Begin, tmp_path: Path, rank: str) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "no..such", "MASTER_PORT": "29500"}
    before = time.monotonic()
    command = begin(*distil("plain", output_dir=tmp_path), WORLD_SIZE="2", **place)
    code, _, lines = command.ended()
    assert code == 5 and time.monotonic() - before < 30, "not the ten minutes in which others may start"
    assert_one_message("\n".join(lines), "MASTER_ADDR", "'no..such' does not resolve on")


@pytest.mark.long
@pytest.mark.parametrize("moment", MOMENTS)
def test_without_a_launcher_none_stays(begin: Begin, tmp_path: Path, moment: str) -> None:
    changes, mark = MOMENTS[moment]
    changed = ["train.effective_batch=4", "train.log_every=1", "train.keep=last", *changes.split()]
    command = begin(*two(*distil("plain", *changed, output_dir=tmp_path)))
    await_(lambda: f"\n{mark}" in command.errors.read_text() or command.process.poll() is not None)
    command.process.kill()
    command.process.wait()
    await_(lambda: not forked(), seconds=20)
    assert only_status(tmp_path) == "interrupted"


@pytest.mark.parametrize("moment", ["begun", "recorded"])
def test_sigterm_before_the_training_ends_all_of_it(begin: Begin, tmp_path: Path, moment: str) -> None:
    command = begin(*two(*distil("plain", *LONG, output_dir=tmp_path)))
    if moment == "recorded":
        await_(lambda: any(tmp_path.glob("*/run.json")))
    else:
        await_(lambda: command.workers().keys() == {0, 1})
    command.process.terminate()
    code, out, lines = command.ended()
    messages = [line for line in lines if not SPOKEN.match(line)]
    assert (code, out) == (75, "")
    assert len(messages) == 1 and messages[0].startswith("stopped by SIGTERM"), lines


# --------------------------------------------------------------------------------- SLURM, and several nodes


def tasks(begin: Begin, *words: str, change: str = "", **limit: str) -> list[tuple[int, str, list[str]]]:
    """How the two tasks of a step of SLURM end, the second one with a change of the recipe."""
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
    begun = [
        begin(*words, *([change] if rank and change else []), SLURM_PROCID=str(rank), **step, **limit)
        for rank in range(2)
    ]
    return [command.ended() for command in begun]


def test_tasks_of_slurm_meet_without_flags(begin: Begin, tmp_path: Path) -> None:
    first, second = tasks(begin, "doctor", "--offline", "--json", "--output-dir", str(tmp_path), **LIMIT)
    found = {one["check"]: one for one in json.loads(first[1])}
    assert found["processes"]["found"].startswith("2 on 1 node by gloo: 4 MB added")
    assert (first[0], *second) == (0, 0, "", []), first


def test_tasks_with_different_recipes_are_refused(begin: Begin, tmp_path: Path) -> None:
    first, second = tasks(begin, *distil("plain", output_dir=tmp_path), change="train.steps=7", **LIMIT)
    assert (first[:2], second) == ((5, ""), (5, "", []))
    assert_one_message("\n".join(first[2]), "process 1 on ", "has recipe ", "process 0 on ", "the same")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("engine", [[], [ZERO]], ids=["DDP", "ZeRO"])
def test_tasks_of_slurm_train_as_launched_processes(begin: Begin, tmp_path: Path, engine: list[str]) -> None:
    changes = ["train.effective_batch=4", "train.micro_batch=2", "train.log_every=1", *engine]
    ends = tasks(begin, *distil("plain", *changes, output_dir=tmp_path / "slurm"))
    assert [end[0] for end in ends] == [0, 0], ends
    assert begin(*two(*distil("plain", *changes, output_dir=tmp_path / "own"))).ended()[0] == 0
    assert curves(tmp_path / "slurm") == curves(tmp_path / "own") != {}


def on_nodes(begin: Begin, folder: Path, *words: str) -> Command:
    """Begins a command on two nodes of one process, both of which are this one."""
    script, hosts = folder / "start", folder / "hosts"
    script.write_text('#!/bin/sh\nshift\nexec sh -c "$1"\n')
    script.chmod(0o755)
    hosts.write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    return begin(words[0], "--hostfile", str(hosts), *words[1:], STLM_KD_START_NODE=str(script), **LIMIT)


def nodes_messages(folder: Path, lines: list[str]) -> list[str]:
    return [line for line in lines if not SPOKEN.match(line) and not line.startswith(f"{folder}/start")]


@pytest.mark.parametrize(
    ("stop", "status", "said", "recorded"),
    [
        (lambda command: command.workers()[1].kill(), 1, ("process 1 of 2 ",) * 2, "failed"),
        (
            lambda command: command.process.terminate(),
            75,
            ("stopped by SIGTERM after step", "stopped by SIGTERM"),  # a node may hear of it after it stopped
            "interrupted",
        ),
    ],
    ids=["a process is killed", "SIGTERM"],
)
def test_what_ends_one_node_ends_all(
    begin: Begin,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    stop: Callable[[Command], None],
    status: int,
    said: tuple[str, str],
    recorded: str,
) -> None:
    folder = tmp_path_factory.mktemp("nodes")
    command = on_nodes(begin, folder, *distil("plain", *LONG, output_dir=tmp_path))
    await_(lambda: any(tmp_path.glob(SAVED)))
    stop(command)
    code, out, lines = command.ended()
    messages = nodes_messages(folder, lines)
    assert (code, out) == (status, "") and messages, lines
    assert any(said[0] in line for line in messages) and all(said[1] in line for line in messages), messages
    assert len(messages) <= 2 and only_status(tmp_path) == recorded


def two_launchers(begin: Begin, folder: Path) -> list[Command]:
    """Begins the launcher of each of two nodes, of one process under ZeRO 3."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        options = ["--nodes", "2", "--master", f"127.0.0.1:{free.getsockname()[1]}", "--processes", "1"]
    words = distil("plain", *LONG, ZERO_3, output_dir=folder)
    return [begin(words[0], *options, "--node-rank", rank, *words[1:], **LIMIT) for rank in "01"]


@pytest.mark.long
def test_a_node_that_is_killed_under_zero_3_is_named_and_both_go_on_to_the_same_end(
    begin: Begin, whole_by_zero_3: Path, tmp_path: Path
) -> None:
    first, second = two_launchers(begin, tmp_path)
    await_(lambda: any(tmp_path.glob(SAVED)))
    worker = second.workers()[1]
    second.process.kill()  # the launcher of the node
    worker.kill()
    code, _, lines = first.ended()
    assert code == 1 and lines[-1].startswith("process 1 of 2 "), lines
    second.process.poll()  # it is a zombie until it is asked
    await_(lambda: not forked(), seconds=20)
    second.ended()
    assert only_status(tmp_path) == "failed" and 0 < last_saved(tmp_path) < 120
    ends = [command.ended() for command in two_launchers(begin, tmp_path)]
    assert [end[0] for end in ends] == [0, 0], ends
    assert model(tmp_path) == model(whole_by_zero_3)


@pytest.mark.long
@pytest.mark.parametrize("with_launcher", [False, True], ids=["worker", "launcher and worker"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_node_that_stands_still_is_named_and_training_goes_on_with_it_and_without(
    begin: Begin, whole_by_zero_3: Path, tmp_path: Path, *, with_launcher: bool, nodes: int
) -> None:
    first, second = two_launchers(begin, tmp_path)
    await_(lambda: any(tmp_path.glob(SAVED)))
    worker = second.workers()[1]
    if with_launcher:
        second.process.send_signal(signal.SIGUSR1)
    worker.send_signal(signal.SIGUSR1)
    code, _, lines = first.ended()
    assert code == 1 and re.match(f"process 1 of 2 did not answer for 3s {LAST_AT}", lines[-1]), lines
    if with_launcher:
        still = [one for one in forked() if one.status() == psutil.STATUS_STOPPED]
        assert still, "none but itself can end a node's launcher"
        for process in still:
            process.resume()
    code, _, lines = second.ended()
    assert code == 1 and not any("Traceback" in line for line in lines), lines
    await_(lambda: not forked(), seconds=20)
    assert only_status(tmp_path) == "failed" and 0 < last_saved(tmp_path) < 120
    words = two(*distil("plain", *LONG, ZERO_3, output_dir=tmp_path))
    again = [begin(*words)] if nodes == 1 else two_launchers(begin, tmp_path)
    ends = [command.ended() for command in again]
    assert [end[0] for end in ends] == [0] * nodes, ends
    assert model(tmp_path) == model(whole_by_zero_3)


@pytest.mark.long
def test_a_launcher_that_stands_still_keeps_no_node_from_its_end(
    begin: Begin, whole_by_zero_3: Path, tmp_path: Path
) -> None:
    first, second = two_launchers(begin, tmp_path)
    await_(lambda: any(tmp_path.glob(SAVED)))
    second.process.send_signal(signal.SIGUSR1)
    code, _, lines = first.ended()
    assert code == 0, lines
    (launcher,) = (one for one in forked() if one.status() == psutil.STATUS_STOPPED)
    launcher.resume()
    code, _, lines = second.ended()
    assert code == 0, lines
    assert model(tmp_path) == model(whole_by_zero_3)


# -------------------------------------------------------------------------------------------------- faults

TRAINED = ("train.learning_rate=1e30", "train.clip=null", "train.warmup=0")
FAULTS = [
    ("plain", ["train.effective_batch=7"], 3, "train.effective_batch: 7 rows cannot be shared evenly by 2"),
    ("plain", ["data.train=no.txt"], 5, "no.txt"),
    ("plain", ["student.tokenizer=some/tokenizer"], 5, "some/tokenizer"),
    (
        "plain",
        ["data.train=rows.txt", "train.effective_batch=6", "--processes", "3"],
        1,
        "data.train: 2 rows for 3 processes",
    ),
    ("plain", TRAINED, 1, "not finite"),
    ("plain", [*TRAINED, ZERO], 1, "not finite"),
    ("labelled", [ZERO_3, "engine.vocabulary_loss=dense"], 3, "dense: only for language models"),
]


@pytest.mark.parametrize(("recipe", "changes", "code", "said"), FAULTS)
def test_a_fault_is_one_message_with_the_code_that_one_process_ends_with(
    begin: Begin, place: Path, tmp_path: Path, recipe: str, changes: list[str], code: int, said: str
) -> None:
    (place / "rows.txt").write_text((place / "few.txt").read_text()[:120])
    found, out, lines = begin(*two(*distil(recipe, *changes, output_dir=tmp_path))).ended()
    assert (found, out) == (code, "")
    assert_one_message("\n".join(line for line in lines if not SPOKEN.match(line)), said)


def test_batches_of_training_and_adaptation_that_cannot_be_shared_are_said_at_once(
    begin: Begin, tmp_path: Path
) -> None:
    changes = ("train.effective_batch=7", "train.micro_batch=1", "teachers[0].adapt.effective_batch=1")
    code, _, lines = begin(*two(*distil("clm", *changes, output_dir=tmp_path))).ended()
    assert code == 3 and lines[0] == "clm.yaml: 2 faults" and len(lines) == 3, lines
    assert "train.effective_batch: 7 rows" in lines[1] and "use 6 or 8" in lines[1]
    assert "teachers[0].adapt.effective_batch: 1 rows" in lines[2] and "use 2, or" in lines[2]


def test_a_folder_in_which_another_command_works_is_refused_once(begin: Begin, whole: Path) -> None:
    (run,) = whole.glob("plain-*")
    with FileLock(run / ".lock"):
        code, out, lines = begin(*two(*distil("plain", *LONG, output_dir=whole))).ended()
    assert (code, out) == (1, "")
    assert_one_message("\n".join(lines), f"{run}: another process works in this run's folder")
    assert only_status(whole) == "done"


def test_side_by_side_and_together_exclude_each_other(place: Path, tmp_path: Path) -> None:
    result = stlm_kd(*two("distill", "--jobs", "2", "-r", "plain.yaml", "--output-dir", str(tmp_path)))
    assert result.exit_code == 2
    assert_one_message(result.stderr, "--jobs 2 with --processes 2", "leave one of them out")
    assert not list(tmp_path.iterdir())


def test_a_launcher_under_a_launcher_is_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = stlm_kd(*two(*distil("plain", output_dir=tmp_path)))
    assert result.exit_code == 2
    assert_one_message(result.stderr, "--processes", "WORLD_SIZE=2", "leave --processes out")


def test_a_number_of_processes_without_ranks_is_refused_before_anything_is_made(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = stlm_kd(*distil("plain", output_dir=tmp_path))
    assert result.exit_code == 5
    expected = "WORLD_SIZE: 2 processes were launched, but RANK, LOCAL_RANK, MASTER_ADDR are not set; launch"
    assert_one_message(result.stderr, expected, "or unset WORLD_SIZE")
    assert not list(tmp_path.iterdir())


def test_an_engine_that_is_not_installed_is_named_before_a_rehearsal(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    result = stlm_kd(*distil("plain", ZERO, output_dir=tmp_path))
    assert result.exit_code == 5
    assert_one_message(result.stderr, "plain: engine.deepspeed: the package deepspeed is not installed; pip")
    assert "rehearsal" not in result.stderr and only_status(tmp_path) == "failed"
