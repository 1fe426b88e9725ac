"""Several trainings that follow each other in one process, or in each of several that train together.

``python -m tests.support.engine_fleet FOLDER RUNS``: ``RUNS`` is a JSON list of what ``Run`` takes. Each run
works in ``FOLDER/name``; their results are in ``FOLDER/told-RANK.json``.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stlm_kd.data.batch import Batch
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distillation import step as distillation_step
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.distributed import end_processes, launched_processes, on_main_process, process_rank
from stlm_kd.errors import DataError, StlmKdError
from stlm_kd.teachers import Placement
from stlm_kd.tracking import open_tracker
from stlm_kd.training import RowScale, TrainingConfig
from stlm_kd.training.checkpoint import model_tensors
from stlm_kd.training.config import DeepSpeedOptions
from stlm_kd.training.loop import fit
from tests.integration.test_engine_stops import Poisoned, infinite_gradient
from tests.slow.test_engine_resume import Rising
from tests.support.engine_objectives import Texts, all_objectives, held_out_texts
from tests.support.engine_pico import WIDTH, PicoOutput, PicoStep, digest, held_out, pico_fit
from tests.support.engine_worker import SignallingBatches, signal_at
from tests.support.interchange_steps import KINDS as READS
from tests.support.interchange_steps import PairedTexts, held_out_pairs, step_of
from tests.support.pico import packed_batch, pico_model
from tests.support.processes import run_together
from tests.support.teacher_memory import MEASURED, MeasuredStep

SETTINGS = {
    "steps": 6,
    "learning_rate": 1e-2,
    "eps": 1e-3,
    "clip": 0.3,
    "validate_every": 3,
    "checkpoint_every": 2,
    "log_every": 1,
}


Told = list[dict[str, dict[str, Any]]]
"""By process and run, what became of it."""


@dataclass(frozen=True)
class Run:
    """One training: ``begins_as``: a run whose checkpoints are copied first. ``pace``: of some rows."""

    name: str
    zero: int | None = None
    deepspeed: Mapping[str, object] = field(default_factory=dict)
    step: str = "pico"
    settings: Mapping[str, object] = field(default_factory=dict)
    signals: Mapping[str, list[int]] = field(default_factory=dict)
    begins_as: str | None = None
    micro_batch: int = 2
    pace: float | None = None


class Tied(PicoStep):
    def __init__(self) -> None:
        super().__init__()
        self.head.weight = self.embedding.weight


class Sometimes(PicoStep):
    """``idle`` has a gradient in the first two updates and none later."""

    def __init__(self) -> None:
        super().__init__()
        self.updates, self.ran = 0, False

    def count(self, batch: Batch) -> dict[str, int]:
        if self.training and self.ran:
            self.updates, self.ran = self.updates + 1, False
        return super().count(batch)

    def forward(self, batch: Batch, denominators: Mapping[str, float]) -> PicoOutput:
        output = super().forward(batch, denominators)
        self.ran = self.ran or self.training
        if self.training and self.updates < 2:
            extra = self.idle(self.embedding(batch.input_ids)).square().sum() / denominators["size"]
            return PicoOutput(output.loss + extra, output.sums)
        return output


class Hidden(PicoStep):
    """A projection that no engine sees: outside the module, moved by an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._outside = [nn.Linear(WIDTH, WIDTH)]
        self._mover = torch.optim.SGD(self._outside[0].parameters(), lr=1.0)

    def count(self, batch: Batch) -> dict[str, int]:
        if self.training:
            self._mover.step()
            self._mover.zero_grad()
        return super().count(batch)

    def forward(self, batch: Batch, denominators: Mapping[str, float]) -> PicoOutput:
        output = super().forward(batch, denominators)
        projected = self._outside[0](self.norm(self.embedding(batch.input_ids)))
        size = (projected.square().mean(-1) * batch.attention_mask).sum()
        return PicoOutput(output.loss + size / denominators["size"], {**output.sums, "size": size.detach()})


class Alone(PicoStep):
    """A parameter that the second process moves by itself."""

    def forward(self, batch: Batch, denominators: Mapping[str, float]) -> PicoOutput:
        output = super().forward(batch, denominators)
        if self.training and process_rank() == 1:
            self.head.bias.data.add_(1e-3)
        return output


