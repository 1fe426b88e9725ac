"""The command ``agreement``: compare students with their teacher on the same labelled examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from stlm_kd.artifacts.run_dir import model_of
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
    """Measure each student's agreement with the teacher; every model uses its own tokenizer.

    Args:
        teacher: A run, model folder or Hub id of a classifier.
        students: Further ones, all different.
        data: Files of labelled examples; empty for the validation examples of the models' runs, which must be
            the same (a model without a run uses another model's).
        text: The columns of the text, one or two.
        label: The column of the label.
        reading: How to encode the examples.
        explaining: Which examples to explain and how, if any.
        top: Number of top words of an explanation to compare.
        trust_remote_code: Whether to run code shipped with a model.

    Raises:
        UsageError: A model is given twice, or there are no examples.
        DataError: Examples or classes differ, labels are numbers, or an example to explain does not exist.
        ModelError, MissingResourceError: As ``load_classifier``; or a package is missing.
    """
    names = [teacher, *students]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: given twice; name each model once")
    _require_same_classes(names)
    held = _of_data(names, data, tuple(text), label) if data else _of_runs(names)
    outputs: list[ClassifierOutputs] = []
    for name in names:
        like = outputs[0] if outputs else None
        inputs = (held[name], reading, explaining)
        outputs.append(cached_outputs(name, *inputs, model=name, trust=trust_remote_code, like=like))
    first = held[teacher]
    return Agreements(
        tuple(compared(outputs[0], student, top=top) for student in outputs[1:]),
        tuple(outputs),
        dict(zip(first.ids, first.texts, strict=True)),
    )


def methods_of(names: Sequence[str]) -> tuple[Method, ...]:
    """The attribution methods with these names.

    Raises:
        UsageError: A name is unknown.
    """
    known = get_args(Method)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(f"--attributions: {name} is not known{hint}; known: {', '.join(known)}")
    return tuple(method for method in known if method in names)


def _require_same_classes(names: Sequence[str]) -> None:
    """Check that all models have the same class names, so that class indices are comparable.

    Raises:
        DataError: Two models have different class names.
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
    """The same examples for all models, with the class names of the first model that has any."""
    named = (name for name in names if not is_unnamed(class_names(load_config(model_of(name)))))
    examples = read_held_out(data, (text, label), next(named, names[0]), {"classification"})
    assert isinstance(examples, Examples)
    return dict.fromkeys(names, examples)


def _of_runs(names: Sequence[str]) -> dict[str, Examples]:
    """Each model's validation examples; a model without a run uses those of the first with one."""
    own = {name: found for name in names if (found := _of_run(name)) is not None}
    if not own:
        raise UsageError(
            f"{', '.join(names)}: none belongs to a run with labelled examples; give --data FILE"
        )
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
    except UsageError:  # the model belongs to no run
        return None
    if not isinstance(found, Examples) or found.is_regression:
        raise UsageError(
            f"{name}: its run has no examples with classes, which agreement needs; give --data FILE"
        )
    return found
