"""What the training loop costs beyond the work itself, and what a second process gains.

    python benchmarks/training/engine.py                 # both parts
    python benchmarks/training/engine.py loop --blocks 30
    python benchmarks/training/engine.py processes --turns 3

``loop``: ``fit`` against the loop that one writes in PyTorch (zero the gradients, forward, backward, clip,
step), with the same module, batches, optimizer and number of threads. Blocks of a few optimizer steps of the
bare loop and of ``fit`` alternate in one process; each block of ``fit`` is compared with the mean of the two
bare ones around it, by processor time. ``fit`` counts tokens, checks for NaN, logs every tenth step to a file
and sets the learning rate; validations and checkpoints are left out. The weights of both sides must stay
bitwise equal.

``processes``: two processes of one thread each (DDP over gloo) against one of one thread, on the same global
batch, in turns. Wall time needs two idle cores, so the load average is printed before; processor time per
step, over all processes, shows what sharing the gradients costs, on busy cores too.

The model is a Llama of 4 layers and width 256 with 8192 tokens (5.3 million parameters) on random tokens, the
objective its labels: with a teacher a step is longer and the loop's share of it smaller.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as the command line does

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import stlm_kd
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distillation.entries import batch_of
from stlm_kd.distributed import end_processes, launched_processes, process_rank
from stlm_kd.tracking.opening import open_tracker
from stlm_kd.training.config import TrainingConfig
from stlm_kd.training.loop import fit
from stlm_kd.training.optimizer import make_optimizer, trainable_parameters
from stlm_kd.training.protocols import BatchSource

VOCABULARY = 8192
MOST_OF_BARE, MOST_OF_ONE = 1.03, 0.65
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of <malloc.h>
WARM_UP = 2
"""Steps of a process that are not counted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=["loop", "processes"], help="default: both")
    parser.add_argument("--rows", type=int, default=8, help="rows of an optimizer step (8)")
    parser.add_argument("--context", type=int, default=128, help="positions of a row (128)")
    parser.add_argument("--blocks", type=int, default=20, help="blocks of each loop (20)")
    parser.add_argument("--block", type=int, default=2, help="optimizer steps of a block (2)")
    parser.add_argument("--turns", type=int, default=3, help="turns of one and of two processes (3)")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of a turn (12)")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.work is not None:
        work(options.work, options)
        return
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        if options.part != "processes":
            compare_loops(Path(folder), options)
        if options.part != "loop":
            compare_processes(Path(folder), options)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory: giving it back and faulting it in again costs milliseconds a step.

    Which of the two loops that meets depends on the order in which their tensors were allocated.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(MMAP_THRESHOLD, 2**25)  # its maximum


def settings_for(steps: int) -> TrainingConfig:
    return TrainingConfig(steps=steps, learning_rate=1e-4, schedule="constant", warmup=0.0)


def untrained() -> stlm_kd.DistillationStep:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    return stlm_kd.DistillationStep(model, [{"loss": "labels"}])


def random_batches(
    step: stlm_kd.DistillationStep, options: argparse.Namespace, share: slice = slice(None)
) -> list[AnyBatch]:
    """Four batches of documents that fill their rows, or a share of their rows."""
    generator = torch.Generator().manual_seed(2)
    shape = options.rows, options.context
    drawn = [torch.randint(VOCABULARY, shape, generator=generator)[share] for _ in range(4)]
    return [batch_of({"input_ids": ids}, step.student) for ids in drawn]


class Bare:
    """The loop that one writes in PyTorch; the number of labels is known beforehand."""

    def __init__(self, batches: Sequence[AnyBatch], settings: TrainingConfig) -> None:
        self.module, self.batches, self.settings = untrained().train(), batches, settings
        self.optimizer = make_optimizer(self.module, settings)
        self.labels = [{name: float(n) for name, n in self.module.count(one).items()} for one in batches]
        self.taken = 0

    def step(self) -> None:
        index = self.taken % len(self.batches)
        self.optimizer.zero_grad(set_to_none=True)
        self.module(self.batches[index], self.labels[index]).loss.backward()
        assert self.settings.clip is not None
        nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip)
        self.optimizer.step()
        self.taken += 1


@dataclass
class Alternating:
    """The batches of ``fit``, which takes a block of bare steps before each block of its own."""

    batches: Sequence[AnyBatch]
    bare: Bare
    module: nn.Module
    block: int

    def __post_init__(self) -> None:
        self.bare_s: list[float] = []
        self.fit_s: list[float] = []
        self.began = 0.0

    def step(self, index: int) -> list[AnyBatch]:
        if index % self.block == 0:
            if index:
                self.fit_s.append(time.process_time() - self.began)
                require_equal(self.module, self.bare.module)
            began = time.process_time()
            for _ in range(self.block):
                self.bare.step()
            self.began = time.process_time()
            self.bare_s.append(self.began - began)
        return [self.batches[index % len(self.batches)]]


def require_equal(module: nn.Module, other: nn.Module) -> None:
    """Stop unless both sides have the same weights after the same number of steps."""
    others = trainable_parameters(other)
    if not all(torch.equal(weight, others[name]) for name, weight in trainable_parameters(module).items()):
        raise SystemExit("the two loops do not take the same steps")


