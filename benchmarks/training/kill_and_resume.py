"""A distillation that is killed with SIGKILL at random moments, against one that runs through.

The command runs once uninterrupted, as a process with one thread. Then it runs in other folders, where it is
killed and given again, several times each, until it ends by itself. A moment is drawn evenly from the time
that the uninterrupted command worked, and stands as "so long after this line on stderr", so that load on the
machine shifts nothing: kills fall into tokenising, training and adapting teachers, training students, writing
checkpoints, validation, evaluation and saving. At the end all weights, token ids, losses and scores must be
the same to the last bit, and nothing half-written may be left. Ends with 1 where anything differs.

    python benchmarks/training/kill_and_resume.py --kills 20 --task both --seed 0
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

KILLS_OF_A_RUN = 4
BEGAN = "the run's folder was opened"

_GPT2 = (
    "{model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2, "
    "resid_pdrop: 0.1, embd_pdrop: 0.1, attn_pdrop: 0.1}"
)
_LLAMA = (
    "{model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, num_key_value_heads: 1, attention_dropout: 0.1}"
)
_BERT = (
    "{model_type: bert, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}"
)
_DISTILBERT = "{model_type: distilbert, dim: 16, n_layers: 1, n_heads: 2, hidden_dim: 32}"

_TRAINED = """
task: {task}
student: {{tokenizer: {{train: bpe, size: {size}}}, architecture: {architecture}}}
data: {{train: {{sample: train, size: 60k}}, validation: {{sample: validation, size: 3k}}, context: 64}}
train: {{learning_rate: 5e-3, effective_batch: 8, checkpoint_every: 3, log_every: 1, {train}}}
"""
_TAUGHT = """
objectives: [{{loss: labels, weight: 0.5}}, {{loss: forward_kl, weight: 0.5, temperature: 2}}]
teachers:
  - {{name: a, recipe: teacher-a.yaml, adapt: {{tokens: 5k, {adapt}}}}}
  - {{name: b, recipe: teacher-b.yaml, adapt: {{tokens: 5k, init: mean, {adapt}}}}}
eval: [{suite}]
controls: [no-teacher]
"""
_ADAPT = "learning_rate: 3e-3, effective_batch: 8, validate_every: 4"


def recipes(task: str) -> dict[str, str]:
    """A student with dropout, its control, and two teachers that are trained and adapted, by file name.

    BERT and DistilBERT drop a tenth of their units where nothing else is said.
    """
    first, second = (_GPT2, _LLAMA) if task == "clm" else (_BERT, _DISTILBERT)
    suite = "perplexity" if task == "clm" else "masked-loss"
    teacher = "steps: 9, keep: last"
    student = "steps: 30, micro_batch: 4, validate_every: 5, keep: best"
    labels = "objectives: [{loss: labels}]\n"
    return {
        "teacher-a.yaml": _TRAINED.format(task=task, size=320, architecture=first, train=teacher) + labels,
        "teacher-b.yaml": _TRAINED.format(task=task, size=340, architecture=second, train=teacher) + labels,
        "recipe.yaml": _TRAINED.format(task=task, size=300, architecture=first, train=student)
        + _TAUGHT.format(suite=suite, adapt=_ADAPT),
    }


@dataclass(frozen=True, slots=True)
class Line:
    """A line on stderr, under its stage, without speeds; and when it came, in seconds of the clock."""

    stage: str
    text: str
    time: float

    @property
    def mark(self) -> tuple[str, str]:
        """The same in every run."""
        return self.stage, self.text


@dataclass(frozen=True, slots=True)
class Moment:
    """So many seconds after the uninterrupted command's line of this number, or any later one."""

    line: int
    delay: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """One process: its metrics and exit code; ``left`` names files that it left half-written."""

    lines: Sequence[Line]
    code: int
    seconds: float
    left: Sequence[str]

    @property
    def killed(self) -> bool:
        """Whether it did not end by itself."""
        return self.code == -9


