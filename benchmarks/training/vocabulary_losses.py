"""Time and memory of losses over a vocabulary, forward and backward, beside other ways to compute them.

    python benchmarks/training/vocabulary_losses.py \\
        [--vocabulary 50257] [--tokens 1024] [--repeats 5] [--teachers 4]

Every side gets the same hidden states and heads of student and teacher, and gives the loss and the gradients
of the student's states and head. Time is the processor's, over all threads, taken in turns; peak bytes are
counted from the allocations, the same in every run, and do not include the inputs.

- ``dense``: whole logits, the library's losses under autograd (``projected_losses(method="dense")``).
- ``plain``: whole logits, the shortest formula under autograd, which minds no outcomes that are ruled out.
- ``checkpoint``: the same in chunks of 256 tokens, each under ``torch.utils.checkpoint``.
- ``trl``: TRL's ``generalized_jsd_loss`` on whole logits.
- ``torchdistill``: its ``KDLoss`` (forward KL only).

The last two are left out where they cannot be imported: ``pip install 'trl==1.16.*' torchdistill`` in an
environment of its own.

Shapes: N tokens, D width, V outcomes.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from allocator import peak_bytes
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stlm_kd.distillation.logit_terms import projected_losses
from stlm_kd.distillation.terms import Term
from stlm_kd.distillation.token_table import TokenTable
from stlm_kd.models.forward import Head
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.combination import TeacherMixture
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.targets import Dense

try:
    from trl.experimental.gkd import GKDTrainer
except ImportError:
    GKDTrainer = None
try:
    from torchdistill.losses.mid_level import KDLoss
except ImportError:
    KDLoss = None

CHECKPOINTED_TOKENS = 256
BETAS = {"forward_kl": 0.0, "reverse_kl": 1.0, "jensen_shannon": 0.5}

TIME_TARGETS = {
    ("forward_kl", "dense"): 1.05, ("reverse_kl", "dense"): 1.05, ("jensen_shannon", "dense"): 0.70,
    ("forward_kl", "checkpoint"): 0.60, ("reverse_kl", "checkpoint"): 0.60, ("jensen_shannon", "checkpoint"):
    0.60, ("forward_kl", "trl"): 1.0, ("reverse_kl", "trl"): 0.95, ("jensen_shannon", "trl"): 0.56,
}  # fmt: skip
MEMORY_TARGETS = {
    ("forward_kl", "dense", 50257): 0.16, ("jensen_shannon", "dense", 50257): 0.10,
    ("forward_kl", "dense", 151936): 0.22,
    ("forward_kl", "trl", 50257): 0.15, ("jensen_shannon", "trl", 50257): 0.10,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Inputs:
    """Hidden states (N, D) and head weights (V, D): the student's, with gradients, and each teacher's."""

    hidden: Tensor
    weight: Tensor
    teachers: list[tuple[Tensor, Tensor]]

    @classmethod
    def random(cls, *, tokens: int, width: int, vocabulary: int, teachers: int) -> Inputs:
        """Logits of deviation 3."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return scale * torch.randn(shape, generator=generator)

        head = 3 / math.sqrt(width)
        return cls(
            normal(tokens, width).requires_grad_(),
            normal(vocabulary, width, scale=head).requires_grad_(),
            [(normal(tokens, width), normal(vocabulary, width, scale=head)) for _ in range(teachers)],
        )


Side = Callable[[Inputs, str], Tensor]
"""The loss, to call ``backward`` on, of a name in ``LOSSES``."""


def ours(inputs: Inputs, loss: str) -> Tensor:
    """The library's, by chunks."""
    return of_library(inputs, loss, "chunked")


def dense(inputs: Inputs, loss: str) -> Tensor:
    """The library's, whole."""
    return of_library(inputs, loss, "dense")


