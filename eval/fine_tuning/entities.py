"""Scores of entity recognition: micro and macro F1 over entities, and accuracy of words.

Shapes: N sentences, K entity types, R resamples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from stlm_kd.artifacts.results import Score, SuiteResult
from stlm_kd.eval.classification.metrics import RESAMPLES, deviation, example_scores, mean_f1
from stlm_kd.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt


Floats: TypeAlias = "npt.NDArray[np.float64]"


def entity_scores(
    predicted: Sequence[Sequence[str]],
    labels: Sequence[Sequence[str]],
    *,
    task: str,
    ids: Sequence[str],
    suite: str,
) -> SuiteResult:
    """Micro and macro F1 of entities and accuracy of words; standard errors by bootstrap over sentences.

    ``predicted`` and ``labels`` have a tag (``O``, ``B-PER``) for every word of each sentence. An entity is
    correct if type, beginning and end are (Tjong Kim Sang and De Meulder, "Introduction to the CoNLL-2003
    Shared Task", 2003). Tags are read as by the task's own script, and by the package ``seqeval`` in its
    default mode; macro averages over the types that occur or are predicted.
    """
    words_N = np.array([len(tags) for tags in labels], np.float64)
    right_N = np.array(
        [sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(labels, predicted, strict=True)],
        np.float64,
    )
    by_kind = entities_by_kind(predicted, labels)
    return scores_of_counts(by_kind, words_N, right_N, task=task, ids=ids, suite=suite)


def scores_of_counts(
    by_kind: Sequence[Mapping[str, Sequence[float]]],
    words_N: Floats,
    right_N: Floats,
    *,
    task: str,
    ids: Sequence[str],
    suite: str,
) -> SuiteResult:
    """As ``entity_scores``, from each sentence's ``entities_by_kind``, words, and words tagged right."""
    counts_N3K, size = entity_counts(by_kind, kinds_in(by_kind)), len(ids)
    drawn_RN = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=RESAMPLES)
    weights_RN = np.vstack([np.ones(size), drawn_RN])  # all sentences, then the resamples
    sums_R3K = np.tensordot(weights_RN, counts_N3K, axes=1)
    found = {
        "entity_f1": micro_f1(sums_R3K),
        "entity_macro_f1": macro_f1(sums_R3K),
        "accuracy": (weights_RN @ right_N) / (weights_RN @ words_N),
    }
    return SuiteResult(
        suite,
        tuple(
            Score(task, name, float(values_R[0]), deviation(values_R[1:], size), size)
            for name, values_R in found.items()
        ),
        example_scores(task, "accuracy", ids, right_N / words_N),
        report={
            "task": task,
            "words": int(words_N.sum()),
            "entities": {
                name: {kind: [*counts] for kind, counts in kinds.items()}
                for name, kinds in zip(ids, by_kind, strict=True)
            },
        },
    )


def micro_f1(counts_R3K: Floats) -> Floats:
    """F1 over all types together, (R,), from the counts of correct, predicted and labelled entities."""
    return macro_f1(counts_R3K.sum(2, keepdims=True))


def macro_f1(counts_R3K: Floats) -> Floats:
    """The mean F1 over the types that occur or are predicted, (R,)."""
    return mean_f1(counts_R3K[:, 0], counts_R3K[:, 1] + counts_R3K[:, 2])


def entities_by_kind(
    predicted: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]
) -> list[dict[str, tuple[int, int, int]]]:
    """For each sentence, by type, the numbers of correct, predicted and labelled entities."""
    found = []
    for pair in zip(predicted, labels, strict=True):
        proposed, truth = map(entities_in, pair)
        right, all_predicted, all_true = (
            Counter(kind for kind, *_ in entities) for entities in (proposed & truth, proposed, truth)
        )
        kinds = sorted({*all_predicted, *all_true})
        found.append({kind: (right[kind], all_predicted[kind], all_true[kind]) for kind in kinds})
    return found


def entities_in(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Type, first and last word of each entity; an ``I-`` that continues none of its type begins one.

    >>> sorted(entities_in(["I-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-ORG"]))
    [('LOC', 3, 3), ('LOC', 4, 4), ('ORG', 5, 5), ('PER', 0, 1)]
    """
    found: list[tuple[str, int, int]] = []
    before = "O"
    for place, tag in enumerate(tags):
        kind = tag[2:]
        if tag.startswith("I-") and before[2:] == kind:
            found[-1] = (kind, found[-1][1], place)
        elif tag != "O":
            found.append((kind, place, place))
        before = tag
    return set(found)


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
