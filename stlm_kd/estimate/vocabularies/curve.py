"""The size of a recipe's vocabulary against the quality of its teachers and the student's parameters."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from io import StringIO
from os import PathLike
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedTokenizerFast

from stlm_kd.artifacts.atomic import storage_as_error, write_json, write_text
from stlm_kd.artifacts.run_dir import file_name
from stlm_kd.artifacts.uses import begin_uses
from stlm_kd.errors import DataError, ModelError, UsageError
from stlm_kd.estimate.vocabularies.of_recipe import SAMPLE, STUDENT, student_parameters
from stlm_kd.notes import note
from stlm_kd.pipeline.context import RecipeSetup, RunContext, context_for
from stlm_kd.pipeline.scoring.sliced_teacher import Scorer, bits_above, bits_of, teacher_scorer
from stlm_kd.pipeline.scoring.vocabularies import compare_tokenizers
from stlm_kd.pipeline.stages.teacher import prepare_teacher
from stlm_kd.pipeline.stages.tokenizer import own_tokenizer, sampled_text, student_tokenizer
from stlm_kd.recipe import Recipe, named_recipe
from stlm_kd.recipe.schema.fields import Count
from stlm_kd.recipe.schema.root import Teacher
from stlm_kd.reporting.vocabulary_figure import draw_vocabulary_curve
from stlm_kd.vocabulary.token_bytes import vocabulary_size

BYTES = 50_000
_AROUND = (0.25, 0.5, 1, 2, 4)  # of the recipe's size

_COUNT: TypeAdapter[int] = TypeAdapter(Count)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A teacher with the student's vocabulary of one size, or with its own.

    Attributes:
        teacher: Its name.
        vocabulary: ``student`` or ``own``.
        tokens: The size of the vocabulary.
        tokens_per_byte: On the first 2 MB of the training text.
        exact_rows: Tokens whose row is one of the teacher's own.
        share: Their part of that text's tokens.
        parameters, embedding: Those of the student, and of its embedding and head among them; None for the
            teacher's own vocabulary, and for a recipe that trains no student.
        bits_per_byte, stderr: Of the teacher without training, on the held-out text, with the standard error
            over blocks of 1 KiB; None where it is not measured.
        above_own, above_own_stderr: Its bits per byte minus those with its own vocabulary, on the same
            blocks.
    """

    teacher: str
    vocabulary: str
    tokens: int
    tokens_per_byte: float
    exact_rows: int
    share: float
    parameters: int | None = None
    embedding: int | None = None
    bits_per_byte: float | None = None
    stderr: float | None = None
    above_own: float | None = None
    above_own_stderr: float | None = None


@dataclass(frozen=True, slots=True)
class VocabularyCurve:
    """The points by size, each with all teachers; ``folder`` has them as JSON, CSV and PNG."""

    folder: str
    points: tuple[CurvePoint, ...]
    notes: tuple[str, ...]


