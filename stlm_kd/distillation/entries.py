"""Objectives and batches from plain mappings, for those who write their own training loop.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.labelled.batches import AnyBatch, ExampleBatch
from stlm_kd.distillation.hidden_terms import Projections, TermProjections
from stlm_kd.distillation.terms import Term
from stlm_kd.errors import ModelError, RecipeError, RecipeFault, did_you_mean
from stlm_kd.losses import LABELS, LOSSES, MAP_LOSSES, STATE_LOSSES
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
    faults = [
        RecipeFault(f"objective[{index}]{place}", message)
        for index, entry in enumerate(objective)
        if not isinstance(entry, Term)
        for place, message in _faults(entry, teachers)
    ]
    if faults:
        raise RecipeError("objective", faults)
    models = {"the student": student, **_live(teachers)}
    for name, teacher in teachers.items():
        _check_vocabulary(name, teacher, student)
    terms: list[Term] = []
    projections: dict[str, TermProjections] = {}
    for entry in objective:
        term = entry if isinstance(entry, Term) else _term(entry, student, teachers, {t.name for t in terms})
        terms.append(term)
        if term.loss in STATE_LOSSES and not isinstance(entry, Term):
            assert term.teacher is not None
            projections[term.name] = TermProjections(
                term.pairs,
                _width(student.config),
                _width(models[term.teacher].config),
                how=entry.get("projection", "auto"),
                term=term.name,
                seed=seed,
            )
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


def _faults(entry: Mapping[str, Any], teachers: Mapping[str, Teacher]) -> Iterator[tuple[str, str]]:
    """Place and message of each fault of a mapping."""
    loss = entry.get("loss")
    table = next((table for table in (LOSSES, STATE_LOSSES, MAP_LOSSES) if loss in table), None)
    if table is None:
        known = [*LOSSES, *STATE_LOSSES, *MAP_LOSSES]
        yield ".loss", f"{loss!r} is not a loss without intervention{did_you_mean(str(loss), known)}"
        return
    options = table.options(str(loss))
    keys = {"loss", "weight", "teacher", "on", *options}
    keys |= set() if table is LOSSES else {"sites"}
    keys |= {"projection"} if table is STATE_LOSSES else set()
    for key in entry:
        if key not in keys:
            yield f".{key}", f"not a key of {loss}{did_you_mean(key, keys)}"
    for option, (annotation, default) in options.items():
        value = entry.get(option, default)
        if not isinstance(value, (Ramp, Steps)) and (fault := _value_fault(value, annotation)):
            yield f".{option}", fault
    weight = entry.get("weight", 1.0)
    if not isinstance(weight, (int, float, Ramp, Steps)) or (isinstance(weight, (int, float)) and weight < 0):
        yield ".weight", f"{weight!r} found; expected a number of at least 0, a Ramp or Steps"
    yield from _teacher_faults(entry, table, teachers)


def _teacher_faults(
    entry: Mapping[str, Any], table: Registry[Any], teachers: Mapping[str, Teacher]
) -> Iterator[tuple[str, str]]:
    if entry["loss"] == LABELS:
        return
    name = _teacher_of(entry, table, teachers)
    if not teachers:
        yield (
            ".loss",
            f"{entry['loss']} needs a teacher; pass teachers={{name: LiveTeacher(…)}}",
        )
    elif name is None:
        yield ".teacher", f"not given; expected one of {', '.join(teachers)}"
    elif name not in (COMBINED, *teachers):
        yield ".teacher", f"{name} is not a teacher{did_you_mean(name, teachers)}"
    elif table is not LOSSES and name not in _live(teachers):
        yield ".teacher", f"{name} is no LiveTeacher, which {entry['loss']} needs"


def _value_fault(value: object, annotation: Any) -> str | None:
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(annotation).validate_python(value, strict=not isinstance(value, int))
    except ValidationError as error:
        return f"{value!r} found; {error.errors()[0]['msg']}"
    return None


def _teacher_of(
    entry: Mapping[str, Any], table: Registry[Any], teachers: Mapping[str, Teacher]
) -> str | None:
    """The teacher's name; for hidden states and attention maps there is no mixture."""
    if "teacher" in entry:
        return str(entry["teacher"])
    if table is LOSSES:
        return COMBINED
    return next(iter(teachers)) if len(teachers) == 1 else None


def _term(
    entry: Mapping[str, Any], student: PreTrainedModel, teachers: Mapping[str, Teacher], taken: set[str]
) -> Term:
    loss = str(entry["loss"])
    table = next(table for table in (LOSSES, STATE_LOSSES, MAP_LOSSES) if loss in table)
    teacher = None if loss == LABELS else _teacher_of(entry, table, teachers)
    name = loss if teacher in (None, COMBINED) else f"{loss}@{teacher}"
    while name in taken:
        name += "'"
    pairs: Callable[..., Any] = layer_pairs if table is MAP_LOSSES else site_pairs
    compared = () if table is LOSSES else (student, _live(teachers)[str(teacher)])
    layers = [int(model.config.get_text_config().num_hidden_layers) for model in compared]
    return Term(
        name=name,
        loss=loss,
        weight=entry.get("weight", 1.0),
        on=entry.get("on", "labels" if table is LOSSES else "attended"),
        teacher=teacher,
        options={option: entry[option] for option in table.options(loss) if option in entry},
        pairs=tuple(pairs(entry.get("sites", "last"), *layers)) if layers else (),
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
