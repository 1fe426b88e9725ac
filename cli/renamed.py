"""Options of earlier releases, accepted for one more release: each with what replaces it."""

from __future__ import annotations

import shlex

from stlm_kd.cli.console import say
from stlm_kd.distributed import process_rank

_ADAPT = "init objective tokens learning-rate effective-batch micro-batch precision seed"
_AGREEMENT = "context precision examples which features samples steps top seed"


def _each(options: str, form: str) -> dict[str, str]:
    return {f"--{one}": form.format(one.replace("-", "_")) for one in options.split()}


RENAMED = {
    "adapt-teacher": {
        **_each(_ADAPT, "teachers[0].adapt.{}={{}}"),
        "--task": "task={}",
        "--context": "data.context={}",
    },
    "eval": _each("seeds fraction preset", "{}={{}}"),
    "agreement": {**_each(_AGREEMENT, "{}={{}}"), **_each("ids classes sources", "{}=[{{}}]")},
    "interchange": _each("alignment source positions rows context seed", "{}={{}}"),
}
"""By command: the change of the recipe, or the suite's option for ``--set``, that replaces an option."""


def current_arguments(command: str, arguments: list[str]) -> list[str]:
    """The arguments with options of earlier releases replaced; a warning for each.

    >>> current_arguments("eval", ["m", "--suite=glue", "--seeds", "3"])
    ['m', '--suite=glue', '--set', 'seeds=3']
    """
    renamed, found, rest = RENAMED.get(command, {}), [], iter(arguments)
    for word in rest:
        option, equals, value = word.partition("=")
        if option not in renamed:
            found.append(word)
            continue
        setting = renamed[option].format(value if equals else next(rest, ""))
        replacement = [setting] if command == "adapt-teacher" else ["--set", setting]
        if process_rank() == 0:
            note = f"{option} is replaced by {shlex.join(replacement)}, and goes in the next release"
            say(note, err=True)
        found += replacement
    return found
