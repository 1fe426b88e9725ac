"""A step of interchange intervention training, against its plain structure of six whole runs.

Both sides take the same step on the same batch, places and models: labels, KL and cosine of the base, KL
after an exchange of 30 % neighbouring positions. The plain side runs teacher and student three times each
(base, source, base with hooks that overwrite), with the head at every position. FLOPs are counted, and
averaged over the layers that an alignment may draw and, in causal models, where they depend on the places,
over ``--draws`` steps; memory and times are of ``middle``, times in turns. Losses and gradients are compared
before anything is counted.

    python benchmarks/diito_step.py bert --threads 1
    python benchmarks/diito_step.py causal --threads 1
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from clm_step import flops_of, peak_bytes, seconds
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from stlm_kd.alignment import aligned
from stlm_kd.architectures import ARCHITECTURES
from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.features import Projections, TermProjections
from stlm_kd.interventions import Plan, Supplies
from stlm_kd.interventions.plan import OtherStates, OwnStates
from stlm_kd.step import StepModule
from stlm_kd.teachers import LiveTeacher
from stlm_kd.terms import Intervention, Term

TARGETS = {
    ("bert", "batch"): {"middle": 0.555, "late": 0.51, "full": 0.58},
    ("bert", "independent"): {"middle": 0.74, "late": 0.73, "full": 0.755},
    ("causal", "batch"): {"middle": 0.54, "late": 0.51, "full": 0.55},
}
"""Most FLOPs, of those of the plain structure."""

DISTILLATION_TARGETS = {"bert": 1.6, "causal": 1.66}
"""Most FLOPs of a step whose layer is in the middle, of those of the same step without interventions."""

TEMPERATURE = 2.0
LENGTHS = (128, 120, 110, 98)
LAST = (("last", "last"),)


def main() -> None:
    options = arguments()
    draws = options.draws if options.pair == "causal" else 1
    if options.threads:
        torch.set_num_threads(options.threads)
    pair = Pair.made(options.pair, options.width)
    for pairing in ("batch", "independent"):
        compare(pair, pairing)
    plain = pair.plain_flops()
    print(f"plain structure: {plain / 1e9:.0f} GFLOP a step")
    for pairing in ("batch", "independent"):
        for alignment in ("middle", "late", "full"):
            show_flops(pair, alignment, pairing, plain, draws)
    show_distillation(pair, draws)
    show_mixup(pair, draws)
    show_memory(pair)
    if options.turns:
        show_times(pair, options.turns)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", choices=["bert", "causal"], help="12 layers into 6")
    parser.add_argument("--width", type=int, default=768, help="of the hidden states (768)")
    parser.add_argument("--draws", type=int, default=12, help="steps that are counted (12)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side, to take times (5)")
    parser.add_argument("--threads", type=int, help="of PyTorch (its default)")
    return parser.parse_args()


@dataclass(frozen=True, slots=True)
class Pair:
    """Teacher, student and a batch."""

    name: str
    teacher: PreTrainedModel
    student: PreTrainedModel
    batch: Batch
    outcomes: int

    @classmethod
    def made(cls, name: str, width: int) -> Pair:
        """Of 12 and 6 layers, with random weights."""
        outcomes = 30_522 if name == "bert" else 50_257
        models = []
        for layers in (12, 6):
            torch.manual_seed(layers)
            config = configuration(name, outcomes, width, layers)
            kind = AutoModelForMaskedLM if name == "bert" else AutoModelForCausalLM
            models.append(kind.from_config(config, attn_implementation="sdpa"))
        teacher, student = models
        return cls(name, teacher.eval().requires_grad_(False), student, batch_of(name, outcomes), outcomes)

    def step(self, intervention: Intervention | None) -> StepModule:
        """Ours."""
        softened, common = {"temperature": TEMPERATURE}, {"on": "attended", "teacher": "t"}
        width = self.teacher.config.hidden_size
        terms = [
            Term("labels", "labels"),
            Term("kl", "forward_kl", **common, options=softened),
            Term("cos", "cosine", **common, pairs=LAST),
        ]
        if intervention is not None:
            terms.append(Term("diito", "forward_kl", **common, options=softened, intervention=intervention))
        return StepModule(
            self.student,
            terms,
            teachers={"t": LiveTeacher(self.teacher, self.outcomes, name="t")},
            projections=Projections({"cos": TermProjections(LAST, width, width, term="cos", seed=0)}),
            supplies=Supplies(0, Others(self)),
        ).train()

    def turn(self, step: StepModule) -> float:
        """Ours, forward and backward; the loss."""
        self.student.zero_grad(set_to_none=True)
        counts = {name: float(count) for name, count in step.count(self.batch).items()}
        loss = step(self.batch, counts).loss
        loss.backward()
        return loss.item()

    def plain_turn(self, plan: Plan) -> float:
        """The six runs, forward and backward; the loss."""
        self.student.zero_grad(set_to_none=True)
        with torch.no_grad():
            teacher, teacher_after = six_half(self.teacher, self.batch, plan, plan.teacher_layers["t"])
        student, student_after = six_half(self.student, self.batch, plan, (plan.student_layer,))
        mask_BT = self.batch.attention_mask
        labels = functional.cross_entropy(
            student.logits.flatten(0, 1), self.batch.labels.flatten(), ignore_index=IGNORED
        )
        cosine = 1 - functional.cosine_similarity(student.last[mask_BT], teacher.last[mask_BT], dim=-1)
        loss = labels + cosine.mean()
        loss = loss + kl(student.logits, teacher.logits, mask_BT)
        loss = loss + kl(student_after.logits, teacher_after.logits, mask_BT)
        loss.backward()
        return float(loss.item())

    def plain_flops(self) -> int:
        """Of the six runs, forward and backward; the same for all layers and places."""
        step = self.step(Intervention("diito", {"t": {3: (6,)}}))
        return flops_of(partial(self.plain_turn, step.drawn(self.batch)["diito"]))


class Others:
    """Rows of their own for sources that are not in the batch."""

    def __init__(self, pair: Pair) -> None:
        self.rows = batch_of(pair.name, pair.outcomes, seed=1)

    def __len__(self) -> int:
        return len(LENGTHS)

    def number(self, place: int) -> int:
        """Of no row of the batch."""
        return 100 + place

    def batch(self, places: Sequence[int], generators: Sequence[np.random.Generator]) -> Batch:
        """Always the same rows."""
        return replace(self.rows, example_ids=torch.tensor(places) + 100)


def configuration(name: str, outcomes: int, width: int, layers: int) -> PretrainedConfig:
    heads = width // 64
    if name == "bert":
        return BertConfig(
            vocab_size=outcomes, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=4 * width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
    return Qwen2Config(
        vocab_size=outcomes, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, intermediate_size=8 * width // 3, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


def batch_of(name: str, outcomes: int, *, seed: int = 0) -> Batch:
    """Four rows of one document each, 89 % of the positions attended."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(5, outcomes, (len(LENGTHS), max(LENGTHS)), generator=generator)
    places_T = torch.arange(max(LENGTHS))
    mask_BT = places_T < torch.tensor(LENGTHS)[:, None]
    if name == "bert":
        labelled_BT = mask_BT & (torch.rand(ids_BT.shape, generator=generator) < 0.15)
        labels_BT = ids_BT.masked_fill(~labelled_BT, IGNORED)
    else:
        labels_BT = functional.pad(ids_BT[:, 1:], (0, 1), value=IGNORED)
        labels_BT = labels_BT.masked_fill(~functional.pad(mask_BT[:, 1:], (0, 1)), IGNORED)
    rows_B = torch.arange(len(LENGTHS))
    return Batch(ids_BT, mask_BT, labels_BT, mask_BT.long(), places_T * mask_BT, rows_B)