def vocabulary_curve(
    recipe: Recipe | str,
    overrides: Sequence[str] = (),
    *,
    sizes: Sequence[int | str] = (),
    num_bytes: int | str = BYTES,
    output_dir: str | PathLike[str] = "runs",
    trust_remote_code: bool = False,
) -> VocabularyCurve:
    """Measure vocabularies of several sizes as the recipe makes its student's, and draw the curve.

    Each tokenizer is made of the whole training text, as a run makes it, and each teacher scored with it
    without training. Both are stages, so a repeated command measures only what is missing. Teachers of
    recipes are trained first.

    Args:
        recipe: A recipe, a file, or a built-in name.
        overrides: Changes ``key.path=value``, for a recipe given by name.
        sizes: Numbers of tokens, such as ``"8k"``; default: a quarter to four times the recipe's, where the
            teachers and the text allow it.
        num_bytes: How much of the held-out text the teachers read.
        output_dir: Contains the stages; gets the folder NAME-vocabulary-curve with ``curve.json``,
            ``curve.csv`` and ``curve.png``.
        trust_remote_code: Whether to run code shipped with a model.

    Raises:
        UsageError: The recipe names a tokenizer or has no teacher with a model, or a size is no number.
        ModelError, DataError: No vocabulary of such a size can be made.
        MissingResourceError: A model or text is missing.
    """
    recipe, name = named_recipe(recipe, overrides, None)
    teachers = [teacher for teacher in recipe.teachers if teacher.has_model]
    _check(recipe, teachers, name)
    wanted, most = [_count(size, "--sizes") for size in sizes], _count(num_bytes, "--bytes")
    folder = Path(output_dir) / f"{file_name(name)[:48]}-vocabulary-curve"
    context = context_for(
        recipe, Path(output_dir), resume=True, trust_remote_code=trust_remote_code, run_name=folder.name
    )
    with storage_as_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        begin_uses(folder, created=True)
        setups = [*_setups(recipe, context, wanted)]
        reason = _unmeasured(recipe)
        scorers = {} if reason else _scorers(setups[0], teachers, most)
        documents = [*sampled_text(recipe, SAMPLE)]
        points = [*_points(setups, teachers, scorers, documents)]
        size = sum(len(document.encode()) for document in documents)
        read = reason or "bits per byte: " + _read(scorers.values())
        notes = (f"tokens per byte and shares: on the first {size:,} bytes of the training text", read)
        curve = VocabularyCurve(str(folder), (*points,), notes)
        _write(curve, folder)
    return curve


def _check(recipe: Recipe, teachers: Sequence[Teacher], name: str) -> None:
    tokenizer = recipe.student.tokenizer
    if isinstance(tokenizer, str):
        example = f"'student.tokenizer={{trim: {teachers[0].name if teachers else 'TEACHER'}, size: 8192}}'"
        raise UsageError(
            f"student.tokenizer: {tokenizer} has one size; expected one that is made; add {example}"
        )
    if not teachers:
        raise UsageError(f"{name}: no teacher with a model; expected one whose rows the vocabulary gets")


def _count(value: int | str, option: str) -> int:
    try:
        return _COUNT.validate_python(int(value) if str(value).isdecimal() else value)
    except ValidationError as error:
        found = value if str(value).strip() else "''"
        raise UsageError(f"{option}: {found} found; expected a number above 0, such as 8192 or 8k") from error


def _setups(recipe: Recipe, context: RunContext, wanted: Sequence[int]) -> Iterator[RecipeSetup]:
    """The recipe with each size; of the default sizes, those that can be made."""
    tokenizer = recipe.student.tokenizer
    assert not isinstance(tokenizer, str)
    sizes = sorted(set(wanted or (round(part * tokenizer.size) for part in _AROUND)))
    for size in sizes:
        student = recipe.student.model_copy(update={"tokenizer": tokenizer.model_copy(update={"size": size})})
        sized = recipe.model_copy(update={"student": student})
        try:
            yield RecipeSetup(sized, student_tokenizer(sized, context), context)
        except (ModelError, DataError) as error:
            if wanted or size == tokenizer.size:
                raise
            note(f"left out: {error}")


def _unmeasured(recipe: Recipe) -> str:
    """Why no bits per byte are measured; "" if they are."""
    if recipe.task == "mlm":
        return "no bits per byte: a masked model's scores of different vocabularies cannot be compared"
    if recipe.task != "clm":
        return f"no bits per byte: a model for {recipe.task} gives text no probability"
    return "" if recipe.data.validation else "no bits per byte: data.validation is not given"


def _scorers(setup: RecipeSetup, teachers: Sequence[Teacher], most_bytes: int) -> dict[str, Scorer]:
    """A scorer of each teacher before adaptation; those of recipes are trained."""
    found = {}
    for teacher in teachers:
        plain = teacher.model_copy(update={"adapt": None, "cache": None})
        model = prepare_teacher(setup, plain).model
        found[teacher.name] = teacher_scorer(
            setup.recipe, teacher.name, model, setup.context, most_bytes=most_bytes
        )
    return found


