"""What a process sends in an optimizer step of a real training: its collective operations, and the bytes.

``python -m tests.support.collectives FOLDER JSON``: a list of the arguments of ``Case``; what was seen is in
``FOLDER/RANK.json``. Operations are those that PyTorch's dispatcher runs, DDP's among them. Bytes are those
that the kernel has sent by this process's TCP sockets, which are gloo's.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from stlm_kd.data.batch import Batch
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.distributed import end_processes, process_rank
from stlm_kd.tracking import Trackers
from stlm_kd.training import TrainingConfig
from stlm_kd.training.config import DeepSpeedOptions
from stlm_kd.training.loop import fit
from tests.support.pico import packed_batch
from tests.support.processes import run_together

STEPS, SEEN = 6, 4
"""Number of steps, and the one that is looked at: libraries watch the first ones, and prepare."""
SMALL = 128
"""Bytes up to which an operation is one of counts, losses and norms."""
_BYTES_SENT = 200  # the place of tcpi_bytes_sent in the kernel's struct tcp_info


@dataclass(frozen=True)
class Case:
    """A training of two processes."""

    zero: int | None
    micro_batches: int
    precision: str = "fp32"
    weights: str = "fp32"
    settings: Mapping[str, Any] = field(default_factory=dict)


def student() -> LlamaForCausalLM:
    """Weights above and below the 100,000 elements up to which ZeRO 3 leaves them whole."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 2048, "hidden_size": 128, "intermediate_size": 1024, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=2, tie_word_embeddings=True, **sizes))


class Collectives(TorchDispatchMode):
    """Notes each collective operation with the bytes of the largest of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            tensors = [one for one in tree_leaves([args, kwargs]) if isinstance(one, Tensor)]
            self.seen.append((func.__name__, max((one.nbytes for one in tensors), default=0)))
        return func(*args, **(kwargs or {}))


def sent() -> int:
    """Bytes that this process's TCP sockets have sent."""
    total = 0
    for name in Path("/proc/self/fd").iterdir():
        try:
            if not str(name.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name.name))) as copy:
                info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_SENT + 8)
        except OSError:
            continue
        if len(info) == _BYTES_SENT + 8:
            total += struct.unpack_from("Q", info, _BYTES_SENT)[0]
    return total


class Rows:
    """The same rows in each micro-batch; notes what was seen before each step."""

    steps_per_epoch = 3

    def __init__(self, micro_batches: int, watch: Collectives) -> None:
        self.micro_batches, self.watch = micro_batches, watch
        self.marks: list[tuple[int, int]] = []

    def step(self, index: int) -> Sequence[Batch]:
        self.marks.append((len(self.watch.seen), sent()))
        return [packed_batch([[9, 5]], length=16, seed=process_rank())] * self.micro_batches


def watched(case: Case, folder: Path) -> dict[str, object]:
    """The operations and the bytes of one step."""
    step = DistillationStep(student(), [Term("labels", "labels")])
    watch = Collectives()
    rows = Rows(case.micro_batches, watch)
    settings = TrainingConfig(
        steps=STEPS,
        zero=case.zero,  # type: ignore[arg-type]
        precision=case.precision,  # type: ignore[arg-type]
        deepspeed=DeepSpeedOptions("none", case.weights, {"zero_optimization": dict(case.settings)}),  # type: ignore[arg-type]
        checkpoint_every=100,
    )
    with watch:
        told = {"tracker": Trackers(), "fingerprint": ""}
        fit(step, rows, settings, folder=folder, validation=None, resume=False, **told)  # type: ignore[arg-type]
    (first, before), (last, after) = rows.marks[SEEN : SEEN + 2]
    return {"operations": watch.seen[first:last], "sent": after - before}


def launch(folder: Path, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """What the first of two processes saw, by case."""
    asked = json.dumps([asdict(case) for case in cases])
    ended = run_together(2, "tests.support.collectives", str(folder), asked)
    assert [process.code for process in ended] == [0, 0], ended
    found: list[dict[str, Any]] = json.loads((folder / "0.json").read_text())
    return found


def main() -> int:
    folder, cases = Path(sys.argv[1]), [Case(**case) for case in json.loads(sys.argv[2])]
    found = [watched(case, folder / f"run-{number}") for number, case in enumerate(cases)]
    end_processes()
    (folder / f"{process_rank()}.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
