"""Options and their values formatted for readers: unset ones are omitted, values in YAML's spelling."""

from __future__ import annotations

import json
from collections.abc import Mapping

from stlm_kd.recipe.schema.objective import Schedule


def option_words(options: Mapping[str, object], *, without: tuple[str, ...] = ()) -> str:
    """The options that are set, in parentheses after a space; "" if there are none.

    >>> option_words({"tasks": ("blimp", "arc_easy"), "limit": None, "eps": 1e-08, "norms": False})
    ' (tasks blimp and arc_easy, eps 1e-08, norms off)'
    """
    shown = listed_options({name: value for name, value in options.items() if name not in without})
    return f" ({shown})" if shown else ""


def listed_options(options: Mapping[str, object]) -> str:
    """The options that are set and not empty; booleans are on or off.

    >>> listed_options({"patience": None, "bias_correction": True, "weights": {"a": 1.0, "b": 3.0}})
    'bias_correction on, weights {a: 1, b: 3}'
    """
    found = []
    for name, value in options.items():
        if isinstance(value, bool):
            found.append(f"{name} {'on' if value else 'off'}")
        elif value not in (None, (), [], {}):
            found.append(f"{name} {value_words(value)}")
    return ", ".join(found)


def value_words(value: object) -> str:
    """A number, a text, a list of these, or a schedule; mappings as in recipes.

    >>> value_words({0: (0, 1), 1: 2}), value_words((0.9, 0.95)), value_words(("blimp", "hellaswag", "mmlu"))
    ('{0: [0, 1], 1: 2}', '0.9 and 0.95', 'blimp, hellaswag and mmlu')
    """
    if isinstance(value, Schedule):
        return _schedule_words(value)
    if isinstance(value, (list, tuple)):
        *first, last = map(_as_written, value)
        return f"{', '.join(first)} and {last}" if first else last
    return _as_written(value)


def _as_written(value: object) -> str:
    """The value as in a recipe, on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_as_written(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_as_written, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _schedule_words(value: Schedule) -> str:
    given = " to ".join(f"{number:g}" for number in value.values)
    if value.between is not None:
        begin, end = value.between
        return f"{value.schedule} {given} from {begin:.0%} to {end:.0%} of the steps"
    return f"{given} at {', '.join(f'{share:.0%}' for share in value.at or ())} of the steps"
