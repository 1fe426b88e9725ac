"""Whether a recipe's card says what its results say: its table, its notes, its scores for the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.errors import inline_markdown
from stlm_kd.publishing.verify.report import Finding, contradiction
from stlm_kd.publishing.verify.score_checks import close
from stlm_kd.recipe.yaml import YamlError, parse
from stlm_kd.reporting.model_card import CARD
from stlm_kd.reporting.tables.results import result_table
from stlm_kd.reporting.templating import cells

_FRONT = "---\n"
_MOST = 256 * 1024
_HIDDEN = re.compile(r"(?<!\\)<(?:!--.*?(?:-->|\Z)|[^<>\n]*>)", re.DOTALL)
"""Comments and tags, which a page does not show."""


def card_findings(
    card: str, table: ResultsTable, remarks: Sequence[str], published: Mapping[str, str]
) -> Iterator[Finding]:
    """What a card says beside or against the results of its recipe, and the addresses of its models."""
    card = card.removeprefix("\ufeff")
    lines = _HIDDEN.sub("", card).splitlines()
    made = cells(result_table(table, ""))
    head, expected = _line(made.head), {_cells(inline_markdown(row[0]))[0]: _line(row) for row in made.rows}
    said: dict[str, list[str]] = {}
    for line in lines:
        if "|" in line:
            said.setdefault(_cells(line)[0], []).append(line)
    if not expected.keys() & said.keys():
        yield Finding(CARD, "no table of results in it", refutes=False)
        return
    if head not in lines:
        yield contradiction(CARD, "the columns of its table are not those of results.json", "", head)
    for name, line in expected.items():
        for found in said.get(name, [""]):
            if _cells(found) != _cells(line):
                yield contradiction(CARD, "a line of its table is not that of results.json", found, line)
    for place, address in published.items():
        for found in said.get(_cells(inline_markdown(place))[0], []):
            if _cells(found) != _cells(line := _line((place, address))):
                yield contradiction(CARD, "the address of a model is not that of the lock", found, line)
    written = {line.removeprefix("- ") for line in lines if line.startswith("- ")}
    for remark in remarks:
        if inline_markdown(remark) not in written:
            yield contradiction(CARD, "it lacks a note of results.json", "", remark)
    yield from _index_findings(card, table)


def _index_findings(card: str, table: ResultsTable) -> Iterator[Finding]:
    """The scores in the front matter are the student's means over seeds."""
    student = next((row for row in table.rows if row.kind == "student"), None)
    front, found, _ = card.removeprefix(_FRONT).partition(f"\n{_FRONT}")
    if student is None or not found or not card.startswith(_FRONT):
        return
    try:
        values: Any = parse(front, origin=CARD, largest=_MOST).plain()
        results = [one for model in values.get("model-index", ()) for one in model["results"]]
        metrics = [each for one in results for each in one["metrics"]]
        claimed = {str(each["name"]): float(each["value"]) for each in metrics}
    except (YamlError, AttributeError, KeyError, TypeError, ValueError) as error:
        yield Finding(CARD, f"its front matter cannot be read ({type(error).__name__})", refutes=False)
        return
    known = {metric.name: table.spread(student, metric) for metric in table.metrics}
    for name, value in claimed.items():
        spread = known.get(name)
        if spread is None or not close(value, spread.mean, relative=1e-6):
            mean = "" if spread is None else spread.mean
            yield contradiction(CARD, f"its score for the Hub is not the mean of {name}", value, mean)


def _line(row: Sequence[str]) -> str:
    return f"| {' | '.join(map(inline_markdown, row))} |"


def _cells(line: str) -> tuple[str, ...]:
    """The cells of a line of a table, as a page shows them."""
    return tuple(cell.strip(" \t*_`~") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|")))
