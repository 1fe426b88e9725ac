"""Notes on scores: degenerate predictions, chance level, detectable differences."""

from __future__ import annotations

from collections.abc import Iterable

from stlm_kd.artifacts.results import Score


def warning_notes(scores: Iterable[Score]) -> list[str]:
    """Notes on degenerate predictions, by task, and on metrics that are not better than chance.

    Of several seeds of a training, all must be at chance.

    >>> warning_notes([Score("t", "acc", value, 0.1, 25, chance=0.5) for value in (0.6, 0.4)])
    ['t acc: not better than chance (0.500) within the 95% interval']
    >>> warning_notes([Score("t", "acc", value, 0.1, 25, chance=0.5) for value in (0.6, 0.8)])
    []
    """
    found: dict[str, None] = {}
    at_chance: dict[str, bool] = {}
    for score in scores:
        if score.degenerate:
            found[f"{score.task}: {score.degenerate}"] = None
        elif score.chance is not None:
            note = f"{score.task} {score.metric}: not better than chance ({score.chance:.3f})"
            at_chance[note] = at_chance.get(note, True) and score.is_at_chance
    return [*found, *(f"{note} within the 95% interval" for note, is_so in at_chance.items() if is_so)]


def reading_notes(scores: Iterable[Score]) -> list[str]:
    """Notes on how to read a table: what brackets contain, and which differences are detectable.

    >>> reading_notes([Score("t", "acc", 0.5, 0.01, 100, chance=0.5)])[1]
    'detectable difference of two models (paired test, .05, power .8, independent errors): t acc 0.040'
    """
    found: dict[str, float] = {}
    centred = False
    for score in scores:
        centred = centred or score.centred is not None
        if score.detectable is not None:
            name = f"{score.task} {score.metric}"
            found[name] = max(found.get(name, 0.0), score.detectable)
    notes = ["in brackets: centred on chance, (score - chance) / (1 - chance)"] if centred else []
    if found:
        listed = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        what = "paired test, .05, power .8, independent errors"
        notes.append(f"detectable difference of two models ({what}): {listed}")
    return notes


def addition(score: Score) -> str:
    """The suffix of a score in tables: the score centred on chance, and whether it is degenerate.

    >>> addition(Score("t", "acc", 0.5, None, 100, chance=0.25, degenerate="degenerate: all choices tie"))
    ' (+0.333) degenerate'
    """
    centred = "" if score.centred is None else f" ({score.centred:+.3f})"
    return f"{centred}{' degenerate' if score.degenerate else ''}"
