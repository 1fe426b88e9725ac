"""The command ``interchange``: compare students with their teacher after the same interventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedModel

from stlm_kd.data.labelled.examples import Examples
from stlm_kd.errors import DataError, ModelError, UsageError
from stlm_kd.eval.interchange.config import SUITE, PairConfig
from stlm_kd.eval.interchange.metrics import measure
from stlm_kd.eval.interchange.pairs import draw_pairs, row_length
from stlm_kd.models.families import Task
from stlm_kd.models.forward import task_of
from stlm_kd.models.layer_alignment import Alignment, aligned
from stlm_kd.pipeline.builders.numbers import num_layers
from stlm_kd.pipeline.scoring.evaluate import held_out_of_run, read_held_out
from stlm_kd.pipeline.stages.teacher_set import load_for_exchange, shared_tokenizer
from stlm_kd.recipe.suites import suite_options
from stlm_kd.reporting.tables.interchange import InterchangeScores
from stlm_kd.vocabulary.token_bytes import vocabulary_size


def interchange(
    teacher: str | PathLike[str],
    students: Sequence[str | PathLike[str]],
    *,
    data: Sequence[str | PathLike[str]] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
    trust_remote_code: bool = False,
) -> InterchangeScores:
    """Score students against their teacher after the same exchange of hidden states in both.

    Args:
        teacher: A run, model folder or Hub id of a language model.
        students: Further ones, all different.
        data: Files of held-out text; empty for the validation text of the models' runs, which must be the
            same.
        options: Of the suite ``interchange``, such as ``{"alignment": "late", "rows": 64}``; the default
            alignment is ``full``.
        trust_remote_code: Whether to run code shipped with a model.

    Raises:
        UsageError: A student is given twice, there is no text, or an option is unknown.
        ModelError: Vocabularies or tasks differ, a model family is unknown, or the alignment is impossible.
        DataError: The runs have different text, or fewer than two rows of it.
    """
    chosen = {"alignment": "full", "context": None, **suite_options(SUITE, options)}
    alignment, context = chosen.pop("alignment"), chosen.pop("context")
    pairs, name, names = PairConfig(**chosen), fspath(teacher), [fspath(student) for student in students]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: given twice")
    tokenizer = shared_tokenizer([name, *names], trust=trust_remote_code)
    documents = _documents([*names, name], [fspath(file) for file in data])
    models = {
        one: load_for_exchange(one, tokenizer, trust_remote_code) for one in dict.fromkeys([name, *names])
    }
    task = _task(models)
    layers = {student: _alignment(alignment, name, student, models) for student in names}
    length = row_length(models, context, place="context")
    exchanges = draw_pairs(documents, tokenizer, pairs, context=length, task=task)
    vocabulary = vocabulary_size(tokenizer)
    found = {
        student: measure(
            models[name], models[student], exchanges, alignment=layers[student], vocabulary=vocabulary
        )
        for student in names
    }
    return InterchangeScores(name, alignment, pairs, found)


def _task(models: Mapping[str, PreTrainedModel]) -> Task:
    """The task that all models share."""
    tasks = {name: task_of(model) for name, model in models.items()}
    if len(set(tasks.values())) > 1:
        causal = [name for name, task in tasks.items() if task == "clm"]
        masked = [name for name, task in tasks.items() if task == "mlm"]
        raise ModelError(
            f"{', '.join(causal)} predict the next token, {', '.join(masked)} masked ones; "
            "compare models of one task"
        )
    return next(iter(tasks.values()))


def _alignment(choice: str, teacher: str, student: str, models: Mapping[str, PreTrainedModel]) -> Alignment:
    try:
        return aligned(choice, num_layers(models[student].config), num_layers(models[teacher].config))
    except ModelError as error:
        raise ModelError(f"{student} and {teacher}: alignment: {error}") from error


def _documents(names: Sequence[str], data: Sequence[str]) -> list[str]:
    if data:
        return _text(read_held_out(data, None, names[0], ()), "--data")
    own = {name: found for name in names if (found := _of_run(name)) is not None}
    if not own:
        raise UsageError(f"{', '.join(names)}: none belongs to a run with held-out text; give --data FILE")
    first = next(iter(own))
    for name, documents in own.items():
        if documents != own[first]:
            raise DataError(
                f"{name} and {first}: the validation text of their runs is not the same; "
                "give one for both: --data FILE"
            )
    return own[first]


def _of_run(name: str) -> list[str] | None:
    try:
        found = held_out_of_run(name)
    except UsageError:  # the model belongs to no run
        return None
    return _text(found, name)


def _text(found: list[str] | Examples, name: str) -> list[str]:
    if isinstance(found, Examples):
        raise UsageError(f"{name}: its run has labelled examples, not text; give --data FILE")
    return [text for text in found if text]
