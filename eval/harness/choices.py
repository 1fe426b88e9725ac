"""Scoring of lm-eval's multiple-choice tasks, in which tied choices share the point.

lm-eval takes the first of the best choices. The correct answer of a minimal pair is always the first, so a
model that scores all choices equally would get an accuracy of 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from stlm_kd.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt


Row: TypeAlias = Mapping[str, Any]
"""An example of a task; columns depend on the task."""

BY_CHANCE = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info"})
"""Multiple-choice metrics whose chance level is 1 / the number of choices."""

_SURELY = 0.01
"""Significance level for a model that always chooses the same position, with independent choices."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A model's choice in one example: the indices of the most likely choices and of the correct ones."""

    best: tuple[int, ...]
    choices: int
    right: tuple[int, ...]


def shared_point(scores_C: npt.ArrayLike, right: Sequence[int]) -> float:
    """The fraction of the best choices that is correct: 0 or 1 without ties, 1/k if one of k tied ones is.

    >>> shared_point([-2.0, -1.0, -1.0], [1]), shared_point([-2.0, -1.0, -3.0], [1])
    (0.5, 1.0)
    """
    best = _best(scores_C)
    return len(set(best) & set(right)) / len(best)


def choice(log_likelihoods_C: npt.ArrayLike, right: Sequence[int]) -> Choice:
    """The choice that these log-likelihoods select."""
    return Choice(_best(log_likelihoods_C), len(np.asarray(log_likelihoods_C)), tuple(right))


def degenerate_choices(chosen: Sequence[Choice]) -> str | None:
    """A description of degenerate choices, or None; always None for a single example.

    Degenerate: all choices tie in all examples; or the same position is chosen in all examples although the
    correct ones vary, in more examples than plausible by chance. The correct answer of a minimal pair is
    always the first, so always choosing it is not degenerate.

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
    """Context in which these lm-eval tasks score choices with ``shared_point``.

    Yields the choices by task, filled while lm-eval runs. Replaces the per-example metrics ``acc``,
    ``acc_norm`` (by characters of a choice), ``acc_bytes`` and ``acc_mutual_info``; means, groups and
    standard errors stay lm-eval's.
    """
    from unittest import mock  # slow import; checking recipes does not need it

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
    """Indices of the correct answers; () if lm-eval finds none among the choices."""
    if isinstance(target, str):
        return (texts.index(target),) if target in texts else ()
    places = [target] if isinstance(target, int | np.integer) else list(target)
    return tuple(int(place) for place in places if 0 <= place < len(texts))


def _best(scores_C: npt.ArrayLike) -> tuple[int, ...]:
    scores = np.asarray(scores_C)
    return tuple(np.flatnonzero(scores == scores.max()).tolist())
