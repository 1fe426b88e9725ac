"""A student, its teacher and a batch, and the same intervention step by ours and by six whole runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
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

from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.distillation.hidden_terms import Projections, TermProjections
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.interventions import Plan, SourceInputs
from stlm_kd.interventions.plan import OtherStates, OwnStates
from stlm_kd.interventions.spec import Intervention
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.teachers.live import LiveTeacher

TEMPERATURE = 2.0
LENGTHS = (128, 120, 110, 98)
LAST = (("last", "last"),)


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

    def terms(self, intervention: Intervention | None) -> list[Term]:
        """Labels, KL and cosine of the base, and KL after an intervention if there is one."""
        softened, common = {"temperature": TEMPERATURE}, {"on": "attended", "teacher": "t"}
        terms = [
            Term("labels", "labels"),
            Term("kl", "forward_kl", **common, options=softened),
            Term("cos", "cosine", **common, pairs=LAST),
        ]
        if intervention is not None:
            terms.append(Term("diito", "forward_kl", **common, options=softened, intervention=intervention))
        return terms

    def step(self, terms: Sequence[Term]) -> DistillationStep:
        """Ours."""
        width = self.teacher.config.hidden_size
        return DistillationStep(
            self.student,
            terms,
            teachers={"t": LiveTeacher(self.teacher, self.outcomes, name="t")},
            projections=Projections({"cos": TermProjections(LAST, width, width, term="cos", seed=0)}),
            supplies=SourceInputs(0, Others(self)),
        ).train()

    def turn(self, step: DistillationStep) -> float:
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
