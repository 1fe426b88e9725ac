"""Objectives and batches from plain mappings, for those who write their own training loop.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import Parameter
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.labelled.batches import AnyBatch, ExampleBatch
from stlm_kd.distillation.hidden_terms import Projected, Projections, TermProjections
from stlm_kd.distillation.terms import Term
from stlm_kd.errors import ModelError, RecipeError, RecipeFault, did_you_mean
from stlm_kd.losses import LABELS, LOSSES, MAP_LOSSES, STATE_LOSSES, Loss
from stlm_kd.models.capabilities import check_forward, require_paths
from stlm_kd.models.forward import head_of, task_of, vocabulary_head
from stlm_kd.models.layer_alignment import layer_pairs, site_pairs
from stlm_kd.registry import Registry
from stlm_kd.schedules import Ramp, Steps
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.protocol import Teacher

Entry = Term | Mapping[str, Any]
"""A term, or a mapping as in a recipe: ``{"loss": "forward_kl", "weight": 0.5, "temperature": 2.0}``."""

NotNegative = Annotated[float, Ge(0)]

_FEW = 32
"""Positions of the rows by which a model's forward is checked."""


def objective_terms(
    objective: Sequence[Entry], student: PreTrainedModel, teachers: Mapping[str, Teacher], *, seed: int
) -> tuple[list[Term], Projections]:
    """The terms of an objective, and the projections of its losses on hidden states.

    If there is a mapping, the student and the teachers are checked as for a recipe.

    Raises:
        RecipeError: Unknown keys, losses, options or teachers, and values out of bounds: all of them.
        ModelError: A model's logits are not those of its head, or its layers cannot be read or aligned.
    """
    if all(isinstance(entry, Term) for entry in objective):
        return [entry for entry in objective if isinstance(entry, Term)], Projections()
    parsed = [entry if isinstance(entry, Term) else _parsed(entry, teachers) for entry in objective]
    faults = [
        RecipeFault(f"objective[{index}]{place}", message)
        for index, found in enumerate(parsed)
        for place, message in (found if isinstance(found, list) else ())
    ]
    if faults:
        raise RecipeError("objective", faults)
    models = _live(teachers)
    for name, teacher in teachers.items():
        _check_vocabulary(name, teacher, student)
    terms: list[Term] = []
    projections: dict[str, TermProjections] = {}
    for entry, made in zip(objective, parsed, strict=True):
        if isinstance(entry, Term):
            terms.append(entry)
            continue
        table = _table(entry["loss"])
        assert table is not None
        term = _term(made, _teacher_of(entry, table, teachers), student, models)
        while term.name in {other.name for other in terms}:
            term = replace(term, name=f"{term.name}'")
        terms.append(term)
        if table is STATE_LOSSES:
            assert term.teacher is not None
            widths = (_width(student.config), _width(models[term.teacher].config))
            how = entry.get("projection", "auto")
            projections[term.name] = TermProjections(term.pairs, *widths, how=how, term=term.name, seed=seed)
    models = {"the student": student, **models}
    for name, model in models.items():
        if vocabulary_head(model) is not None:
            check_forward(model, context=_FEW, name=name)
        if used := {term.loss for term in terms if term.pairs and name in ("the student", term.teacher)}:
            require_paths(model, {"blocks", "maps"} if used & set(MAP_LOSSES) else {"blocks"}, name=name)
    return terms, Projections(projections)


def _check_vocabulary(name: str, teacher: Teacher, student: PreTrainedModel) -> None:
    own, other = vocabulary_head(student), None
    if isinstance(teacher, LiveTeacher) and vocabulary_head(teacher.model) is not None:
        other = teacher.vocabulary or head_of(teacher.model).size
    if own is not None and other is not None and other > own.size:
        raise ModelError(
            f"{name}: {other:,} tokens found; expected the student's {own.size:,}; adapt the teacher to the "
            "student's vocabulary, or give vocabulary= if further rows of its head are padding"
        )


def _live(teachers: Mapping[str, Teacher]) -> dict[str, PreTrainedModel]:
    """The models of the teachers that are not cached."""
    found = {name: getattr(teacher, "model", None) for name, teacher in teachers.items()}
    return {name: model for name, model in found.items() if isinstance(model, PreTrainedModel)}


def _table(loss: object) -> Registry[Loss] | None:
    return next((table for table in (LOSSES, STATE_LOSSES, MAP_LOSSES) if loss in table), None)


