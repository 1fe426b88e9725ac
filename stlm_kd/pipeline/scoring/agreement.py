"""The command ``agreement``: students beside their teacher on the same labelled examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from stlm_kd.artifacts.model_names import model_of
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.errors import DataError, UsageError, did_you_mean
from stlm_kd.eval.attribution.compare import compared
from stlm_kd.eval.attribution.explain import AttributionConfig, ClassifierOutputs, Method, ReadConfig
from stlm_kd.eval.classification.scoring import hash_of_texts
from stlm_kd.models.heads.class_names import is_unnamed, same_classes
from stlm_kd.models.heads.classifiers import class_names
from stlm_kd.models.load import load_config
from stlm_kd.pipeline.scoring.evaluate import held_out_of_run, read_held_out
from stlm_kd.pipeline.stages.classifier_outputs import cached_outputs
from stlm_kd.reporting.attribution_page import attribution_page
from stlm_kd.reporting.tables.agreement import Agreements


def agreements(
    teacher: str,
    students: Sequence[str],
    *,
    data: Sequence[str],
    text: Sequence[str],
    label: str,
    reading: ReadConfig,
    explaining: AttributionConfig,
    top: int,
    trust_remote_code: bool = False,
) -> Agreements:
    """How each student agrees with the teacher; every model reads by its own tokenizer.

    Args:
        teacher: A run, model folder or Hub id of a classifier.
        students: The same; different ones.
        data: Files of labelled examples; none: the validation examples of each model's own run, which have to
            be the same, or of the run of another where a model has none.
        text: The columns of the text, one or two.
        label: The column of the label.
        reading: How the models read the examples.
        explaining: Of which examples, and how, the models' decisions are explained, if at all.
        top: How many of the heaviest words of an explanation are compared.
        trust_remote_code: Whether models may run code that they bring.

    Raises:
        UsageError: A model given twice, or no examples.
        DataError: Other examples or classes, numbers in place of classes, or no such examples to explain.
        ModelError, MissingResourceError: As ``load_classifier``; or a package is not there.
    """
    names = [teacher, *students]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: given twice; name each model once")
    _require_same_classes(names)
    held = _of_data(names, data, tuple(text), label) if data else _of_runs(names)
    answers: list[ClassifierOutputs] = []
    for name in names:
        like = answers[0] if answers else None
        asked = (held[name], reading, explaining)
        answers.append(cached_outputs(name, *asked, model=name, trust=trust_remote_code, like=like))
    first = held[teacher]
    return Agreements(
        tuple(compared(answers[0], student, top=top) for student in answers[1:]),
        tuple(answers),
        dict(zip(first.ids, first.texts, strict=True)),
    )


def methods_of(names: Sequence[str]) -> tuple[Method, ...]:
    """The methods of these names.

    Raises:
        UsageError: Not one of them.
    """
    known = get_args(Method)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(f"--attributions: {name} is not known{hint}; known: {', '.join(known)}")
    return tuple(method for method in known if method in names)


def page_of(found: Agreements) -> str:
    """The explained examples as an HTML page."""
    return attribution_page(found.answers, found.found, found.texts)


def _require_same_classes(names: Sequence[str]) -> None:
    """Refuse models that name their classes differently, whose numbers may mean different things.

    Raises:
        DataError: There is such a pair.
    """
    classes = {name: class_names(load_config(model_of(name))) for name in names}
    first = next((name for name in names if not is_unnamed(classes[name])), names[0])
    for name, own in classes.items():
        if not same_classes(own, classes[first]):
            raise DataError(
                f"{name} and {first} cannot be compared: their classes are {', '.join(own)} and "
                f"{', '.join(classes[first])}; if these mean the same, give one the other's names "
                "(id2label in its config.json)"
            )


def _of_data(
    names: Sequence[str], data: Sequence[str], text: tuple[str, ...], label: str
) -> dict[str, Examples]:
    """The same examples for all, with the classes of the first model that names its own."""
    named = (name for name in names if not is_unnamed(class_names(load_config(model_of(name)))))
    examples = read_held_out(data, (text, label), next(named, names[0]), {"classification"})
    assert isinstance(examples, Examples)
    return dict.fromkeys(names, examples)


def _of_runs(names: Sequence[str]) -> dict[str, Examples]:
    """Each model's own validation examples; a model without a run gets those of the first that has one."""
    own = {name: found for name in names if (found := _of_run(name)) is not None}
    if not own:
        raise UsageError(f"{', '.join(names)}: none is of a run that has labelled examples; give --data FILE")
    first = next(iter(own))
    for name, examples in own.items():
        if hash_of_texts(examples) != hash_of_texts(own[first]):
            raise DataError(
                f"{name} and {first} cannot be compared: the validation examples of their runs are other "
                "texts, or have other ids; score both on the same: --data FILE"
            )
    return {name: own.get(name, own[first]) for name in names}


def _of_run(name: str) -> Examples | None:
    try:
        found = held_out_of_run(name)
    except UsageError:  # which says that it is of no run
        return None
    if not isinstance(found, Examples) or found.is_regression:
        raise UsageError(f"{name}: its run has no examples with classes, by which alone models agree or not")
    return found