@dataclass(frozen=True, slots=True)
class Run:
    """One whole run of a model."""

    logits: Tensor
    last: Tensor
    states: Mapping[int, Tensor]


def six_half(model: PreTrainedModel, batch: Batch, plan: Plan, layers: tuple[int, ...]) -> tuple[Run, Run]:
    """A model's runs on the base, on the source, and on the base with states of the source."""
    assert isinstance(plan.source, (OwnStates, OtherStates))
    other = plan.source.batch if isinstance(plan.source, OtherStates) else batch
    base, source = whole(model, batch, {}), whole(model, other, {})
    there, here = plan.source.places, plan.base

    def change(layer: int) -> Callable[[Tensor], Tensor]:
        values_PD = source.states[layer][there.rows, there.positions]
        return lambda state_BTD: state_BTD.index_put((here.rows, here.positions), values_PD)

    return base, whole(model, batch, {layer: change(layer) for layer in layers})


def whole(model: PreTrainedModel, batch: Batch, changes: Mapping[int, Callable[[Tensor], Tensor]]) -> Run:
    """A run with padding masked, as transformers does it."""
    states: dict[int, Tensor] = {}
    last: list[Tensor] = []

    def keep(layer: int, _block: nn.Module, _given: object, state_BTD: Tensor) -> Tensor:
        states[layer] = changes[layer](state_BTD) if layer in changes else state_BTD
        return states[layer]

    blocks = model.base_model.get_submodule(ARCHITECTURES[model.config.model_type].blocks)
    hooks = [block.register_forward_hook(partial(keep, layer)) for layer, block in enumerate(blocks)]
    hooks.append(
        model.base_model.register_forward_hook(lambda _m, _g, said: last.append(said["last_hidden_state"]))
    )
    cache = {} if model.config.model_type == "bert" else {"use_cache": False}
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), **cache).logits
    for hook in hooks:
        hook.remove()
    return Run(logits, last[0], states)


def kl(student_BTV: Tensor, teacher_BTV: Tensor, mask_BT: Tensor) -> Tensor:
    student = functional.log_softmax(student_BTV[mask_BT] / TEMPERATURE, -1)
    teacher = functional.softmax(teacher_BTV[mask_BT] / TEMPERATURE, -1)
    return functional.kl_div(student, teacher, reduction="batchmean") * TEMPERATURE**2


