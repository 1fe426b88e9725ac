"""How lm-eval's multiple-choice tasks are reduced here: ties share the point.

lm-eval takes the first of the best choices. The right answer of a minimal pair is always the first, so that
a model which tells nothing apart would score 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import numpy.typing as npt

Row: TypeAlias = Mapping[str, Any]
"""An example of a task, whose columns are its own."""

BY_CHANCE = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info"})
"""Metrics of choices in which guessing scores 1 / the number of choices."""

_SURELY = 0.01
"""Honest models choose one place throughout less often than this, if their choices are independent."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a model chose in one example.

    Attributes:
        best: The places of the choices that it holds likeliest, several where they tie.
        choices: How many there are.
        right: The places that count as right.
    """

    best: tuple[int, ...]
    choices: int
    right: tuple[int, ...]


def shared_point(scores_C: npt.ArrayLike, right: Sequence[int]) -> float:
    """The share of the best choices that is right: 1 or 0 without ties, 1/k where one of k tied ones is.

    >>> shared_point([-2.0, -1.0, -1.0], [1]), shared_point([-2.0, -1.0, -3.0], [1])
    (0.5, 1.0)
    """
    best = _best(scores_C)
    return len(set(best) & set(right)) / len(best)


def choice(log_likelihoods_C: npt.ArrayLike, right: Sequence[int]) -> Choice:
    """What is chosen by these log-likelihoods."""
    return Choice(_best(log_likelihoods_C), len(np.asarray(log_likelihoods_C)), tuple(right))


def degenerate_choices(chosen: Sequence[Choice]) -> str | None:
    """What is to be said of a model that tells no choices apart, or None, as of a single example.

    All choices tie in all examples; or one place is chosen in all while the right ones vary, in more examples
    than an honest model would do so by chance. A minimal pair's right answer is always the first, so choosing
    it always is no sign.

    >>> degenerate_choices([Choice((0, 1), 2, (0,))] * 3)
    'degenerate: all choices tie in all 3 examples'
    >>> degenerate_choices([Choice((0,), 2, (0,))] * 300)
    >>> degenerate_choices([Choice((1,), 4, (index % 4,)) for index in range(300)])
    'degenerate: takes choice 2 in all 300 examples'
    """
    if len(chosen) < 2:
        return None
    if all(len(each.best) == each.choices > 1 for each in chosen):
        return f"degenerate: all choices tie in all {len(chosen):,} examples"
    first = chosen[0].best
    constant = len(first) == 1 and all(each.best == first for each in chosen)
    vary = len({each.right for each in chosen}) > 1
    by_chance = np.prod([1 / each.choices for each in chosen[1:]])
    if constant and vary and by_chance < _SURELY:
        return f"degenerate: takes choice {first[0] + 1} in all {len(chosen):,} examples"
    return None


@contextmanager
def ties_share_the_point(tasks: Mapping[str, Any]) -> Iterator[dict[str, list[Choice]]]:
    """While it is open, these tasks of lm-eval score choices as ``shared_point`` does.

    Their metrics ``acc``, ``acc_norm`` (by characters of a choice), ``acc_bytes`` and ``acc_mutual_info`` are
    replaced example by example; means, groups and standard errors stay lm-eval's.

    Yields:
        What was chosen, by task, filled as lm-eval goes along.
    """
    chosen: dict[str, list[Choice]] = {}
    with ExitStack() as patches:
        for name, task in tasks.items():
            if task.OUTPUT_TYPE == "multiple_choice" and not callable(task.config.process_results):
                process = _processing(task, chosen.setdefault(name, []))
                patches.enter_context(mock.patch.object(task, "process_results", process))
        yield chosen


def _processing(task: Any, chosen: list[Choice]) -> Any:  # lm-eval has no types
    of_lm_eval = task.process_results

    def process(doc: Row, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
        found: dict[str, Any] = of_lm_eval(doc, results)
        texts: Sequence[str] = task.doc_to_choice(doc)
        right = _right(task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc), texts)
        likelihoods = np.array([value for value, _ in results])
        own = _accuracies(likelihoods, texts, right)
        chosen.append(choice(likelihoods[: len(texts)], right))
        return found | {name: value for name, value in own.items() if name in found}

    return process


def _accuracies(
    likelihoods: npt.NDArray[np.float64], texts: Sequence[str], right: Sequence[int]
) -> dict[str, float]:
    size = len(texts)
    own, alone = likelihoods[:size], likelihoods[size:]
    found = {
        "acc": shared_point(own, right),
        "acc_norm": shared_point(own / [float(len(text)) for text in texts], right),
        "acc_bytes": shared_point(own / [float(len(text.encode())) for text in texts], right),
    }
    return found | ({"acc_mutual_info": shared_point(own - alone, right)} if len(alone) == size else {})


def _right(target: int | np.integer[Any] | str | Sequence[int], texts: Sequence[str]) -> tuple[int, ...]:
    """The places of the right answers; () where lm-eval finds none among the choices."""
    if isinstance(target, str):
        return (texts.index(target),) if target in texts else ()
    places = [target] if isinstance(target, int | np.integer) else list(target)
    return tuple(int(place) for place in places if 0 <= place < len(texts))


def _best(scores_C: npt.ArrayLike) -> tuple[int, ...]:
    scores = np.asarray(scores_C)
    return tuple(np.flatnonzero(scores == scores.max()).tolist())
