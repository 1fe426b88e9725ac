"""The reference values for interchange interventions: thirteen cases over three pairs of small models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedModel

from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.distillation.hidden_terms import Projections, TermProjections
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.interventions.plan import OtherStates, Plan, Positions, Source, Tokens
from stlm_kd.interventions.spec import Intervention
from stlm_kd.teachers.live import LiveTeacher
from tests.support.paths import GOLDEN_FOLDER

FOLDER = GOLDEN_FOLDER / "diito"
KEPT = {"logits": 200, "last_hidden": 60, "grad": 24}
"""How many numbers of a tensor were kept, by a part of its name."""


@cache
def contents() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
    return found


@cache
def _tensors() -> dict[str, Tensor]:
    return load_file(FOLDER / "cases.safetensors")


def case_names() -> list[str]:
    return [case["id"] for case in contents()["cases"]]


def sampled(tensor: Tensor, name: str) -> Tensor:
    """The numbers that were kept of a tensor of this name."""
    count = next(count for part, count in KEPT.items() if part in name)
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // count)][:count]


@dataclass(frozen=True)
class Case:
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def named(cls, name: str) -> Case:
        (facts,) = (case for case in contents()["cases"] if case["id"] == name)
        key = f"{name[:3]}."
        own = {k.removeprefix(key): t for k, t in _tensors().items() if k.startswith(key)}
        return cls(facts, own)

    @property
    def mask_bt(self) -> Tensor:
        return torch.arange(self.tensors["base_input_ids"].shape[1]) < self.tensors["base_lengths"][:, None]

    def base(self) -> Batch:
        return self._batch("base", self.tensors["lm_labels"].long())

    def plan(self) -> Plan:
        """The case's own layers and positions."""
        base, source = (
            Positions(*self.tensors[f"{side}_interchange_mask"].nonzero(as_tuple=True))
            for side in ("base", "source")
        )
        other = self._batch("source", torch.full_like(self.base().labels, IGNORED))
        states: Source = OtherStates(other, source)
        if self.facts["source_site"] == "input_ids":
            states = Tokens(other.input_ids[source.rows, source.positions])
        return Plan(
            student_layer=self.facts["student_layer"],
            teacher_layers={"t": tuple(self.facts["teacher_layers"])},
            source_site="block-input" if self.facts["source_site"] == "block_input" else "block-output",
            base=base,
            source=states,
            touched=torch.ones_like(self.mask_bt),
        )

    def _batch(self, side: str, labels_BT: Tensor) -> Batch:
        ids_BT = self.tensors[f"{side}_input_ids"].long()
        places_T = torch.arange(ids_BT.shape[1])
        mask_BT = places_T < self.tensors[f"{side}_lengths"][:, None]
        return Batch(
            ids_BT, mask_BT, labels_BT, mask_BT.long(), places_T.expand_as(ids_BT), torch.arange(len(ids_BT))
        )

    def model(self, side: str, *, attention: str, dtype: torch.dtype) -> PreTrainedModel:
        known = contents()["models"][self.facts["model"]][side]
        settings = dict(known["config"])
        config = CONFIG_MAPPING[settings.pop("model_type")](**settings)
        kind = getattr(transformers, known["hf_class"])
        model: PreTrainedModel = kind._from_config(config, attn_implementation=attention)
        missing = model.load_state_dict(load_file(FOLDER / known["file"]), strict=False)
        assert not missing.unexpected_keys
        model.tie_weights()
        return model.to(dtype)

    def terms(self, weights: Mapping[str, float]) -> list[Term]:
        """All losses of the reference, by its names for their weights."""
        intervention = Intervention("diito", {"t": {self.facts["student_layer"]: (0,)}})
        softened = {"temperature": self.facts["temperature"]}
        last = (("last", "last"),)
        outcomes = contents()["models"][self.facts["model"]]["student"]["config"]["vocab_size"]
        common: dict[str, Any] = {"on": "attended", "teacher": "t"}
        terms = [
            Term("mlm", "labels"),
            Term("ce", "forward_kl", **common, options=softened),
            Term("mse", "logit_mse", **common),
            Term("cos", "cosine", **common, pairs=last),
            Term("causal_ce", "forward_kl", **common, options=softened, intervention=intervention),
            Term("causal_cos", "cosine", **common, pairs=last, intervention=intervention),
        ]
        factors = {"mse": outcomes}
        return [
            Term(
                t.name, t.loss, weights.get(f"alpha_{t.name}", 0.0) * factors.get(t.name, 1), t.on, t.teacher,
                t.options, t.pairs, t.intervention,
            )
            for t in terms
        ]  # fmt: skip

    def step(
        self, weights: Mapping[str, float], *, attention: str = "sdpa", dtype: torch.dtype = torch.float64
    ) -> DistillationStep:
        teacher = self.model("teacher", attention=attention, dtype=dtype)
        student = self.model("student", attention=attention, dtype=dtype)
        settings = contents()["models"][self.facts["model"]]["teacher"]["config"]
        width, last = settings["hidden_size"], (("last", "last"),)
        none = {
            name: TermProjections(last, width, width, term=name, seed=0) for name in ("cos", "causal_cos")
        }
        return DistillationStep(
            student,
            self.terms(weights),
            teachers={"t": LiveTeacher(teacher, settings["vocab_size"], name="t")},
            projections=Projections(none),
        ).train()