def train(module: stlm_kd.DistillationStep, source: BatchSource, steps: int, folder: Path) -> None:
    """``fit`` with a file of metrics, without validation."""
    folder.mkdir(exist_ok=True)
    tracker = open_tracker(folder, stream=io.StringIO())
    settings = settings_for(steps)
    fit(
        module,
        source,
        settings,
        folder=folder,
        validation=None,
        tracker=tracker,
        resume=False,
        fingerprint="",
    )
    tracker.close()


def compare_loops(folder: Path, options: argparse.Namespace) -> None:
    print_load("loop")
    module = untrained()
    batches = random_batches(module, options)
    steps = (
        options.block * (options.blocks + 1) + 1
    )  # a first block is not counted, a last step ends the last
    source = Alternating(batches, Bare(batches, settings_for(steps)), module, options.block)
    train(module, source, steps, folder / "loop")
    own, around = source.fit_s[1:], [statistics.mean(pair) for pair in pairwise(source.bare_s[1:])]
    ratios = [mine / bare for mine, bare in zip(own, around, strict=True)]
    more_ms = [(mine - bare) / options.block * 1e3 for mine, bare in zip(own, around, strict=True)]
    millions = sum(weight.numel() for weight in trainable_parameters(module).values()) / 1e6
    print(
        f"  {millions:.1f} million parameters, {options.rows} x {options.context} tokens; a bare step takes "
        f"{statistics.median(around) / options.block:.3f} s of processor time; the weights stay equal"
    )
    print(
        f"  fit / bare, processor time per step: {spread(ratios, '.3f')} (target: at most {MOST_OF_BARE}); "
        f"{spread(more_ms, '+.1f')} ms a step"
    )


def spread(values: Sequence[float], form: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}}, median of {len(values)} blocks (quartiles {low:{form}} to {high:{form}})"


def print_load(part: str) -> None:
    loads = ", ".join(f"{load:.2f}" for load in os.getloadavg())
    print(f"{part}: load average {loads} on {os.cpu_count()} cores, 1 thread a process", flush=True)


def compare_processes(folder: Path, options: argparse.Namespace) -> None:
    print_load("processes (wall time needs two idle cores)")
    wall: dict[int, list[float]] = {1: [], 2: []}
    used: dict[int, list[list[float]]] = {1: [], 2: []}
    losses = []
    for turn in range(options.turns):
        for number in wall:
            place = folder / f"{number}-{turn}"
            found = run(place, number, options)
            wall[number].append(found[0]["wall_s"])
            used[number].append([one["processor_s"] for one in found])
            losses.append(last_loss(place))
            each = " + ".join(f"{one:.3f}" for one in used[number][-1])
            print(
                f"  processes: {number}; s per step: wall {wall[number][-1]:.3f}, processor {each}",
                flush=True,
            )
    if max(losses) - min(losses) > 1e-4:
        raise SystemExit(f"one and two processes do not compute the same loss: {losses}")
    by_wall = median_ratio(wall[2], wall[1])
    by_processor = median_ratio(map(sum, used[2]), map(sum, used[1]))
    print(
        f"  two / one, per step: wall {by_wall} (target on two idle cores: at most {MOST_OF_ONE}), "
        f"processor, both together, {by_processor}; medians of {options.turns} turns"
    )


def median_ratio(over: Iterable[float], under: Iterable[float]) -> str:
    ratios = [one / other for one, other in zip(over, under, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def run(place: Path, processes: int, options: argparse.Namespace) -> list[dict[str, float]]:
    """Train in so many processes; the seconds per step of each."""
    place.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    given = [f"--rows={options.rows}", f"--context={options.context}", f"--steps={options.steps}"]
    command = [sys.executable, __file__, *given, "--work", str(place)]
    begun = []
    for rank in range(processes):
        own = {**several, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        begun.append(subprocess.Popen(command, env={**os.environ, **own}))
    codes = [process.wait() for process in begun]
    if any(codes):
        raise SystemExit("a process failed; its message says why")
    return [json.loads((place / f"took-{rank}.json").read_text()) for rank in range(processes)]


def last_loss(place: Path) -> float:
    entries = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    return float([entry["loss"] for entry in entries if "loss" in entry][-1])


@dataclass
class Timed:
    """Batches that note when they are asked for."""

    batches: Sequence[AnyBatch]

    def __post_init__(self) -> None:
        self.wall_s: list[float] = []
        self.processor_s: list[float] = []

    def step(self, index: int) -> list[AnyBatch]:
        self.wall_s.append(time.perf_counter())
        self.processor_s.append(time.process_time())
        return [self.batches[index % len(self.batches)]]


def work(place: Path, options: argparse.Namespace) -> None:
    """One process: train on its share of the rows, and write the median seconds of a step."""
    module, share = untrained(), slice(process_rank(), None, launched_processes())
    source = Timed(random_batches(module, options, share))
    try:
        train(module, source, options.steps, place)
    finally:
        end_processes()
    found = {
        name: statistics.median(end - begin for begin, end in pairwise(times[WARM_UP:]))
        for name, times in (("wall_s", source.wall_s), ("processor_s", source.processor_s))
    }
    (place / f"took-{process_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