def layers_of(alignment: str) -> list[dict[int, tuple[int, ...]]]:
    """Each of the layers that an alignment may draw, for itself."""
    return [{layer: theirs} for layer, theirs in aligned(alignment, 6, 12).items()]


def steps_of(pair: Pair, alignment: str, pairing: str, draws: int) -> list[StepModule]:
    """Ours: so many in all, and at least one for each layer."""
    layers, found = layers_of(alignment), []
    for index in range(max(draws, len(layers))):
        intervention = Intervention("diito", {"t": layers[index % len(layers)]}, options={"pairing": pairing})
        step = pair.step(intervention)
        step.begin(index, 1000)
        found.append(step)
    return found


def compare(pair: Pair, pairing: str) -> None:
    """Stop unless both sides have the same loss and gradient."""
    step = steps_of(pair, "middle", pairing, 1)[0]
    losses, slopes = [], []
    for run in (partial(pair.turn, step), partial(pair.plain_turn, step.drawn(pair.batch)["diito"])):
        losses.append(run())
        slopes.append(torch.cat([p.grad.flatten() for p in pair.student.parameters() if p.grad is not None]))
    apart = float((slopes[0] - slopes[1]).norm() / slopes[1].norm())
    print(f"{pairing}: loss {losses[0]:.6f}, plain {losses[1]:.6f}; gradients apart by {apart:.1e}")
    if abs(losses[0] - losses[1]) > 1e-5 * losses[1] or apart > 1e-4:
        raise SystemExit("the two sides do not compute the same loss")


def mean_flops(pair: Pair, steps: Sequence[StepModule]) -> float:
    return statistics.mean(flops_of(partial(pair.turn, step)) for step in steps)


def show_flops(pair: Pair, alignment: str, pairing: str, plain: int, draws: int) -> None:
    steps = steps_of(pair, alignment, pairing, draws)
    found = mean_flops(pair, steps) / plain
    target = TARGETS.get((pair.name, pairing), {}).get(alignment)
    wanted = f" (at most {target})" if target is not None else ""
    touched = statistics.mean(float(s.drawn(pair.batch)["diito"].touched.float().mean()) for s in steps)
    print(
        f"FLOPs, {alignment:6}, source {pairing:11}: {found:.3f} of the plain structure{wanted}; "
        f"{touched:.0%} of the positions touched in {len(steps)} steps"
    )


def show_distillation(pair: Pair, draws: int) -> None:
    ours = mean_flops(pair, steps_of(pair, "middle", "batch", draws))
    without = mean_flops(pair, [pair.step(None)])
    target = DISTILLATION_TARGETS[pair.name]
    print(f"FLOPs, middle, of a step without interventions: {ours / without:.3f} (at most {target})")


def show_mixup(pair: Pair, draws: int) -> None:
    """Mixup beside a source of another example, of the batch and of its own."""
    steps = {pairing: steps_of(pair, "middle", pairing, draws) for pairing in ("batch", "independent")}
    (layers,) = layers_of("middle")
    mixup = pair.step(Intervention("diito", {"t": layers}, source="mixup"))
    flops = mean_flops(pair, [mixup])
    memory = peak(pair, partial(pair.turn, mixup))
    for pairing, others in steps.items():
        theirs = peak(pair, partial(pair.turn, others[0]))
        print(
            f"mixup, of other-example ({pairing}): FLOPs {flops / mean_flops(pair, others):.3f}, "
            f"peak memory {memory / theirs:.3f}"
        )


def peak(pair: Pair, run: Callable[[], float]) -> int:
    """The most memory beyond the weights, gradients included."""
    pair.student.zero_grad(set_to_none=True)
    return peak_bytes(run)


def show_memory(pair: Pair) -> None:
    step = steps_of(pair, "middle", "batch", 1)[0]
    ours = peak(pair, partial(pair.turn, step))
    plain = peak(pair, partial(pair.plain_turn, step.drawn(pair.batch)["diito"]))
    print(
        f"peak memory beyond weights: ours {ours / 2**20:.0f} MiB, plain {plain / 2**20:.0f} MiB; "
        f"{ours / plain:.3f}"
    )


def show_times(pair: Pair, turns: int) -> None:
    step = steps_of(pair, "middle", "batch", 1)[0]
    plan = step.drawn(pair.batch)["diito"]
    sides = {
        "ours": partial(pair.turn, step),
        "plain": partial(pair.plain_turn, plan),
        "without": partial(pair.turn, pair.step(None)),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, run in sides.items():
            taken[name].append(seconds(run)[1])
    for other, words in (("plain", "the plain structure"), ("without", "a step without interventions")):
        ratios = sorted(own / its for own, its in zip(taken["ours"], taken[other], strict=True))
        print(
            f"processor time, middle, of {words}: {statistics.median(ratios):.3f}, median of {turns} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
