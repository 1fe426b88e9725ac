"""The suite ``agreement``: compares a classifier's predictions and explanations with its teachers'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from annotated_types import Ge, Gt

from stlm_kd.artifacts.results import ExampleScore, Score, SuiteResult
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.eval.agreement.predictions import jensen_shannon, kl_divergence
from stlm_kd.eval.attribution.compare import Compared, ExplanationAgreement, compared
from stlm_kd.eval.attribution.explain import (
    AttributionConfig,
    ClassifierOutputs,
    Method,
    ReadConfig,
    classifier_outputs,
)
from stlm_kd.eval.attribution.integrated_gradients import integrator
from stlm_kd.eval.attribution.select import Choice, Which
from stlm_kd.eval.classification.metrics import example_scores, one_class
from stlm_kd.eval.classification.scoring import hash_of_texts, hashes_of
from stlm_kd.eval.runner import Precision
from stlm_kd.eval.suite import Options, register_suite
from stlm_kd.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SUITE = "agreement"

AnswersOf = Callable[[ReadConfig, AttributionConfig], ClassifierOutputs]
"""Computes a teacher's predictions and explanations for the student's examples."""

Floats: TypeAlias = "npt.NDArray[np.float64]"


def _requirements(options: Options) -> Iterator[Callable[[], object]]:
    if "integrated-gradients" in options.get("attributions", ()):
        yield integrator


@register_suite(SUITE, tasks=["classification"], teachers="outputs", requirements=_requirements)
def agreement(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    held: Examples,
    teachers: Mapping[str, AnswersOf],
    /,
    *,
    attributions: tuple[Method, ...] = (),
    examples: Annotated[int, Gt(1)] = 100,
    which: Which = "random",
    ids: tuple[str | int, ...] = (),
    classes: tuple[str | int, ...] = (),
    sources: tuple[str, ...] = (),
    features: Annotated[int, Gt(0)] | None = None,
    samples: Annotated[int, Gt(1)] = 500,
    steps: Annotated[int, Gt(0)] = 50,
    top: Annotated[int, Gt(0)] = 3,
    seed: Annotated[int, Ge(0)] = 0,
    context: Annotated[int, Gt(3)] | None = None,
    batch_size: Annotated[int, Gt(0)] = 64,
    precision: Precision = "fp32",
) -> SuiteResult:
    """Cohen's κ, same-class rate and divergences with each teacher, which is the task; and explanations.

    Args:
        model: A classifier.
        tokenizer: Its tokenizer.
        held: Labelled examples.
        teachers: By name.
        attributions: Word attribution methods: ``lime``, ``integrated-gradients``; default: none.
        examples: Maximum examples to explain.
        which: ``random``; ``easy`` or ``hard``, by the teacher's loss; ``easy-and-hard``, some of both for
            each class.
        ids: Explain only these examples.
        classes: Explain only examples of these classes.
        sources: Explain only examples whose column ``source`` has one of these values.
        features: LIME: maximum words with a weight; null: all.
        samples: LIME: perturbed texts, all distinct.
        steps: Integrated gradients: points of the integral.
        top: Number of top-weighted words to compare.
        seed: Random seed of examples and perturbations.
        context: Maximum tokens of an example; default: 512, or the model's positions if fewer.
        batch_size: Examples per forward pass.
        precision: ``bf16`` runs the models under autocast, except for integrated gradients.

    Raises:
        DataError: A logit is not finite, or there are no such examples to explain.
        MissingResourceError: A package for explanations is not installed.
    """
    choice = Choice(examples, tuple(map(str, ids)), which, tuple(map(str, classes)), sources, seed)
    explaining = AttributionConfig(attributions, choice, features, samples, steps)
    reading = ReadConfig(context, batch_size, precision)
    found: dict[str, TeacherAgreement] = {}
    for name, of_teacher in teachers.items():
        theirs = of_teacher(reading, explaining)
        own = classifier_outputs("student", model, tokenizer, held, reading, explaining, like=theirs)
        found[name] = TeacherAgreement(theirs, own, compared(theirs, own, top=top))
    both = [scores_of_teacher(name, one) for name, one in found.items()]
    return SuiteResult(
        SUITE,
        tuple(score for scores, _ in both for score in scores),
        tuple(row for _, rows in both for row in rows),
        tuple(
            f"teacher {name}: {note}" for name, one in found.items() for note in one.compared.agreement.notes
        ),
        _report(found, held, top),
        texts=dict.fromkeys(found, hashes_of(held)),
    )


@dataclass(frozen=True, slots=True)
class TeacherAgreement:
    """Outputs of a teacher and its student, and their agreement."""

    teacher: ClassifierOutputs
    student: ClassifierOutputs
    compared: Compared


def explained_in(
    result: SuiteResult, teacher: str, *, student: str
) -> tuple[TeacherAgreement, dict[str, tuple[str, ...]]]:
    """Outputs and agreement for one of ``teachers_in``, and each explained example's texts by id."""
    report: Any = result.report
    beside = report["beside"][teacher]
    theirs = ClassifierOutputs.from_json(beside["teacher_answers"], name=teacher)
    own = ClassifierOutputs.from_json(beside["student_answers"], name=student)
    texts = {name: tuple(sides) for name, sides in beside["explained"].items()}
    return TeacherAgreement(theirs, own, compared(theirs, own, top=report["top"])), texts