def of_library(inputs: Inputs, loss: str, method: Literal["chunked", "dense"]) -> Tensor:
    tokens, vocabulary = len(inputs.hidden), len(inputs.weight)
    rows = TokenTable(
        terms=[Term(loss, loss, teacher=COMBINED)],
        mixing=TeacherMixture(Combination(), tuple(map(str, range(len(inputs.teachers))))),
        labels=torch.zeros(tokens, dtype=torch.int64),
        masks=[torch.ones(tokens, dtype=torch.bool)],
        teachers={
            f"{i}": Dense(hidden, Head(weight, None), vocabulary)
            for i, (hidden, weight) in enumerate(inputs.teachers)
        },
        outcomes=vocabulary,
    )
    head = Head(inputs.weight, None)
    return projected_losses(rows, inputs.hidden, head, [1 / tokens], method=method)[0]


def plain(inputs: Inputs, loss: str) -> Tensor:
    """Whole logits, several teachers stacked."""
    with torch.no_grad():
        teacher_NV = teacher_logits(inputs, slice(None))
    return plain_sum(inputs.hidden @ inputs.weight.T, teacher_NV, loss) / len(inputs.hidden)


def checkpointed(inputs: Inputs, loss: str) -> Tensor:
    """Logits of a chunk at a time, computed again in the backward pass."""

    def chunk_sum(hidden_nD: Tensor, weight_VD: Tensor, chunk: slice) -> Tensor:
        with torch.no_grad():
            teacher_nV = teacher_logits(inputs, chunk)
        return plain_sum(hidden_nD @ weight_VD.T, teacher_nV, loss)

    total = torch.zeros(())
    for start in range(0, len(inputs.hidden), CHECKPOINTED_TOKENS):
        chunk = slice(start, start + CHECKPOINTED_TOKENS)
        total = total + checkpoint(chunk_sum, inputs.hidden[chunk], inputs.weight, chunk, use_reentrant=False)
    return total / len(inputs.hidden)


def trl(inputs: Inputs, loss: str) -> Tensor:
    """TRL's loss on whole logits."""
    with torch.no_grad():
        teacher_NV = teacher_logits(inputs, slice(None))
    student_NV = inputs.hidden @ inputs.weight.T
    labels = torch.zeros(1, len(student_NV), dtype=torch.int64)
    jsd = GKDTrainer.generalized_jsd_loss
    return jsd(student_NV[None], teacher_NV[None], labels=labels, beta=BETAS[loss])


def torchdistill(inputs: Inputs, loss: str) -> Tensor:
    """What torchdistill's ``KDLoss`` does with the two models' logits (its base class on their softmax)."""
    with torch.no_grad():
        teacher_NV = teacher_logits(inputs, slice(None))
    criterion = KDLoss("student", "logits", "teacher", "logits", temperature=1.0, alpha=0.0)
    student = {"student": {"logits": inputs.hidden @ inputs.weight.T}}
    return criterion(student, {"teacher": {"logits": teacher_NV}})


def teacher_logits(inputs: Inputs, chunk: slice) -> Tensor:
    """Of one teacher; of several, the logarithm of the mean of their probabilities."""
    logits = [hidden[chunk] @ weight.T for hidden, weight in inputs.teachers]
    if len(logits) == 1:
        return logits[0]
    return torch.stack(logits).log_softmax(-1).logsumexp(0) - math.log(len(logits))


def plain_sum(student_nV: Tensor, teacher_nV: Tensor, loss: str) -> Tensor:
    """The loss's formula, summed over the tokens."""
    q_log, p_log = functional.log_softmax(student_nV, -1), functional.log_softmax(teacher_nV, -1)
    if loss == "forward_kl":
        return (p_log.exp() * (p_log - q_log)).sum()
    if loss == "reverse_kl":
        return (q_log.exp() * (q_log - p_log)).sum()
    m_log = torch.logaddexp(p_log, q_log) - math.log(2)
    return ((p_log.exp() * (p_log - m_log)).sum() + (q_log.exp() * (q_log - m_log)).sum()) / 2


def run(side: Side, inputs: Inputs, loss: str) -> None:
    inputs.hidden.grad = inputs.weight.grad = None
    side(inputs, loss).backward()


