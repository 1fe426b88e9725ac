"""A step of interchange intervention training, against its plain structure of six whole runs.

Both sides take the same step on the same batch, places and models: labels, KL and cosine of the base, KL
after an exchange of 30 % neighbouring positions. The plain side runs teacher and student three times each
(base, source, base with hooks that overwrite), with the head at every position. FLOPs are counted, and
averaged over the layers that an alignment may draw; memory and times are of ``middle``, times in turns.
Losses and gradients are compared before anything is counted. It ends with 1 where FLOPs or memory, which
hardly depend on the machine, miss their bounds; times have none.

    python benchmarks/training/diito_step.py bert --threads 1
    python benchmarks/training/diito_step.py causal --threads 1
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from allocator import peak_bytes
from clm_step import flops_of, seconds
from diito_pair import Pair

from stlm_kd.distillation.step import DistillationStep
from stlm_kd.interventions.spec import Intervention
from stlm_kd.models.layer_alignment import aligned

FLOPS_TARGETS = {
    ("bert", "batch"): {"middle": 0.555, "late": 0.51, "full": 0.58},
    ("bert", "independent"): {"middle": 0.74, "late": 0.73, "full": 0.755},
    ("causal", "batch"): {"middle": 0.545, "late": 0.51, "full": 0.555},
}
"""Most FLOPs, of those of the plain structure."""

DISTILLATION_TARGETS = {"bert": 1.6, "causal": 1.66}
"""Most FLOPs of a step whose layer is in the middle, of those of the same step without interventions."""

PAIRINGS = ("batch", "independent")
"""Sources of the batch itself, and of other rows."""

MEMORY_TARGETS = {"bert": 0.4, "causal": 0.4}
"""Most memory beyond the weights, of the plain structure's."""


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    pair = Pair.made(options.pair, options.width)
    gates = Gates()
    sides = {name: steps_of(pair, "middle", pairing=name) for name in PAIRINGS}
    for name, steps in sides.items():
        compare(pair, name, steps[0])
    counted = show_flops(pair, gates)
    show_idle(pair, gates, counted["batch"])
    sides["mixup"] = steps_of(pair, "middle", source="mixup")
    show_mixup(pair, sides, counted)
    show_memory(pair, gates, sides["batch"][0])
    if options.turns:
        show_times(pair, {name: steps[0] for name, steps in sides.items()}, options.turns)
    gates.close()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", choices=["bert", "causal"], help="12 layers into 6")
    parser.add_argument("--width", type=int, default=768, help="of the hidden states (768)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side, to take times (5)")
    parser.add_argument("--threads", type=int, help="of PyTorch (its default)")
    return parser.parse_args()


@dataclass(frozen=True, slots=True)
class Gates:
    """Bounds, and which of them were missed."""

    missed: list[str] = field(default_factory=list)

    def told(self, what: str, found: float, most: float | None) -> str:
        """A measurement beside its bound, if it has one."""
        if most is None:
            return f"{what}: {found:.3f}"
        if found > most:
            self.missed.append(f"{what}: {found:.4f}, at most {most}")
        return f"{what}: {found:.3f} (at most {most})"

    def close(self) -> None:
        """Stop with what was missed."""
        if self.missed:
            raise SystemExit("missed:\n  " + "\n  ".join(self.missed))


def layers_of(alignment: str) -> list[dict[int, tuple[int, ...]]]:
    """Each of the layers that an alignment may draw, for itself."""
    return [{layer: theirs} for layer, theirs in aligned(alignment, 6, 12).items()]


def steps_of(
    pair: Pair, alignment: str, *, pairing: str | None = None, source: str = "other-example"
) -> list[DistillationStep]:
    """Ours, one for each layer that the alignment may draw."""
    options, found = {} if pairing is None else {"pairing": pairing}, []
    for index, layers in enumerate(layers_of(alignment)):
        step = pair.step(pair.terms(Intervention("diito", {"t": layers}, source=source, options=options)))
        step.begin(index, 1000)
        found.append(step)
    return found


def compare(pair: Pair, pairing: str, step: DistillationStep) -> None:
    """Stop unless both sides have the same loss and gradient."""
    losses, slopes = [], []
    for run in (partial(pair.turn, step), partial(pair.plain_turn, step.drawn(pair.batch)["diito"])):
        losses.append(run())
        slopes.append(torch.cat([p.grad.flatten() for p in pair.student.parameters() if p.grad is not None]))
    apart = float((slopes[0] - slopes[1]).norm() / slopes[1].norm())
    print(f"{pairing}: loss {losses[0]:.6f}, plain {losses[1]:.6f}; gradients apart by {apart:.1e}")
    if abs(losses[0] - losses[1]) > 1e-5 * losses[1] or apart > 1e-4:
        raise SystemExit("the two sides do not compute the same loss")