class Command:
    """The distillation of the recipe in ``world`` to ``output_dir``, as a process that can be watched.

    Args:
        world: Holds ``recipe.yaml``; the process works there.
        output_dir: Where it writes.
    """

    def __init__(self, world: Path, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.lines: list[Line] = []
        self._started = time.time()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "stlm_kd",
                "distill",
                "-r",
                "recipe.yaml",
                "--output-dir",
                str(output_dir),
            ],
            cwd=world,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def attempt(self, marks: Sequence[tuple[str, str]] = (), moment: Moment | None = None) -> Attempt:
        """Wait until it ends, or until the moment, at which it is killed."""
        try:
            while self._process.poll() is None:
                if not self.lines and self._began():
                    self.lines.append(Line("", BEGAN, time.time()))
                if moment is not None and self._reached(marks, moment):
                    self._process.kill()
                time.sleep(0.001)
        finally:
            self._process.kill()
            self._reader.join()
            assert self._process.stderr is not None
            self._process.stderr.close()
        left = sorted({path.name for path in unfinished(self.output_dir)})
        return Attempt(self.lines, self._process.returncode, time.time() - self._started, left)

    def _reached(self, marks: Sequence[tuple[str, str]], moment: Moment) -> bool:
        later = set(marks[moment.line :])
        first = next((line for line in self.lines if line.mark in later), None)
        return first is not None and time.time() >= first.time + moment.delay

    def _began(self) -> bool:
        records = self.output_dir.glob("*/run.json")
        return any(path.stat().st_mtime > self._started for path in records)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in heard(self._process.stderr):
            self.lines.append(line)


def heard(texts: Iterable[str]) -> Iterator[Line]:
    """What a command says, as it comes."""
    stage = ""
    for text in texts:
        known = text.rstrip("\n").partition("  ")[0]
        if re.match(r"(teacher|adapt|student|no-teacher)\b[^:]*$", known):
            stage = known
        kind = " validation" if "  validation  " in text else ""
        yield Line(stage, known + kind, time.time())


def environment() -> dict[str, str]:
    """One thread, no network, and the package of this checkout."""
    root = str(Path(__file__).resolve().parents[2])
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **offline, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}


@dataclass(frozen=True, slots=True)
class Whole:
    """The uninterrupted run: its folder, its lines, and when its work ended by the clock."""

    output_dir: Path
    lines: Sequence[Line]
    ended: float

    @property
    def marks(self) -> list[tuple[str, str]]:
        """What any other run says too."""
        return [line.mark for line in self.lines]

    def moment(self, draw: random.Random) -> Moment:
        """Drawn evenly from the time of work."""
        at = draw.uniform(self.lines[0].time, self.ended)
        number = max(i for i, line in enumerate(self.lines) if line.time <= at)
        return Moment(number, at - self.lines[number].time)


def uninterrupted(world: Path, output_dir: Path) -> Whole:
    """Run the command once.

    Raises:
        RuntimeError: It failed.
    """
    done = Command(world, output_dir).attempt()
    (record,) = output_dir.glob("*/run.json")
    if done.code:
        raise RuntimeError(f"the uninterrupted command failed: {done.lines[-1].text}")
    return Whole(output_dir, done.lines, record.stat().st_mtime)


def killed_run(
    world: Path, output_dir: Path, marks: Sequence[tuple[str, str]], moments: Sequence[Moment]
) -> list[Attempt]:
    """The command, killed at each moment in turn and given again; the last attempt was left alone.

    A command that ends before its moment comes is not given again.

    Args:
        world: Holds ``recipe.yaml``.
        output_dir: Where all attempts write.
        marks: The lines of the uninterrupted command, to which the moments refer.
        moments: When to kill.
    """
    attempts: list[Attempt] = []
    for moment in (*sorted(moments, key=lambda m: (m.line, m.delay)), None):
        attempts.append(Command(world, output_dir).attempt(marks, moment))
        if not attempts[-1].killed:
            break
    return attempts


def unfinished(output_dir: Path) -> Iterator[Path]:
    """What exists only while something is being written."""
    for path in output_dir.rglob("*"):
        if path.suffix in (".partial", ".unfinished", ".new") or re.match(r"\.(new|old|tokens)-", path.name):
            yield path


def differences(whole: Path, resumed: Path) -> list[str]:
    """Each file that one folder has and the other has not, or that holds something else; times aside."""
    found = [_files(folder) for folder in (whole, resumed)]
    only = [f"{name}: only in one of the runs" for name in sorted(found[0].keys() ^ found[1].keys())]
    both = sorted(found[0].keys() & found[1].keys())
    return only + [f"{name}: differs" for name in both if found[0][name]() != found[1][name]()]


