"""A pico language model as a training step, its batches, and a tracker that remembers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from stlm_kd.data.batch import IGNORED, TENSORS, Batch
from stlm_kd.tracking import StepMetrics, Tracker, Trackers, ValidationMetrics
from stlm_kd.training import TrainingConfig
from stlm_kd.training.loop import fit
from stlm_kd.training.protocols import FitResult, MeanMetric

VOCABULARY, WIDTH, LENGTH = 13, 6, 7


@dataclass(frozen=True, slots=True)
class PicoOutput:
    loss: Tensor
    sums: dict[str, Tensor]
    measures: dict[str, MeanMetric] = field(default_factory=dict)


class PicoStep(nn.Module):
    """Cross-entropy on the labels, and half the mean square of the attended logits: unequal counts."""

    def __init__(self, *, dropout: float = 0.0, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.idle = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))
        self.is_logged = False
        self.to(dtype)

    def begin(self, index: int, steps: int, *, is_logged: bool) -> None:
        self.is_logged = is_logged

    def direct_parameters(self) -> list[nn.Parameter]:
        return []

    @property
    def measures(self) -> list[str]:
        return ["size/first", "size/rare", "size/never"] if self.is_logged else []

    def not_finite(self, batch: Batch) -> list[str]:
        return []

    def count(self, batch: Batch) -> dict[str, int]:
        return {"labels": int((batch.labels != IGNORED).sum()), "size": int(batch.attention_mask.sum())}

    def forward(self, batch: Batch, denominators: Mapping[str, float]) -> PicoOutput:
        if self.training:
            self.forwards += 1
        hidden = self.norm(self.embedding(batch.input_ids))
        logits = self.head(self.dropout(hidden + self.frozen(hidden))).to(self.embedding.weight.dtype)
        labels = nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        size = (logits.square().mean(-1) * batch.attention_mask).sum()
        loss = labels / denominators["labels"] + 0.5 * size / denominators["size"]
        sums = {"labels": labels.detach(), "size": size.detach()}
        measures = self.is_logged and self.training
        return PicoOutput(loss, sums, self._measured(batch, logits.detach()) if measures else {})

    def _measured(self, batch: Batch, logits: Tensor) -> dict[str, MeanMetric]:
        """Mean squares where a row begins, and of token 0, which not all micro-batches have."""
        size = logits.square().mean(-1)
        chosen = {
            "size/first": batch.attention_mask & (batch.position_ids == 0),
            "size/rare": batch.attention_mask & (batch.input_ids == 0),
        }
        return {n: MeanMetric(size[mask].sum(), mask.sum()) for n, mask in chosen.items() if bool(mask.any())}


def pico_rows(count: int, seed: int) -> Batch:
    """Rows of random length and random ids, with about a third of the labels ignored."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
    lengths = torch.randint(2, LENGTH + 1, (count, 1), generator=generator)
    mask = torch.arange(LENGTH) < lengths
    kept = mask & (torch.rand(count, LENGTH, generator=generator) > 0.3)
    kept[:, 0] = True
    labels = torch.where(kept, (input_ids * 5 + 1) % VOCABULARY, IGNORED)
    positions = torch.arange(LENGTH).expand(count, -1).clone()
    return Batch(input_ids, mask, labels, mask.long(), positions, torch.arange(count))


def take(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch; for none, a row of padding that predicts nothing."""
    index = torch.tensor(rows or [0])
    picked = {name: getattr(batch, name)[index] for name in TENSORS}
    if not rows:
        picked["attention_mask"] = torch.zeros_like(picked["attention_mask"])
        picked["labels"] = torch.full_like(picked["labels"], IGNORED)
    return Batch(**picked)


@dataclass
class PicoBatches:
    """``rows`` random rows per step, two fewer at each third one, dealt to processes and micro-batches."""

    rows: int = 6
    micro_batch: int = 6
    rank: int = 0
    world_size: int = 1
    steps_per_epoch: int = 3
    asked: list[int] = field(default_factory=list)

    def step(self, index: int) -> Sequence[Batch]:
        self.asked.append(index)
        count = self.rows - (2 if index % 3 == 2 else 0)
        rows = self.rows_of(index, count)
        mine = list(range(self.rank, count, self.world_size))
        most = math.ceil(math.ceil(count / self.world_size) / self.micro_batch)  # of any process
        return [take(rows, mine[at * self.micro_batch : (at + 1) * self.micro_batch]) for at in range(most)]

    def rows_of(self, index: int, count: int) -> Batch:
        """The rows of a step."""
        return pico_rows(count, 1000 + index)


class Memory(Trackers):
    """A tracker that remembers what it heard."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[StepMetrics] = []
        self.validations: list[ValidationMetrics] = []
        self.notes: list[str] = []

    def step(self, metrics: StepMetrics) -> None:
        self.steps.append(metrics)

    def validation(self, metrics: ValidationMetrics) -> None:
        self.validations.append(metrics)

    def note(self, message: str) -> None:
        self.notes.append(message)


def held_out() -> list[Batch]:
    return [pico_rows(3, 7), pico_rows(2, 8)]


def pico_fit(
    step: nn.Module,
    folder: Path,
    settings: TrainingConfig,
    *,
    batches: PicoBatches | None = None,
    tracker: Tracker | None = None,
    resume: bool = True,
    fingerprint: str = "pico",
    validates: bool = True,
) -> FitResult:
    """``fit`` with pico data."""
    return fit(
        step,
        batches or PicoBatches(),
        settings,
        folder=folder,
        validation=held_out if validates else None,
        tracker=tracker or Trackers(),
        resume=resume,
        fingerprint=fingerprint,
    )


def digest(module: nn.Module) -> str:
    """Equal if and only if all parameters and buffers are equal bit for bit."""
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
