"""The command ``agreement``: compare students with their teacher on the same labelled examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from types import MappingProxyType
from typing import Any

from stlm_kd.artifacts.run_dir import model_of
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.errors import DataError, UsageError
from stlm_kd.eval.agreement.suite import SUITE
from stlm_kd.eval.attribution.compare import compared
from stlm_kd.eval.attribution.explain import AttributionConfig, ClassifierOutputs, ReadConfig
from stlm_kd.eval.attribution.select import Choice
from stlm_kd.eval.classification.scoring import hash_of_texts
from stlm_kd.models.heads.class_names import is_unnamed, same_classes
from stlm_kd.models.heads.classifiers import class_names
from stlm_kd.models.load import load_config
from stlm_kd.pipeline.scoring.evaluate import held_out_of_run, read_held_out
from stlm_kd.pipeline.stages.classifier_outputs import cached_outputs
from stlm_kd.recipe.suites import suite_options
from stlm_kd.reporting.tables.agreement import Agreements


def agreement(
    teacher: str | PathLike[str],
    students: Sequence[str | PathLike[str]],
    *,
    data: Sequence[str | PathLike[str]] = (),
    text: Sequence[str] = ("sentence",),
    label: str = "label",
    options: Mapping[str, Any] = MappingProxyType({}),
    trust_remote_code: bool = False,
) -> Agreements:
    """Each student's agreement with the teacher on the same examples; every model uses its own tokenizer.

    Args:
        teacher: A run, model folder or Hub id of a classifier.
        students: Further ones, all different.
        data: Files of labelled examples; empty for the validation examples of the models' runs, which must be
            the same (a model without a run uses another model's).
        text: The columns of the text, one or two.
        label: The column of the label.
        options: Of the suite ``agreement``, such as ``{"attributions": ["lime"], "examples": 20}``; default:
            no word attributions.
        trust_remote_code: Whether to run code shipped with a model.

    Raises:
        UsageError: A model is given twice, there are no examples, or an option is unknown.
        DataError: Examples or classes differ, labels are numbers, or an example to explain does not exist.
        ModelError, MissingResourceError: As ``load_classifier``; or a package is missing.
    """
    chosen = suite_options(SUITE, options)
    reading, explaining = _configs(chosen)
    names = [fspath(teacher), *(fspath(student) for student in students)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: given twice; name each model once")
    _require_same_classes(names)
    files = [fspath(file) for file in data]
    held = _of_data(names, files, tuple(text), label) if files else _of_runs(names)
    outputs: list[ClassifierOutputs] = []
    for name in names:
        like = outputs[0] if outputs else None
        inputs = (held[name], reading, explaining)
        outputs.append(cached_outputs(name, *inputs, model=name, trust=trust_remote_code, like=like))
    first = held[names[0]]
    return Agreements(
        tuple(compared(outputs[0], student, top=chosen["top"]) for student in outputs[1:]),
        tuple(outputs),
        dict(zip(first.ids, first.texts, strict=True)),
    )


def _configs(options: Mapping[str, Any]) -> tuple[ReadConfig, AttributionConfig]:
    """How to read examples, and which to explain, by the suite's options."""
    ids, classes = (tuple(map(str, options[name])) for name in ("ids", "classes"))
    sources, methods = tuple(options["sources"]), tuple(options["attributions"])
    choice = Choice(options["examples"], ids, options["which"], classes, sources, options["seed"])
    explaining = AttributionConfig(
        methods, choice, options.get("features"), options["samples"], options["steps"]
    )
    return ReadConfig(options.get("context"), options["batch_size"], options["precision"]), explaining


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