def peak_of(side: Side, inputs: Inputs, loss: str) -> int:
    """The most that PyTorch's allocator holds beyond what it held at the start."""
    inputs.hidden.grad = inputs.weight.grad = None
    return peak_bytes(lambda: run(side, inputs, loss))


def seconds(side: Side, inputs: Inputs, loss: str) -> float:
    begin = time.process_time()
    run(side, inputs, loss)
    return time.process_time() - begin


def gradients(side: Side, inputs: Inputs, loss: str) -> Tensor:
    run(side, inputs, loss)
    assert inputs.hidden.grad is not None and inputs.weight.grad is not None
    return torch.cat([inputs.hidden.grad.flatten(), inputs.weight.grad.flatten()])


def compare(loss: str, sides: dict[str, Side], inputs: Inputs, repeats: int) -> None:
    """A line for each side: that it computes the same, its memory and its time beside ours."""
    vocabulary = len(inputs.weight)
    exact = gradients(ours, inputs, loss)
    own_peak = peak_of(ours, inputs, loss)
    taken: dict[str, list[float]] = {name: [] for name in ("ours", *sides)}
    for _ in range(repeats):
        for name, side in {"ours": ours, **sides}.items():
            taken[name].append(seconds(side, inputs, loss))
    print(f"{loss}: ours {own_peak / 2**20:.0f} MiB, {statistics.median(taken['ours']):.2f} s")
    for name, side in sides.items():
        apart = float((gradients(side, inputs, loss) - exact).norm() / exact.norm())
        peak = peak_of(side, inputs, loss)
        ratios = [own / other for own, other in zip(taken["ours"], taken[name], strict=True)]
        memory, duration = own_peak / peak, statistics.median(ratios)
        memory_target = MEMORY_TARGETS.get((loss, name, vocabulary))
        print(
            f"  / {name:12s} memory {memory:.3f}{against(memory, memory_target)}   "
            f"time {duration:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            f"{against(duration, TIME_TARGETS.get((loss, name)))}   gradients apart by {apart:.0e}"
        )


def against(found: float, target: float | None) -> str:
    return "" if target is None else f" ({'met' if found <= target else 'MISSED'}: {target:.2f})"


def compare_teachers(numbers: list[int], options: argparse.Namespace) -> None:
    """Peak memory as teachers are added, and beside stacking their logits."""
    for number in numbers:
        inputs = Inputs.random(
            tokens=options.tokens, width=options.width, vocabulary=options.vocabulary, teachers=number
        )
        own, stacked = (peak_of(side, inputs, "forward_kl") for side in (ours, plain))
        ratio = own / stacked
        print(f"{number} teachers: {own / 2**20:.0f} MiB, / stacking {ratio:.3f}{against(ratio, 0.25)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", type=int, default=50257, help="outcomes (50257)")
    parser.add_argument("--tokens", type=int, default=1024, help="positions that count (1024)")
    parser.add_argument("--width", type=int, default=768, help="of the hidden states (768)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side (5)")
    parser.add_argument("--losses", nargs="+", choices=list(BETAS), default=list(BETAS))
    parser.add_argument("--teachers", type=int, default=4, help="at most; memory only (4)")
    parser.add_argument("--threads", type=int, help="of PyTorch (its default)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    inputs = Inputs.random(
        tokens=options.tokens, width=options.width, vocabulary=options.vocabulary, teachers=1
    )
    print(
        f"{options.tokens} tokens, width {options.width}, vocabulary {options.vocabulary}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; ours / other"
    )
    for loss in options.losses:
        sides: dict[str, Side] = {"dense": dense, "plain": plain, "checkpoint": checkpointed}
        if GKDTrainer is not None:
            sides["trl"] = trl
        if KDLoss is not None and loss == "forward_kl":
            sides["torchdistill"] = torchdistill
        compare(loss, sides, inputs, options.repeats)
    del inputs
    compare_teachers([*range(1, options.teachers + 1)], options)


if __name__ == "__main__":
    main()
