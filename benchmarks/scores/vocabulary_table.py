"""The finished cells of ``vocabularies.py`` as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vocabulary_cells import ARC, BLIMP, NOVELS, OWN, WHOLE, WIKITEXT, Model, Results, Settings, cells


def table(settings: Settings, results: Results) -> str:
    """The finished cells as Markdown: bits per byte of each text, then benchmarks."""
    parts = [text_table(settings, results, text) for text in (NOVELS, WIKITEXT)]
    lines = [
        f"| vocabulary | trained on | BLiMP, {settings.pairs} pairs a paradigm | less own | "
        f"ARC-Easy, {settings.questions} questions | less own | whole BLiMP | less own |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in dict.fromkeys(model for model, _ in cells(settings)):
        found = [results.find(model, score) for score in (BLIMP, ARC, WHOLE)]
        if any(found):
            trained = f"{model.tokens:,} tokens of {model.text}" if model.tokens else ""
            lines.append(row([model.vocabulary, trained, *(text for one in found for text in accuracy(one))]))
    hours = sum(line["seconds"] for line in results.lines) / 3600
    done = sum(results.find(model, score) is not None for model, score in cells(settings))
    all_cells = len([*cells(settings)])
    return "\n\n".join([*parts, "\n".join(lines), f"{done} of {all_cells} cells, {hours:.1f} hours."])


def text_table(settings: Settings, results: Results, text: str) -> str:
    """Bits per byte of a text: rows are vocabularies, columns the tokens trained on."""
    columns = [f"{tokens:,} tokens" for tokens in (0, *settings.tokens)]
    lines = [
        row([f"{text}, bits per byte", "rows copied", *columns]),
        row(["---"] * (2 + len(columns))),
    ]
    own = results.find(Model(OWN), text)
    if own is not None:
        lines.append(
            row([OWN, "", f"{own['value']:.3f} ± {own['stderr']:.3f}", *[""] * len(settings.tokens)])
        )
    for name in settings.tokenizers:
        models = [Model(name), *(Model(name, tokens, text) for tokens in settings.tokens)]
        adapted = results.find(models[0], "adapted")
        copied = "" if adapted is None else f"{copied_rows(adapted['report']):.1%}"
        lines.append(row([name, copied, *(bits(results.find(model, text), own) for model in models)]))
    return "\n".join(lines)


def copied_rows(report: Mapping[str, Any]) -> float:
    """The share of the new tokens whose rows are copies of the teacher's."""
    origins = report["tokens_by_origin"]
    return float((origins["exact"] + origins["role"]) / report["new_vocabulary"])


def bits(line: Mapping[str, Any] | None, own: Mapping[str, Any] | None) -> str:
    if line is None or own is None:
        return ""
    gap = line["difference"]
    share = gap["mean"] / own["value"]
    return f"{line['value']:.3f}, {share:+.1%} ({gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}])"


def accuracy(line: Mapping[str, Any] | None) -> tuple[str, str]:
    if line is None:
        return "", ""
    gap = line.get("difference")
    less = "" if gap is None else f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
    return f"{line['value']:.3f} ± {line['stderr']:.3f}", less


def row(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"
