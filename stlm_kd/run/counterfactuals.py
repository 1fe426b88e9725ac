"""The command ``interchange``: students beside their teacher after the same interventions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.alignment import Alignment, aligned
from stlm_kd.architectures import ARCHITECTURES, Task
from stlm_kd.data.batch import Batch
from stlm_kd.data.batches import PackedRows, require_one_context
from stlm_kd.data.labelled import Examples
from stlm_kd.data.masking import even_masking
from stlm_kd.data.tokenizers import load_tokenizer, same_vocabulary
from stlm_kd.data.tokens import build_store
from stlm_kd.engine import current_device
from stlm_kd.errors import DataError, ModelError, UsageError
from stlm_kd.eval.interchange import ALL, SUITE, Exchange, draw_exchanges, measure
from stlm_kd.eval.masked import DEFAULT_WINDOW
from stlm_kd.eval.results import Score, SuiteResult
from stlm_kd.interventions import Lexicon, Supplies
from stlm_kd.interventions.draw import named_generator
from stlm_kd.interventions.effects import RATIOS
from stlm_kd.interventions.pool import TextPool
from stlm_kd.models.forward import head_of, task_of
from stlm_kd.models.load import load_language_model
from stlm_kd.models.positions import num_positions
from stlm_kd.run.evaluate import held_out_of_run, read_held_out
from stlm_kd.run.models import model_of
from stlm_kd.run.numbers import num_layers
from stlm_kd.vocab.spelling import read_vocabulary, vocabulary_size

ROWS_OF_A_BATCH = 32


@dataclass(frozen=True, slots=True)
class Asked:
    """Which interventions.

    Attributes:
        alignment: Name in ``ALIGNMENTS``.
        source: Name in ``SOURCES``.
        positions: Neighbours, or any.
        rows: Of the held-out text, drawn by the seed, at most.
        context: Positions of a row; None: 128, or as many as all models have if that is fewer.
        seed: Of everything drawn.
    """

    alignment: str
    source: str
    positions: Literal["consecutive", "random"]
    rows: int
    context: int | None
    seed: int


def interchange_scores(
    teacher: str,
    students: Sequence[str],
    asked: Asked,
    *,
    data: Sequence[str],
    trust_remote_code: bool = False,
) -> dict[str, SuiteResult]:
    """What each student says beside the teacher, by the name that it was given.

    Args:
        teacher: A run, model folder or Hub id of a language model.
        students: The same; different ones.
        asked: The interventions, which are the same for all.
        data: Files of held-out text; none: the validation text of the models' runs, which has to be the same.
        trust_remote_code: Whether models may run code that they bring.

    Raises:
        UsageError: A student given twice, or no text.
        ModelError: Other vocabularies or tasks, blocks that are not known, or no such alignment.
        DataError: Runs of other text, or less than two rows of it.
    """
    twice = sorted({name for name in students if students.count(name) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: given twice")
    tokenizer = _tokenizer([teacher, *students], trust_remote_code)
    documents = _documents([*students, teacher], data)
    models = {name: _load(name, tokenizer, trust_remote_code) for name in dict.fromkeys([teacher, *students])}
    task = _task(models)
    layers = {name: _alignment(asked.alignment, teacher, name, models) for name in students}
    context = _context(models, asked.context)
    with _rows(documents, tokenizer, context, task) as parts:
        exchanges = _exchanges(parts, tokenizer, asked, task)
        vocabulary = vocabulary_size(tokenizer)
        return {
            name: measure(
                models[teacher], models[name], exchanges, alignment=layers[name], vocabulary=vocabulary
            ).as_result()
            for name in students
        }


def interchange_table(teacher: str, found: Mapping[str, SuiteResult]) -> Table:
    """A row for each student and layer; what a reader must know stands below."""
    told: dict[str, list[str]] = {}
    for name, result in found.items():
        for note in result.notes:
            told.setdefault(note, []).append(name)
    notes = [f"{', '.join(names)}: {note}" for note, names in told.items()]
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
            cells = [_shown(scores.get((task, metric))) for metric in TITLES]
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


def as_json(teacher: str, asked: Asked, found: Mapping[str, SuiteResult]) -> dict[str, Any]:
    """Everything, ready for ``json.dumps``."""
    return {
        "teacher": teacher,
        "alignment": asked.alignment,
        "source": asked.source,
        "positions": asked.positions,
        "rows": asked.rows,
        "seed": asked.seed,
        "students": {name: result.to_json() for name, result in found.items()},
    }


def _tokenizer(names: Sequence[str], trust: bool) -> PreTrainedTokenizerFast:
    """The one that all have in common."""
    first, *others = names
    tokenizer = load_tokenizer(model_of(first), trust_remote_code=trust)
    for name in others:
        if not same_vocabulary(tokenizer, load_tokenizer(model_of(name), trust_remote_code=trust)):
            raise ModelError(
                f"{first} and {name} have other vocabularies, so that what they say cannot be compared; "
                "adapt the teacher to the student's tokenizer first: stlm-kd adapt-teacher"
            )
    return tokenizer


def _load(name: str, tokenizer: PreTrainedTokenizerFast, trust: bool) -> PreTrainedModel:
    model = load_language_model(model_of(name), None, trust_remote_code=trust)
    family = model.config.model_type
    if family not in ARCHITECTURES:
        raise ModelError(
            f"{name}: states are exchanged within models, and this is a {family}; known are "
            f"{', '.join(ARCHITECTURES)}"
        )
    size, needed = head_of(model).size, vocabulary_size(tokenizer)
    if size < needed:
        raise ModelError(
            f"{name}: the tokenizer has ids up to {needed - 1}, but the model has a vocabulary of {size}; "
            "give the model the tokenizer that it was trained with"
        )
    model.to(current_device())  # type: ignore[arg-type]
    return model


def _task(models: Mapping[str, PreTrainedModel]) -> Task:
    """What all of them predict."""
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


def _context(models: Mapping[str, PreTrainedModel], wanted: int | None) -> int:
    if wanted is None:
        limits = (num_positions(model.config) for model in models.values())
        return min(DEFAULT_WINDOW, *(limit for limit in limits if limit is not None))
    for name, model in models.items():
        most = num_positions(model.config)
        if most is not None and wanted > most:
            raise UsageError(f"--context: {wanted} tokens, but {name} has {most} positions")
    return wanted


def _documents(names: Sequence[str], data: Sequence[str]) -> list[str]:
    if data:
        return _text(read_held_out(data, None, names[0], ()), "--data")
    own = {name: found for name in names if (found := _of_run(name)) is not None}
    if not own:
        raise UsageError(f"{', '.join(names)}: none is of a run that has held-out text; give --data FILE")
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
    except UsageError:  # which says that it is of no run
        return None
    return _text(found, name)


def _text(found: list[str] | Examples, name: str) -> list[str]:
    if isinstance(found, Examples):
        raise UsageError(f"{name}: its run has labelled examples, not text; give --data FILE")
    return [text for text in found if text]


@contextmanager
def _rows(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerFast, context: int, task: Task
) -> Iterator[tuple[PackedRows, ...]]:
    """The text packed as in training; its tokens lie on disk while it is entered."""
    with TemporaryDirectory() as folder:
        store = build_store(documents, tokenizer, Path(folder) / "tokens")
        parts = (PackedRows(store, context, wrapped=task == "mlm"),)
        require_one_context(parts)
        yield parts


def _exchanges(
    parts: Sequence[PackedRows], tokenizer: PreTrainedTokenizerFast, asked: Asked, task: Task
) -> list[Exchange]:
    """The interventions, on rows drawn from the text."""
    pool = TextPool(parts, even_masking(tokenizer) if task == "mlm" else None)
    order = named_generator(asked.seed, SUITE, "rows").permutation(len(pool))[: asked.rows]
    pieces = np.array_split(order, -(-len(order) // ROWS_OF_A_BATCH))
    supplies = Supplies(asked.seed, pool, Lexicon.of(read_vocabulary(tokenizer)))
    return draw_exchanges(
        (_batch(pool, piece.tolist(), asked.seed) for piece in pieces),
        source=asked.source,
        positions=asked.positions,
        supplies=supplies,
        causal=task == "clm",
    )


def _batch(pool: TextPool, places: Sequence[int], seed: int) -> Batch:
    return pool.batch(places, [named_generator(seed, SUITE, "base masks", place) for place in places])


def _exchanged(task: str, result: SuiteResult) -> str:
    alignment = result.report["alignment"]
    assert isinstance(alignment, Mapping)
    layers = alignment.get(task.removeprefix("layer "))
    return f"{task} ↔ {', '.join(map(str, layers))}" if isinstance(layers, list) else task


def _shown(score: Score | None) -> str:
    if score is None:
        return "—"
    return f"{score.value:.4f}" + ("" if score.stderr is None else f" ± {score.stderr:.4f}")