def _files(folder: Path) -> dict[str, Any]:
    """How to read what must be the same, by name; event files bear times in their names and are left out."""
    read = {".safetensors": Path.read_bytes, ".bin": Path.read_bytes}
    named = {"metrics.jsonl": _metrics, "results.json": _untimed, "result.json": _untimed}
    files = {}
    for path in folder.rglob("*"):
        if path.is_file() and not {"tensorboard", ".locks"} & set(path.parts) and path.name != ".lock":
            reader = named.get(path.name) or read.get(path.suffix) or (lambda path: None)
            files[path.relative_to(folder).as_posix()] = lambda path=path, reader=reader: reader(path)
    return files


def _metrics(path: Path) -> list[object]:
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    return [_without_times(line) for line in lines if line["kind"] != "note"]


def _untimed(path: Path) -> object:
    return _without_times(json.loads(path.read_text()))


def _without_times(value: object) -> object:
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        name: _without_times(item)
        for name, item in value.items()
        if not re.search(r"second|date|time", name) or isinstance(item, (list, dict))
    }


def steps_lost(killed: Attempt, again: Attempt) -> int:
    """Optimizer steps that the killed process had logged and the next one took again, at least."""
    stage = killed.lines[-1].stage if killed.lines else ""
    steps = [match for line in killed.lines if line.stage == stage and (match := _step(line.text))]
    texts = [line.text for line in again.lines if line.stage == stage]
    if not steps or not texts:
        return 0
    resumed = [int(text.split()[-1]) for text in texts if text.startswith("resumed after step")]
    return max(0, steps[-1] - (resumed[0] if resumed else 0))


def _step(text: str) -> int | None:
    match = re.match(r"step (\d+)/", text)
    return int(match[1]) if match else None


def trial(task: str, kills: int, seed: int, folder: Path) -> bool:
    """Whether so many kills changed nothing; prints a table and a verdict."""
    for name, text in recipes(task).items():
        (folder / name).write_text(text, encoding="utf-8")
    whole = uninterrupted(folder, folder / "whole")
    worked = whole.ended - whole.lines[0].time
    print(f"{task}: uninterrupted, {len(whole.lines)} lines in {worked:.1f} s of work", flush=True)
    print(f"{'kill':>4} {'run':>4} {'after':>7}  {'steps lost':>10}  {'last line':<44} half-written")
    draw, number, run, faults = random.Random(seed), 0, 0, list[str]()
    while number < kills:
        run += 1
        moments = [whole.moment(draw) for _ in range(min(KILLS_OF_A_RUN, kills - number))]
        output_dir = folder / f"killed-{run}"
        attempts = killed_run(folder, output_dir, whole.marks, moments)
        for killed, again in pairwise(attempts):
            number += 1
            last = ": ".join(part for part in killed.lines[-1].mark if part)
            lost, left = steps_lost(killed, again), ", ".join(killed.left) or "-"
            print(f"{number:>4} {run:>4} {killed.seconds:>6.1f}s  {lost:>10}  {last:<44} {left}", flush=True)
        last_one = attempts[-1]
        found = verdict(whole.output_dir, output_dir)
        if last_one.code:
            found = [f"ended with {last_one.code}: {last_one.lines[-1].text if last_one.lines else ''}"]
        faults += [f"run {run}: {fault}" for fault in found]
    print(f"{task}: {number} kills in {run} runs: {len(faults)} differences", *faults, sep="\n  ", flush=True)
    return not faults


def verdict(whole: Path, resumed: Path) -> list[str]:
    """What is wrong with a run that was killed and given again until it ended."""
    left = [f"{path.relative_to(resumed)}: half-written and left" for path in unfinished(resumed)]
    return left + differences(whole, resumed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each task (20)")
    parser.add_argument("--task", choices=["clm", "mlm", "both"], default="both", help="(both)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--keep", type=Path, help="a folder to work in, which stays; it must be new")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sound = True
        for task in ("clm", "mlm") if options.task == "both" else (options.task,):
            folder = (options.keep or Path(temporary)) / task
            folder.mkdir(parents=True)
            sound &= trial(task, options.kills, options.seed, folder.resolve())
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
