"""What a classifier says of examples, and what it makes of the words of some of them.

Shapes: N examples, C classes, W words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from stlm_kd.data.labelled.examples import Examples
from stlm_kd.eval.agreement.report import Predictions
from stlm_kd.eval.attribution.integrated_gradients import integrated_gradients, integrator
from stlm_kd.eval.attribution.lime import draws_of, lime_weights, surrogate
from stlm_kd.eval.attribution.select import Choice, chosen
from stlm_kd.eval.attribution.words import words_of
from stlm_kd.eval.classification.scoring import logits_of, longest_read

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Method = Literal["lime", "integrated-gradients"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """How models read examples: tokens of one at most, examples of one forward pass, and in what."""

    context: int | None = None
    batch_size: int = 64
    precision: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True, slots=True)
class AttributionConfig:
    """Which explanations are wanted.

    Attributes:
        methods: None of them: nothing is explained.
        choice: Of which examples.
        features: LIME: so many words at most get a weight; None: all.
        samples: LIME: perturbed texts, all different.
        steps: Integrated gradients: points of the integral.
    """

    methods: tuple[Method, ...] = ()
    choice: Choice = field(default_factory=Choice)
    features: int | None = None
    samples: int = 500
    steps: int = 50


@dataclass(frozen=True, slots=True)
class Weights:
    """What a model makes of each word of an example, for one class.

    Attributes:
        values: (W,).
        again: LIME: the same by another draw; equal to ``values`` where all perturbations are there.
        missing: Of integrated gradients: the nats by which the weights do not add up.
        change: Of integrated gradients: what they should add up to.
    """

    values: tuple[float, ...]
    again: tuple[float, ...] | None = None
    missing: float | None = None
    change: float | None = None


@dataclass(frozen=True, slots=True)
class ClassifierOutputs:
    """What one model says, and why.

    Attributes:
        predictions: Of all examples.
        classes: Of each explained example by its id, the class that is explained, by its place.
        weights: By method, then by id.
    """

    predictions: Predictions
    classes: Mapping[str, int]
    weights: Mapping[Method, Mapping[str, Weights]]

    def to_json(self) -> dict[str, Any]:
        """Everything but the name of the model, ready for ``json.dumps``; ``from_json`` reads it back."""
        found = self.predictions
        return {
            "ids": list(found.ids),
            "labels": found.labels.tolist(),
            "logits": found.logits.tolist(),
            "names": list(found.classes),
            "classes": dict(self.classes),
            "weights": {
                method: {name: asdict(one) for name, one in of.items()} for method, of in self.weights.items()
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, name: str) -> ClassifierOutputs:
        """What ``to_json`` made, of a model of this name."""
        predictions = Predictions(
            name,
            tuple(content["ids"]),
            np.array(content["labels"], np.int64),
            np.array(content["logits"], np.float64),
            tuple(content["names"]),
        )
        weights: dict[Method, dict[str, Weights]] = {
            method: {key: _weights(one) for key, one in of.items()}
            for method, of in content["weights"].items()
        }
        return cls(predictions, dict(content["classes"]), weights)


def check_packages(methods: Sequence[Method]) -> None:
    """Look for what the methods need.

    Raises:
        MissingResourceError: A package is not there.
    """
    packages: dict[Method, Callable[[], object]] = {"lime": surrogate, "integrated-gradients": integrator}
    for method in methods:
        packages[method]()


def _weights(content: Mapping[str, Any]) -> Weights:
    again = content["again"]
    return Weights(
        tuple(content["values"]),
        None if again is None else tuple(again),
        content["missing"],
        content["change"],
    )


def classifier_outputs(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Examples,
    reading: ReadConfig,
    explaining: AttributionConfig,
    *,
    like: ClassifierOutputs | None = None,
) -> ClassifierOutputs:
    """What a model says of the examples.

    Args:
        name: What it is called.
        model: A classifier of the examples' classes.
        tokenizer: What it reads by.
        examples: At least two.
        reading: How it reads them.
        explaining: What is explained.
        like: A teacher's answers: the same examples and classes are explained. Without them the examples
            are chosen, and of two classes the second is explained, of more the predicted one.

    Raises:
        DataError: A logit is not finite; or as ``choosing.chosen``.
        MissingResourceError: A package that a method needs is not there.
    """
    logits_NC = logits_of(model, tokenizer, examples, **asdict(reading))
    labels_N = np.asarray(examples.labels, np.int64)
    predictions = Predictions(name, examples.ids, labels_N, logits_NC, examples.label_names)
    if not explaining.methods:
        return ClassifierOutputs(predictions, {}, {})
    classes = _classes(predictions, examples, explaining.choice) if like is None else like.classes
    places = {example: place for place, example in enumerate(examples.ids)}
    texts = {example: examples.texts[places[example]] for example in classes}
    explainers: dict[Method, Callable[[tuple[str, ...], int], Weights]] = {
        "lime": lambda of, target: _by_lime(model, tokenizer, examples, of, target, reading, explaining),
        "integrated-gradients": lambda of, target: _by_gradients(
            model, tokenizer, of, target, reading, explaining
        ),
    }
    return ClassifierOutputs(
        predictions,
        classes,
        {
            method: {example: explainers[method](of, classes[example]) for example, of in texts.items()}
            for method in dict.fromkeys(explaining.methods)
        },
    )


def _classes(teacher: Predictions, examples: Examples, choice: Choice) -> dict[str, int]:
    """The examples that are explained, each with the class that is."""
    predicted = dict(zip(teacher.ids, teacher.predicted.tolist(), strict=True))
    ids = chosen(teacher, examples, choice)
    return {name: 1 if len(teacher.classes) == 2 else predicted[name] for name in ids}


def _by_lime(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Examples,
    texts: tuple[str, ...],
    target: int,
    reading: ReadConfig,
    explaining: AttributionConfig,
) -> Weights:
    def predict(perturbed: Sequence[tuple[str, ...]]) -> Floats:
        size = len(perturbed)
        ids = tuple(str(place) for place in range(size))
        asked = Examples(tuple(perturbed), np.zeros(size, np.int64), ids, examples.label_names)
        return np.asarray(softmax(logits_of(model, tokenizer, asked, **asdict(reading)), axis=1), np.float64)

    words = words_of(texts)
    first, samples = explaining.choice.seed, explaining.samples
    seeds = [first] if draws_of(len(words), samples) == 2 ** len(words) else [first, first + 1]
    found = [
        lime_weights(predict, texts, words, target, samples=samples, features=explaining.features, seed=seed)
        for seed in seeds
    ]
    return Weights(tuple(found[0].tolist()), tuple(found[-1].tolist()))


def _by_gradients(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: tuple[str, ...],
    target: int,
    reading: ReadConfig,
    explaining: AttributionConfig,
) -> Weights:
    context = longest_read(model, reading.context)
    found = integrated_gradients(
        model, tokenizer, texts, words_of(texts), target, steps=explaining.steps, context=context
    )
    return Weights(tuple(found.weights.tolist()), None, found.delta, found.change)