class Means(PicoStep):
    """Divides by its own counts, so that the whole is a mean of the processes' means."""

    def forward(self, batch: Batch, denominators: Mapping[str, float]) -> PicoOutput:
        own = {name: float(max(count, 1)) for name, count in self.count(batch).items()}
        output = super().forward(batch, own if self.training else denominators)
        return PicoOutput(output.loss / launched_processes(), output.sums)


class PoisonedElsewhere(Poisoned):
    """Only the last process's gradient is not finite."""

    def __init__(self) -> None:
        is_last = process_rank() == launched_processes() - 1
        super().__init__(infinite_gradient if is_last else lambda step, output: output)


class OneText(SignallingBatches):
    """Two rows of text, dealt to the processes; the same at each step."""

    def step(self, index: int) -> list[Batch]:
        rows = [packed_batch([[9, 5]], length=16), packed_batch([[12]], length=16, seed=1)]
        return rows[self.rank :: self.world_size] if self.world_size == 2 else rows


class SignallingPairs(PairedTexts):
    def step(self, index: int) -> list[AnyBatch]:
        signal_at(self.signals, index)
        return super().step(index)


def llama() -> DistillationStep:
    return DistillationStep(pico_model("llama"), [Term("labels", "labels")])


STEPS: dict[str, Callable[[], nn.Module]] = {
    "pico": PicoStep,
    "tied": Tied,
    "sometimes": Sometimes,
    "hidden": Hidden,
    "means": Means,
    "alone": Alone,
    "poisoned": PoisonedElsewhere,
    "rising": Rising,
    "llama": llama,
    "interchange": partial(step_of, "packed"),
    "objectives": all_objectives,
    "objectives-dense": partial(all_objectives, method="dense"),
    "objectives-fp32": partial(all_objectives, dtype=torch.float32),
    "objectives-mean": partial(all_objectives, own_means=True),
    "objectives-shifted": partial(all_objectives, shifted=True),
    "objectives-sharded": partial(all_objectives, placements={"a": "shard", "b": "replicate"}),
    "objectives-untied": partial(all_objectives, tied=False),
    "objectives-untied-sharded": partial(all_objectives, placements={"a": "shard", "b": "shard"}, tied=False),
    "objectives-fp32-sharded": partial(
        all_objectives, dtype=torch.float32, placements={"a": "shard", "b": "offload"}
    ),
    **{f"measured-{name}": made for name, made in MEASURED.items()},
}
KINDS: dict[str, Callable[..., Any]] = {"llama": OneText, "interchange": PairedTexts}
HELD_OUT: dict[str, Callable[[], Sequence[AnyBatch]]] = {
    "llama": lambda: OneText().step(0),
    "interchange": held_out_pairs,
}
"""Batches of the steps that read text of their own."""

for read, source, placement in product(READS, ("batch", "pool", "mixup-token"), ("replicate", "shard")):
    for suffix, dtype in (("", torch.float64), ("-fp32", torch.float32)):
        name = f"interchange-{read}-{source}-{placement}{suffix}"
        STEPS[name] = partial(step_of, read, source, placement=placement, dtype=dtype)
        KINDS[name] = partial(SignallingPairs, kind=read, effective=5)
        HELD_OUT[name] = partial(held_out_pairs, read)


def unequal(placement: Placement) -> DistillationStep:
    """The mistake of as many source passes as each process needs by itself."""
    distillation_step.equal_passes = lambda plans, _batch: plans
    return step_of("packed", placement=placement, dtype=torch.float32)


for placement in ("replicate", "shard"):
    STEPS[f"interchange-unequal-{placement}"] = partial(unequal, placement)
    KINDS[f"interchange-unequal-{placement}"] = partial(PairedTexts, effective=5)
    HELD_OUT[f"interchange-unequal-{placement}"] = held_out_pairs


