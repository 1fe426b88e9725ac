"""Suites given on the command line, validated like those of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from stlm_kd.errors import RecipeFault, UsageError, first_of, one_line
from stlm_kd.eval import SUITES
from stlm_kd.extensions import load_extensions
from stlm_kd.recipe.load import plain
from stlm_kd.recipe.schema.root import AnySuite, Suite, spelled_out
from stlm_kd.recipe.yaml import Plain, YamlError, parse

_SUITES: TypeAdapter[tuple[Suite, ...]] = TypeAdapter(tuple[AnySuite, ...])


def suites(
    words: Sequence[str | Mapping[str, Any]],
    *,
    options: Mapping[str, Any] = MappingProxyType({}),
    place: str = "--suite",
) -> list[dict[str, Plain]]:
    """Each suite with all its options, for names or mappings such as ``{suite: lm-eval, tasks: [blimp]}``.

    Each of ``options`` applies to the suites that have it and do not set it; ``place`` is theirs in messages.
    Raises UsageError for an option that no suite has, other words, or unknown names and values, which it
    lists.
    """
    load_extensions()
    entries = [_entry_name(_entry(word)) for word in words]
    having = [SUITES.options(str(e["suite"])) if e.get("suite") in SUITES else dict(options) for e in entries]
    for option in options:
        if not any(option in names for names in having):
            takes = ", ".join(sorted(set().union(*having))) or "none"
            raise UsageError(f"{option}: not an option of {', '.join(map(str, words))}, which takes {takes}")
    entries = [
        {**{option: value for option, value in options.items() if option in names}, **entry}
        for entry, names in zip(entries, having, strict=True)
    ]
    try:
        return [plain(suite) for suite in _SUITES.validate_python(entries)]
    except ValidationError as error:
        lines = error.errors(include_url=False)
        faults = [str(RecipeFault(".".join(map(str, line["loc"][1:])), line["msg"])) for line in lines]
        raise UsageError("\n".join(first_of(f"{place}: {fault}" for fault in faults))) from error


def suite_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of one suite, where some are given; errors as ``suites``."""
    (entry,) = suites([{**options, "suite": name}], place="--set")
    return {option: value for option, value in entry.items() if option != "suite"}


def _entry_name(entry: dict[str, Plain]) -> dict[str, Plain]:
    """The entry with a short name expanded, so its options are known."""
    try:
        written = spelled_out(entry)
    except PydanticCustomError as error:
        raise UsageError(f"--suite: {error.message()}") from error
    assert isinstance(written, dict)
    return written


def _entry(word: str | Mapping[str, Any]) -> dict[str, Plain]:
    if not isinstance(word, str):
        return dict(word)
    try:
        value = parse(word).plain()
    except YamlError as error:
        raise UsageError(f"--suite {one_line(word)}: not YAML: {error}") from error
    if isinstance(value, str) and value:
        return {"suite": value}
    if isinstance(value, dict):
        return value
    raise UsageError(f"--suite {one_line(word)}: expected a name, or {{suite: NAME, option: value}}")
