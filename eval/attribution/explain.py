"""Predictions of a classifier, and word attributions for some. Shapes: N examples, C classes, S texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import TypeAdapter

from stlm_kd.data.labelled.examples import Examples
from stlm_kd.eval.agreement.report import Predictions
from stlm_kd.eval.attribution.integrated_gradients import integrated_gradients
from stlm_kd.eval.attribution.lime import Predict, draws_of, lime_weights
from stlm_kd.eval.attribution.select import Choice, chosen
from stlm_kd.eval.attribution.words import Weights, words_of
from stlm_kd.eval.classification.scoring import logits_of, longest_read
from stlm_kd.lazy import np, special

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Method = Literal["lime", "integrated-gradients"]

Floats: TypeAlias = "npt.NDArray[np.float64]"


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """How models read examples: maximum tokens, examples per forward pass, precision."""

    context: int | None = None
    batch_size: int = 64
    precision: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True, slots=True)
class AttributionConfig:
    """Which attributions to compute, for which examples.

    LIME: ``samples`` distinct perturbed texts, and at most ``features`` words with a weight (None: all).
    Integrated gradients: ``steps`` points of the integral.
    """

    methods: tuple[Method, ...] = ()
    choice: Choice = field(default_factory=Choice)
    features: int | None = None
    samples: int = 500
    steps: int = 50


@dataclass(frozen=True, slots=True)
class ClassifierOutputs:
    """Predictions for all examples; the class explained for some, by id; weights by method, then by id."""

    predictions: Predictions
    classes: Mapping[str, int]
    weights: Mapping[Method, Mapping[str, Weights]]

    def to_json(self) -> dict[str, Any]:
        """Everything but the model's name, ready for ``json.dumps``; ``from_json`` is the inverse."""
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
        """Restore the output of ``to_json`` for a model of this name."""
        predictions = Predictions(
            name,
            tuple(content["ids"]),
            np.array(content["labels"], np.int64),
            np.array(content["logits"], np.float64),
            tuple(content["names"]),
        )
        return cls(predictions, dict(content["classes"]), _WEIGHTS.validate_python(content["weights"]))


_WEIGHTS: TypeAdapter[dict[Method, dict[str, Weights]]] = TypeAdapter(dict[Method, dict[str, Weights]])


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
    """Compute a model's predictions for at least two examples, and attributions.

    With ``like``, a teacher's outputs, it explains the same examples and classes. Without, examples are
    selected by the config; with two classes the second is explained, with more the predicted one.

    Raises DataError if a logit is not finite, or as ``select.chosen``, and MissingResourceError if a package
    that a method or a text needs is not installed.
    """
    logits_NC = logits_of(model, tokenizer, examples, **asdict(reading))
    labels_N = np.asarray(examples.labels, np.int64)
    predictions = Predictions(name, examples.ids, labels_N, logits_NC, examples.label_names)
    if not explaining.methods:
        return ClassifierOutputs(predictions, {}, {})
    classes = _classes(predictions, examples, explaining.choice) if like is None else like.classes
    places = {example: place for place, example in enumerate(examples.ids)}
    texts = {example: examples.texts[places[example]] for example in classes}
    context = longest_read(model, reading.context)

    def predict(perturbed: Sequence[tuple[str, ...]]) -> Floats:
        ids = tuple(map(str, range(len(perturbed))))
        variants = Examples(tuple(perturbed), np.zeros(len(ids), np.int64), ids, examples.label_names)
        logits_SC = logits_of(model, tokenizer, variants, **asdict(reading))
        return np.asarray(special.softmax(logits_SC, axis=1), np.float64)

    explainers: dict[Method, Callable[[tuple[str, ...], int], Weights]] = {
        "lime": lambda of, target: _by_lime(predict, of, target, explaining),
        "integrated-gradients": lambda of, target: integrated_gradients(
            model, tokenizer, of, words_of(of), target, steps=explaining.steps, context=context
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
    """The explained examples, each with its explained class."""
    predicted = dict(zip(teacher.ids, teacher.predicted.tolist(), strict=True))
    ids = chosen(teacher, examples, choice)
    return {name: 1 if len(teacher.classes) == 2 else predicted[name] for name in ids}


def _by_lime(predict: Predict, texts: tuple[str, ...], target: int, explaining: AttributionConfig) -> Weights:
    words = words_of(texts)
    first, samples = explaining.choice.seed, explaining.samples
    seeds = [first] if draws_of(len(words), samples) == 2 ** len(words) else [first, first + 1]
    found = [
        lime_weights(predict, texts, words, target, samples=samples, features=explaining.features, seed=seed)
        for seed in seeds
    ]
    return Weights(tuple(found[0].tolist()), tuple(found[-1].tolist()))
