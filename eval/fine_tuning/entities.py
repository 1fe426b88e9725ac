"""Scores of entity recognition, with ``seqeval``: micro and macro F1 over entities, and accuracy of words.

Shapes: N sentences, K entity types, R resamples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from types import ModuleType

import numpy as np
import numpy.typing as npt

from stlm_kd.artifacts.results import ExampleScore, Score, SuiteResult
from stlm_kd.errors import MissingResourceError

RESAMPLES = 1000

Floats = npt.NDArray[np.float64]


def entity_scores(
    predicted: Sequence[Sequence[str]],
    labels: Sequence[Sequence[str]],
    *,
    task: str,
    ids: Sequence[str],
    suite: str,
) -> SuiteResult:
    """Micro and macro F1 of entities and accuracy of words; standard errors by bootstrap over sentences.

    An entity is correct if type, beginning and end are (Tjong Kim Sang and De Meulder, "Introduction to the
    CoNLL-2003 Shared Task", 2003). The values are seqeval's in its default mode, which reads tags as the
    task's own script does; macro averages over the types that occur or are predicted.

    Args:
        predicted: For each sentence, a tag (``O``, ``B-PER``) for every word.
        labels: The labels.
        task: The task's name in the result.
        ids: The sentence ids.
        suite: The suite's name.

    Raises:
        MissingResourceError: seqeval is not installed.
    """
    metrics = seqeval()
    truth, found = [list(tags) for tags in labels], [list(tags) for tags in predicted]
    by_kind = entities_by_kind(found, truth)
    counts_N3K = entity_counts(by_kind, kinds_in(by_kind))
    words_N = np.array([len(tags) for tags in truth], np.float64)
    right_N = np.array(
        [sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(truth, found, strict=True)],
        np.float64,
    )
    weights_RN = _weights(len(truth))
    values = {
        "entity_f1": float(metrics.f1_score(truth, found, average="micro", zero_division=0)),
        "entity_macro_f1": (
            float(metrics.f1_score(truth, found, average="macro", zero_division=0))
            if counts_N3K.any()
            else 0.0  # seqeval's mean over no entities is NaN
        ),
        "accuracy": float(metrics.accuracy_score(truth, found)),
    }
    drawn_R3K = np.tensordot(weights_RN, counts_N3K, axes=1)
    resampled = {
        "entity_f1": micro_f1(drawn_R3K),
        "entity_macro_f1": macro_f1(drawn_R3K),
        "accuracy": (weights_RN @ right_N) / np.maximum(weights_RN @ words_N, 1),
    }
    spread = {name: float(drawn.std(ddof=1)) for name, drawn in resampled.items()} if len(truth) > 1 else {}
    return SuiteResult(
        suite,
        tuple(Score(task, name, value, spread.get(name), len(truth)) for name, value in values.items()),
        tuple(
            ExampleScore(task, name, "accuracy", share)
            for name, share in zip(ids, (right_N / words_N).tolist(), strict=True)
        ),
        report={
            "task": task,
            "words": int(words_N.sum()),
            "entities": {
                name: {kind: [*counts] for kind, counts in kinds.items()}
                for name, kinds in zip(ids, by_kind, strict=True)
            },
        },
    )


def seqeval() -> ModuleType:
    """The metrics of seqeval.

    Raises:
        MissingResourceError: It is not installed.
    """
    try:
        return import_module("seqeval.metrics")
    except ImportError as error:
        raise MissingResourceError(
            "ner: the package seqeval is not installed; pip install 'stlm-kd[eval]'"
        ) from error


def micro_f1(counts_R3K: Floats) -> Floats:
    """F1 over all types together, (R,), from the counts of correct, predicted and labelled entities."""
    right_R, predicted_R, labelled_R = counts_R3K.sum(2).T
    f1: Floats = 2 * right_R / np.maximum(predicted_R + labelled_R, 1)
    return f1


def macro_f1(counts_R3K: Floats) -> Floats:
    """The mean F1 over the types that occur or are predicted, (R,)."""
    sizes_RK = counts_R3K[:, 1] + counts_R3K[:, 2]
    f1_RK = 2 * counts_R3K[:, 0] / np.maximum(sizes_RK, 1)
    mean: Floats = f1_RK.sum(1) / np.maximum((sizes_RK > 0).sum(1), 1)
    return mean


def entities_by_kind(
    predicted: Sequence[list[str]], labels: Sequence[list[str]]
) -> list[dict[str, tuple[int, int, int]]]:
    """For each sentence, by type, the numbers of correct, predicted and labelled entities."""
    entities_of = import_module("seqeval.metrics.sequence_labeling").get_entities
    found = []
    for a, b in zip(predicted, labels, strict=True):
        proposed, truth = set(entities_of(a)), set(entities_of(b))
        counted = [
            Counter(entity[0] for entity in entities) for entities in (proposed & truth, proposed, truth)
        ]
        right, all_predicted, all_true = counted
        found.append(
            {
                kind: (right[kind], all_predicted[kind], all_true[kind])
                for kind in sorted({*all_predicted, *all_true})
            }
        )
    return found


def entity_counts(counts_N: Sequence[Mapping[str, Sequence[float]]], kinds: Sequence[str]) -> Floats:
    """The counts of ``entities_by_kind`` as an array, (N, 3, K); K is 1 if there are no types."""
    counts_N3K = np.zeros((len(counts_N), 3, max(len(kinds), 1)))
    for row, counts in enumerate(counts_N):
        for kind, values in counts.items():
            counts_N3K[row, :, kinds.index(kind)] = values
    return counts_N3K


def kinds_in(counts_N: Iterable[Mapping[str, Sequence[float]]]) -> list[str]:
    """The entity types that occur or are predicted, sorted."""
    return sorted({kind for counts in counts_N for kind in counts})


def _weights(size: int) -> Floats:
    """How often each sentence is drawn, (R, N); the same on every call."""
    drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=RESAMPLES)
    return drawn.astype(np.float64)