def teachers_in(result: SuiteResult) -> list[str]:
    """The teachers for which a result contains explanations."""
    report: Any = result.report
    return [name for name, one in report.get("beside", {}).items() if one["explained"]]


def scores_of_teacher(
    teacher: str, one: TeacherAgreement
) -> tuple[tuple[Score, ...], tuple[ExampleScore, ...]]:
    """The scores of the agreement with a teacher, and those of each example."""
    return tuple(_scores(teacher, one)), tuple(_example_scores(teacher, one))


def _scores(teacher: str, one: TeacherAgreement) -> Iterator[Score]:
    """The main scores, and details that tables omit; marked if the student predicts a single class."""
    own = one.student.predictions
    measured = one.compared.agreement
    kappa, same, kl, js = measured.kappa, measured.top1, measured.kl, measured.js
    size, detail = measured.examples, f"{teacher} in detail"
    score = partial(Score, teacher, degenerate=one_class(own.labels, own.predicted))
    if kappa.value is not None:
        yield score("kappa", kappa.value, kappa.stderr, size)
    yield score("same_class", same.value, same.stderr, size)
    yield score("kl", kl.value, kl.stderr, size, higher_is_better=False)
    yield score("js", js.value, js.stderr, size, higher_is_better=False, part_of=detail)
    for each in one.compared.explanations:
        for metric, mean in (("correlation", each.correlation), ("overlap", each.overlap)):
            part = None if metric == "correlation" else detail
            if mean is not None:
                yield score(_named(each, metric), mean.value, mean.stderr, mean.examples, part_of=part)


def _named(each: ExplanationAgreement, metric: str) -> str:
    return f"{each.method.replace('-', '_')}_{metric}"


def _example_scores(teacher: str, one: TeacherAgreement) -> Iterator[ExampleScore]:
    """The per-example values of metrics that are means."""
    theirs = one.teacher.predictions
    own = one.student.predictions.ordered(theirs.ids)
    of_all: dict[str, Floats] = {
        "same_class": (theirs.predicted == own.predicted).astype(np.float64),
        "kl": kl_divergence(theirs.logits, own.logits),
        "js": jensen_shannon(theirs.logits, own.logits),
    }
    for metric, values_N in of_all.items():
        yield from example_scores(teacher, metric, theirs.ids, values_N)
    for each in one.compared.explanations:
        for row in each.examples:
            for metric, value in (("correlation", row.correlation), ("overlap", row.overlap)):
                if value is not None:
                    yield ExampleScore(teacher, row.id, _named(each, metric), value)


def _report(found: Mapping[str, TeacherAgreement], held: Examples, top: int) -> dict[str, Any]:
    """The facts for comparing results, and for each teacher all scores and outputs."""
    texts = dict(zip(held.ids, held.texts, strict=True))
    predictions = next(iter(found.values())).student.predictions
    return {
        "texts": hash_of_texts(held),
        "labels": dict(zip(predictions.ids, predictions.labels.tolist(), strict=True)),
        "predictions": dict(zip(predictions.ids, predictions.predicted.tolist(), strict=True)),
        "top": top,
        "beside": {
            name: {
                "agreement": asdict(one.compared.agreement),
                "explanations": [asdict(each) for each in one.compared.explanations],
                "explained": {example: list(texts[example]) for example in one.teacher.classes},
                "teacher_answers": one.teacher.to_json(),
                "student_answers": one.student.to_json(),
            }
            for name, one in found.items()
        },
    }
