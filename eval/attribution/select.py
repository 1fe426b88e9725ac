"""Selects the examples to explain: by id, at random, or by the teacher's loss. Shapes: N examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from stlm_kd.data.labelled.examples import Examples
from stlm_kd.errors import DataError, did_you_mean
from stlm_kd.eval.agreement.report import Predictions
from stlm_kd.eval.attribution.words import words_of
from stlm_kd.lazy import np, special

if TYPE_CHECKING:
    import numpy.typing as npt


Which = Literal["random", "easy", "hard", "easy-and-hard"]

Integers: TypeAlias = "npt.NDArray[np.int64]"


@dataclass(frozen=True, slots=True)
class Choice:
    """The selection of examples, at most ``examples``: with ``ids``, only these.

    ``which``: ``random``; ``easy`` or ``hard``: lowest or highest loss of the teacher; ``easy-and-hard``: the
    same number for each class, half easy and half hard (the attention study selects its four sentences so, by
    annotators' opinions). Only examples of ``classes``, and whose column ``source`` has one of the values
    ``sources`` (CoLA's out-of-domain sentences are clc95, c-05, j_71, s_97, swb04 and w_80); (): all.
    """

    examples: int = 100
    ids: tuple[str, ...] = ()
    which: Which = "random"
    classes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    seed: int = 0


def chosen(teacher: Predictions, examples: Examples, choice: Choice) -> tuple[str, ...]:
    """The ids of the selected examples: random ones in their order, others easiest or hardest first.

    Excludes examples without a word. Raises DataError if an id, class or source does not exist, or fewer than
    two examples are left.
    """
    if choice.ids:
        places = np.array(list(_named(choice.ids, examples)), np.int64)
    else:
        places = _chosen_places(teacher.ordered(examples.ids), examples, choice)
    if len(places) < 2:
        raise DataError(
            f"{len(places)} of {len(examples)} examples have the given classes and sources, expected at "
            "least two; choose other classes or sources"
        )
    return tuple(examples.ids[place] for place in places)


def _named(ids: Sequence[str], examples: Examples) -> Iterator[int]:
    places = {name: place for place, name in enumerate(examples.ids)}
    for name in dict.fromkeys(ids):
        if name not in places:
            raise DataError(
                f"example {name}: none of {len(examples)} examples has this id{did_you_mean(name, places)}"
            )
        if not words_of(examples.texts[places[name]]):
            raise DataError(f"example {name}: its text has no word to explain; choose another")
        yield places[name]


def _chosen_places(teacher: Predictions, examples: Examples, choice: Choice) -> Integers:
    candidates = np.flatnonzero(_selected(examples, choice))
    count = min(choice.examples, len(candidates))
    if choice.which == "random":
        drawn = np.random.default_rng(choice.seed).permutation(candidates)[:count]
        return np.asarray(np.sort(drawn), np.int64)
    loss_N = -special.log_softmax(teacher.logits, axis=1)[np.arange(len(examples)), teacher.labels]
    ranked = candidates[np.argsort(loss_N[candidates], kind="stable")]
    if choice.which == "easy":
        return ranked[:count]
    if choice.which == "hard":
        return ranked[::-1][:count]
    return np.array(list(_both_ends(ranked, teacher.labels, choice.examples)), np.int64)


def _both_ends(ranked: Integers, labels_N: Integers, count: int) -> Iterator[int]:
    """The easiest, then the hardest of each class, ``count`` in total if available."""
    classes = np.unique(labels_N[ranked])
    each = max(1, count // (2 * len(classes)))
    for label in classes:
        own = ranked[labels_N[ranked] == label]
        yield from own[:each]
        yield from own[::-1][: min(each, max(0, len(own) - each))]


def _selected(examples: Examples, choice: Choice) -> npt.NDArray[np.bool_]:
    """Examples of the selected classes and sources that have words, (N,)."""
    found_N = np.array([bool(words_of(texts)) for texts in examples.texts])
    if choice.classes:
        _require_known("class", choice.classes, examples.label_names)
        wanted = [examples.label_names.index(name) for name in choice.classes]
        found_N &= np.isin(examples.labels, wanted)
    if choice.sources:
        _require_known("source", choice.sources, sorted({name for name in examples.sources if name}))
        found_N &= np.isin(np.array(examples.sources, np.str_), choice.sources)
    return found_N


def _require_known(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            there = f"known: {', '.join(known)}" if known else "they have no column of that name"
            raise DataError(f"{what} {name}: no example has it{did_you_mean(name, known)}; {there}")