def _parsed(entry: Mapping[str, Any], teachers: Mapping[str, Teacher]) -> BaseModel | list[tuple[str, str]]:
    """A mapping with its defaults, or the place and message of each fault."""
    loss, table = str(entry.get("loss")), _table(entry.get("loss"))
    if table is None:
        known = [*LOSSES, *STATE_LOSSES, *MAP_LOSSES]
        return [(".loss", f"{loss} is not a loss without intervention{did_you_mean(loss, known)}")]
    fields: dict[str, Any] = {
        "loss": (str, ...),
        "weight": (NotNegative | Ramp | Steps, 1.0),
        "teacher": (str | None, None),
        "on": (Literal["labels", "attended"], "labels" if table is LOSSES else "attended"),
        **({} if table is LOSSES else {"sites": (Any, "last")}),
        **({"projection": (Projected, "auto")} if table is STATE_LOSSES else {}),
    }
    for option, (annotation, default) in table.options(loss).items():
        fields[option] = (annotation | Ramp | Steps, ... if default is Parameter.empty else default)
    model = create_model(loss, __config__=ConfigDict(extra="forbid"), **fields)
    try:
        made = model.model_validate(dict(entry))
    except ValidationError as error:
        found = {str(line["loc"][0]): line for line in reversed(error.errors())}
        return [
            (f".{key}", f"not a key of {loss}{did_you_mean(key, fields)}")
            if line["type"] == "extra_forbidden"
            else (f".{key}", f"{line['input']!r} found; {line['msg']}")
            for key, line in found.items()
        ]
    fault = _teacher_fault(entry, table, teachers)
    return made if fault is None else [fault]


def _teacher_fault(
    entry: Mapping[str, Any], table: Registry[Loss], teachers: Mapping[str, Teacher]
) -> tuple[str, str] | None:
    loss, name = entry["loss"], _teacher_of(entry, table, teachers)
    if loss == LABELS:
        return None
    if not teachers:
        return ".loss", f"{loss} needs a teacher; pass teachers={{name: LiveTeacher(…)}}"
    if name is None:
        return ".teacher", f"not given; expected one of {', '.join(teachers)}"
    if name not in (COMBINED, *teachers):
        return ".teacher", f"{name} is not a teacher{did_you_mean(name, teachers)}"
    if table is not LOSSES and name not in _live(teachers):
        return ".teacher", f"{name} is no LiveTeacher, which {loss} needs"
    return None


def _teacher_of(
    entry: Mapping[str, Any], table: Registry[Loss], teachers: Mapping[str, Teacher]
) -> str | None:
    """The teacher's name; for hidden states and attention maps there is no mixture."""
    if entry["loss"] == LABELS or "teacher" in entry:
        return entry.get("teacher")
    return COMBINED if table is LOSSES else next(iter(teachers)) if len(teachers) == 1 else None


def _term(
    made: Any, teacher: str | None, student: PreTrainedModel, models: Mapping[str, PreTrainedModel]
) -> Term:
    """The term of a parsed mapping; its name is its loss, and its teacher's if there is one."""
    table, pairs = _table(made.loss), ()
    assert table is not None
    if table is not LOSSES:
        choose: Callable[..., Any] = layer_pairs if table is MAP_LOSSES else site_pairs
        configs = (model.config.get_text_config() for model in (student, models[str(teacher)]))
        pairs = tuple(choose(made.sites, *(int(config.num_hidden_layers) for config in configs)))
    return Term(
        name=made.loss if teacher in (None, COMBINED) else f"{made.loss}@{teacher}",
        loss=made.loss,
        weight=made.weight,
        on=made.on,
        teacher=teacher,
        options={option: getattr(made, option) for option in table.options(made.loss)},
        pairs=pairs,
    )


def _width(config: PretrainedConfig) -> int:
    return int(config.get_text_config().hidden_size)


def batch_of(inputs: AnyBatch | Mapping[str, Tensor], student: PreTrainedModel) -> AnyBatch:
    """A batch from the output of a transformers tokenizer or collator; a batch is returned as it is.

    Args:
        inputs: ``input_ids`` (B, T), and optionally ``attention_mask`` (B, T), 0 on padding; ``labels``,
            ``IGNORED`` where there is none: (B, T) as for transformers' models, not shifted (default: the ids
            of a causal model's text), or (B,) for a classifier; and ``token_type_ids`` (B, T). One document
            per row.
        student: Determines the task.

    Raises:
        ModelError: A masked language model or a classifier without labels.
    """
    if isinstance(inputs, (Batch, ExampleBatch)):
        return inputs
    ids = inputs["input_ids"]
    attended = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    examples = torch.arange(len(ids), device=ids.device)
    labels, is_classifier = inputs.get("labels"), vocabulary_head(student) is None
    is_causal = not is_classifier and task_of(student) == "clm"
    if labels is None and not is_causal:
        raise ModelError(
            f"this {student.config.model_type} student needs labels, and the batch has none; add labels "
            f"({IGNORED} where there is none)"
        )
    if is_classifier:
        assert labels is not None
        return ExampleBatch(ids, attended, inputs.get("token_type_ids"), labels, examples)
    given = (ids if labels is None else labels).masked_fill(~attended, IGNORED)
    targets = torch.full_like(ids, IGNORED) if is_causal else given
    if is_causal:
        targets[:, :-1] = given[:, 1:].masked_fill(~attended[:, :-1], IGNORED)
    positions = (attended.long().cumsum(1) - 1).clamp(min=0)
    return Batch(ids, attended, targets, attended.long(), positions, examples)