def mean_flops(pair: Pair, steps: Sequence[DistillationStep]) -> float:
    return statistics.mean(flops_of(partial(pair.turn, step)) for step in steps)


def show_flops(pair: Pair, gates: Gates) -> dict[str, float]:
    """Of each alignment and pairing, over those of the six runs, which are the same for all of them.

    Returns:
        By pairing, those of a step whose layer is in the middle.
    """
    (any_step,) = steps_of(pair, "middle", pairing="batch")
    plain = flops_of(partial(pair.plain_turn, any_step.drawn(pair.batch)["diito"]))
    print(f"plain structure: {plain / 1e9:.0f} GFLOP a step")
    middle = {}
    for pairing in PAIRINGS:
        targets: Mapping[str, float] = FLOPS_TARGETS.get((pair.name, pairing), {})
        for alignment in ("full", "late", "middle"):
            middle[pairing] = mean_flops(pair, steps_of(pair, alignment, pairing=pairing))
            what = f"FLOPs of the plain structure, {alignment}, source {pairing}"
            print(gates.told(what, middle[pairing] / plain, targets.get(alignment)))
    return middle


def show_idle(pair: Pair, gates: Gates, with_intervention: float) -> None:
    """What an intervention adds to a distillation step; and that objectives of weight 0 add nothing."""
    (layers,) = layers_of("middle")
    terms = pair.terms(Intervention("diito", {"t": layers}))
    for names in (("kl", "cos", "diito"), ("diito",)):
        left = mean_flops(pair, [pair.step([term for term in terms if term.name not in names])])
        idle = [replace(term, weight=0.0) if term.name in names else term for term in terms]
        ratio = mean_flops(pair, [pair.step(idle)]) / left
        print(gates.told(f"FLOPs with {', '.join(names)} of weight 0, of a step without", ratio, 1.0))
    what = "FLOPs, middle, source batch, of a step without interventions"
    print(gates.told(what, with_intervention / left, DISTILLATION_TARGETS[pair.name]))


def show_mixup(
    pair: Pair, sides: Mapping[str, Sequence[DistillationStep]], counted: Mapping[str, float]
) -> None:
    """Mixup beside a source of another example, of the batch and of its own."""
    own = mean_flops(pair, sides["mixup"])
    held = {name: peak(pair, partial(pair.turn, steps[0])) for name, steps in sides.items()}
    for name in PAIRINGS:
        print(
            f"mixup, of other-example ({name}): FLOPs {own / counted[name]:.3f}, "
            f"peak memory {held['mixup'] / held[name]:.3f}"
        )


def peak(pair: Pair, run: Callable[[], float]) -> int:
    """The most memory beyond the weights, gradients included."""
    pair.student.zero_grad(set_to_none=True)
    return peak_bytes(run)


def show_memory(pair: Pair, gates: Gates, step: DistillationStep) -> None:
    ours = peak(pair, partial(pair.turn, step))
    plain = peak(pair, partial(pair.plain_turn, step.drawn(pair.batch)["diito"]))
    print(f"peak memory beyond weights: ours {ours / 2**20:.0f} MiB, plain {plain / 2**20:.0f} MiB")
    print(gates.told("peak memory of the plain structure", ours / plain, MEMORY_TARGETS[pair.name]))


def show_times(pair: Pair, steps: Mapping[str, DistillationStep], turns: int) -> None:
    """Processor time of one side over another's, each turn for itself."""
    sides: dict[str, Callable[[], object]] = {name: partial(pair.turn, step) for name, step in steps.items()}
    sides["plain"] = partial(pair.plain_turn, steps["batch"].drawn(pair.batch)["diito"])
    sides["no intervention"] = partial(pair.turn, pair.step(pair.terms(None)))
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, run in sides.items():
            taken[name].append(seconds(run)[1])
    for own, other in (
        ("batch", "plain"),
        ("independent", "plain"),
        ("mixup", "plain"),
        ("batch", "no intervention"),
        ("mixup", "batch"),
        ("mixup", "independent"),
    ):
        ratios = sorted(one / another for one, another in zip(taken[own], taken[other], strict=True))
        print(
            f"processor time, middle, {own} of {other}: {statistics.median(ratios):.3f}, "
            f"median of {turns} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