def train(folder: Path, run: Run) -> dict[str, object]:
    """What became of one run; everything in it is a fact about this process."""
    here = folder / run.name
    if run.begins_as is not None:
        on_main_process(lambda: str(shutil.copytree(folder / str(run.begins_as), here)))
    step = STEPS[run.step]()
    of_text = run.step.startswith(("objectives", "measured"))
    kind = KINDS.get(run.step, Texts if of_text else SignallingBatches)
    batches = kind(rank=process_rank(), world_size=launched_processes(), micro_batch=run.micro_batch)
    batches.signals = dict(run.signals)
    rows = HELD_OUT.get(run.step, held_out_texts if of_text else held_out)()
    tracker = open_tracker(here)
    told: dict[str, object] = {"error": None}
    left_before = remains(step)
    try:
        result = fit(
            step,
            batches,
            TrainingConfig(
                **{**SETTINGS, **run.settings},
                zero=run.zero,
                deepspeed=DeepSpeedOptions(**run.deepspeed),
                paced=paced_rows(run.pace),
            ),
            folder=here,
            validation=lambda: rows if process_rank() == 0 else [],
            tracker=tracker,
            resume=True,
            fingerprint=run.step,
        )
        told["result"] = asdict(result)
    except StlmKdError as error:
        told["error"] = [type(error).__name__, error.exit_code, str(error)]
    if run.step == "llama" and process_rank() == 0:
        step.student.save_pretrained(here / "model")
    told["weights"] = {n: float(value.detach().double().sum()) for n, value in model_tensors(step).items()}
    told["remains"] = sorted({*remains(step)} - {*left_before})
    told |= {"digest": digest(step), "before": getattr(step, "before", "")}
    if isinstance(step, MeasuredStep):
        told["held"] = step.held()
    watched = [weakref.ref(step), weakref.ref(batches)]
    del step, batches
    gc.collect()
    return told | {"freed": [reference() is None for reference in watched]}


def paced_rows(pace: float | None) -> tuple[RowScale, ...]:
    """Of two weights, which lie in different groups of the optimizer."""
    named = ("embedding.weight", "head.bias") if pace is not None else ()
    return tuple(RowScale(name, (0, 5, 11), pace or 0.0) for name in named)


def launch(folder: Path, processes: int, runs: Sequence[Run]) -> Told:
    """The result of each process; standard output must be empty."""
    asked = json.dumps([asdict(run) for run in runs])
    ended = run_together(processes, "tests.support.engine_fleet", str(folder), asked, options=("-W", "error"))
    assert [process.code for process in ended] == [0] * processes, ended
    assert [process.stdout for process in ended] == [""] * processes
    assert all("WARNING" not in process.stderr and "INFO" not in process.stderr for process in ended)
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(processes)]


def remains(step: nn.Module) -> list[str]:
    """What an engine left on a module: hooks, attributes of weights, memory shared with other weights."""
    found = [
        f"{name} {kind}"
        for name, part in step.named_modules()
        for kind, hooks in vars(part).items()
        if kind.endswith("_hooks") and hooks
    ]
    for name, weight in step.named_parameters():
        found += [f"{name}.{attribute}" for attribute in vars(weight)]
        if weight._backward_hooks or weight._post_accumulate_grad_hooks or weight.grad is not None:
            found.append(f"{name} has hooks or a gradient")
        if weight.untyped_storage().nbytes() != weight.nbytes:
            found.append(f"{name} lies in {weight.untyped_storage().nbytes()} bytes")
    return found


def fail() -> int:
    raise DataError("no text")


def main() -> int:
    folder, runs = Path(sys.argv[1]), [Run(**run) for run in json.loads(sys.argv[2])]
    told: dict[str, object] = {"ranks": [on_main_process(process_rank), process_rank()]}
    try:
        on_main_process(fail)
    except StlmKdError as error:
        told["failed"] = [type(error).__name__, error.exit_code]
    try:
        on_main_process(partial(pico_fit, PicoStep(), folder / "alone", TrainingConfig(1, 1e-2)))
    except StlmKdError as error:
        told["alone"] = [type(error).__name__, error.exit_code, str(error)]
    gc.freeze()  # else each look for what can be freed goes through all that was imported
    for run in runs:
        told[run.name] = train(folder, run)
    told["distributed"] = torch.distributed.is_initialized()
    end_processes()
    (folder / f"told-{process_rank()}.json").write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
