"""The command ``interchange``: compare students with their teacher after the same interventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from stlm_kd.artifacts.results import Score, SuiteResult
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.errors import DataError, ModelError, UsageError
from stlm_kd.eval.interchange.config import ALL, PairConfig
from stlm_kd.eval.interchange.metrics import measure
from stlm_kd.eval.interchange.pairs import draw_pairs, row_length
from stlm_kd.interventions.metrics import RATIOS
from stlm_kd.models.families import Task
from stlm_kd.models.forward import task_of
from stlm_kd.models.layer_alignment import Alignment, aligned
from stlm_kd.pipeline.builders.numbers import num_layers
from stlm_kd.pipeline.scoring.evaluate import held_out_of_run, read_held_out
from stlm_kd.pipeline.stages.teacher_set import load_for_exchange, shared_tokenizer
from stlm_kd.vocabulary.token_bytes import vocabulary_size


def interchange_scores(
    teacher: str,
    students: Sequence[str],
    asked: PairConfig,
    *,
    alignment: str,
    context: int | None,
    data: Sequence[str],
    trust_remote_code: bool = False,
) -> dict[str, SuiteResult]:
    """Score each student against the teacher; return the results by student name as given.

    Args:
        teacher: A run, model folder or Hub id of a language model.
        students: Further ones, all different.
        asked: The interventions, the same for all students.
        alignment: Name in ``ALIGNMENTS``.
        context: Positions per row; None for the default of ``row_length``.
        data: Files of held-out text; empty for the validation text of the models' runs, which must be the
            same.
        trust_remote_code: Whether to run code shipped with a model.

    Raises:
        UsageError: A student is given twice, or there is no text.
        ModelError: Vocabularies or tasks differ, a model family is unknown, or the alignment is impossible.
        DataError: The runs have different text, or fewer than two rows of it.
    """
    twice = sorted({name for name in students if students.count(name) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: given twice")
    tokenizer = shared_tokenizer([teacher, *students], trust=trust_remote_code)
    documents = _documents([*students, teacher], data)
    models = {
        name: load_for_exchange(name, tokenizer, trust_remote_code)
        for name in dict.fromkeys([teacher, *students])
    }
    task = _task(models)
    layers = {name: _alignment(alignment, teacher, name, models) for name in students}
    length = row_length(models, context, place="--context")
    exchanges = draw_pairs(documents, tokenizer, asked, context=length, task=task)
    vocabulary = vocabulary_size(tokenizer)
    return {
        name: measure(models[teacher], models[name], exchanges, alignment=layers[name], vocabulary=vocabulary)
        for name in students
    }


def interchange_table(teacher: str, found: Mapping[str, SuiteResult]) -> Table:
    """A table with a row per student and layer, and notes below."""
    names_of_note: dict[str, list[str]] = {}
    for name, result in found.items():
        for note in result.notes:
            names_of_note.setdefault(note, []).append(name)
    notes = [f"{', '.join(names)}: {note}" for note, names in names_of_note.items()]
    rows = next(iter(found.values())).score(ALL, "agreement").examples
    lines = [
        f"teacher {teacher}; {rows} rows; ±: standard error over rows; effect: KL(after || before) in nats",
        *notes,
    ]
    table = Table(caption=Text("\n".join(lines), "table.caption"), caption_justify="left")
    table.add_column("student")
    table.add_column("exchanged")
    for title in TITLES.values():
        table.add_column(title, justify="right")
    for name, result in found.items():
        scores = {(score.task, score.metric): score for score in result.scores}
        for task in dict.fromkeys(score.task for score in result.scores):
            cells = [_format_score(scores.get((task, metric))) for metric in TITLES]
            table.add_row(Text(name), _exchanged(task, result), *cells)
    return table


TITLES = {
    "interchange_accuracy": "interchange accuracy ↑",
    "agreement": "agreement ↑",
    "base_agreement": "without intervention ↑",
    "teacher_changes": "teacher's top-1 changes",
    "teacher_effect": "teacher's effect",
    "student_effect": "student's effect",
}
assert TITLES.keys() == RATIOS.keys()


def as_json(
    teacher: str, asked: PairConfig, alignment: str, found: Mapping[str, SuiteResult]
) -> dict[str, Any]:
    """All results, ready for ``json.dumps``."""
    return {
        "teacher": teacher,
        "alignment": alignment,
        "source": asked.source,
        "positions": asked.positions,
        "rows": asked.rows,
        "seed": asked.seed,
        "students": {name: result.to_json() for name, result in found.items()},
    }


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
        raise ModelError(f"{student} and {teacher}: --alignment: {error}") from error


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


def _exchanged(task: str, result: SuiteResult) -> str:
    alignment = result.report["alignment"]
    assert isinstance(alignment, Mapping)
    layers = alignment.get(task.removeprefix("layer "))
    return f"{task} ↔ {', '.join(map(str, layers))}" if isinstance(layers, list) else task


def _format_score(score: Score | None) -> str:
    if score is None:
        return "—"
    return f"{score.value:.4f}" + ("" if score.stderr is None else f" ± {score.stderr:.4f}")