def _read(scorers: Iterable[Scorer]) -> str:
    """The text that teachers are scored on."""
    report = next(iter(scorers))(None).report
    text = f"on {report['bytes']:,} bytes of the held-out text"
    return f"{text}, untrained, in windows of {report['window']} tokens"


def _points(
    setups: Sequence[RecipeSetup],
    teachers: Sequence[Teacher],
    scorers: dict[str, Scorer],
    documents: Sequence[str],
) -> Iterator[CurvePoint]:
    """The points of all sizes, then those of the teachers' own vocabularies."""
    first = setups[0]
    own = {teacher.name: own_tokenizer(teacher, first.context) for teacher in teachers}
    trust = first.context.trust_remote_code
    for setup in setups:
        shares = _shares(setup.tokenizer, own, documents)
        parameters = embedding = None
        if not setup.recipe.adapts_only:
            parameters, embedding = student_parameters(setup.recipe, trust_remote_code=trust)
        for teacher, found in shares.items():
            size = vocabulary_size(setup.tokenizer)
            point = CurvePoint(teacher, STUDENT, size, *found, parameters, embedding)
            yield _measured(point, scorers[teacher], setup.tokenizer) if scorers else point
    for teacher, tokenizer in own.items():
        found = _shares(tokenizer, {teacher: tokenizer}, documents)[teacher]
        point = CurvePoint(teacher, "own", vocabulary_size(tokenizer), *found)
        yield _measured(point, scorers[teacher], None) if scorers else point


def _measured(point: CurvePoint, score: Scorer, tokenizer: PreTrainedTokenizerFast | None) -> CurvePoint:
    result = score(tokenizer)
    (bits, stderr), (above, above_stderr) = bits_of(result), bits_above(result, score(None))
    return replace(point, bits_per_byte=bits, stderr=stderr, above_own=above, above_own_stderr=above_stderr)


def _shares(
    tokenizer: PreTrainedTokenizerFast, own: dict[str, PreTrainedTokenizerFast], documents: Sequence[str]
) -> dict[str, tuple[float, int, float]]:
    """Of each teacher: tokens per byte, exact rows, and their share of the text."""
    teachers = {f"teacher {name}": one for name, one in own.items()}
    found = compare_tokenizers({STUDENT: tokenizer, **teachers}, documents, students=[STUDENT])
    per_token = found.vocabularies[0].bytes_per_token or 0.0
    return {
        name: (1 / per_token if per_token else 0.0, pair.rows, pair.share or 0.0)
        for name, pair in zip(own, found.pairs, strict=True)
    }


def _write(curve: VocabularyCurve, folder: Path) -> None:
    rows = [asdict(point) for point in curve.points]
    write_json(folder / "curve.json", {"points": rows, "notes": list(curve.notes)})
    text = StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(CurvePoint)], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(folder / "curve.csv", text.getvalue())
    bits, own, parameters = _lines(curve.points)
    draw_vocabulary_curve(bits, own, parameters, folder / "curve.png")


Measured = tuple[int, float, float | None]


def _lines(
    points: Sequence[CurvePoint],
) -> tuple[dict[str, list[Measured]], dict[str, Measured], dict[str, list[tuple[int, int]]]]:
    """What is drawn: sizes with bits per byte and error, the same of own vocabularies, and parameters."""
    bits: dict[str, list[Measured]] = {}
    own: dict[str, Measured] = {}
    for one in points:
        if one.bits_per_byte is None:
            continue
        found = one.tokens, one.bits_per_byte, one.stderr
        if one.vocabulary == STUDENT:
            bits.setdefault(one.teacher, []).append(found)
        else:
            own[one.teacher] = found
    of_student = {p.tokens: (p.parameters, p.embedding) for p in points if p.parameters and p.embedding}
    parameters = {
        "all": [(size, every) for size, (every, _) in of_student.items()],
        "embedding and head": [(size, outer) for size, (_, outer) in of_student.items()],
    }
    return bits, own, parameters
