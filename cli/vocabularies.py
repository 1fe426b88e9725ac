"""``stlm-kd vocabulary``: what tokenizers are, and what they have in common."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stlm_kd.cli.console import print_json, print_rows, say
from stlm_kd.cli.group import Command
from stlm_kd.cli.invocation import begin_pins
from stlm_kd.cli.options import AsJson

if TYPE_CHECKING:
    from stlm_kd import VocabularyComparison

app = typer.Typer(no_args_is_help=True, help="Show and compare tokenizers.", rich_markup_mode=None)

FileOfText = Annotated[Path | None, typer.Option("--text", metavar="FILE", help="Measure them on this text.")]
_TOKENIZER = "A folder or Hub id of a tokenizer or model."


@app.command(cls=Command)
def show(
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help=_TOKENIZER)],
    text: FileOfText = None,
    as_json: AsJson = False,
) -> None:
    """Show a tokenizer: kind, size, special tokens, and bytes per token of a text."""
    import stlm_kd

    begin_pins()
    found = stlm_kd.compare_vocabularies([tokenizer], text)
    if as_json:
        print_json(asdict(found.vocabularies[0]))
    else:
        _print_vocabularies(found)


@app.command(cls=Command)
def compare(
    tokenizers: Annotated[list[str], typer.Argument(metavar="TOKENIZER...", help=_TOKENIZER)],
    text: FileOfText = None,
    as_json: AsJson = False,
) -> None:
    """Compare tokenizers: for each pair, how many rows of an adapted teacher would be exact.

    With --text, also the share of the text's tokens that have such a row.
    """
    import stlm_kd

    begin_pins()
    found = stlm_kd.compare_vocabularies(tokenizers, text)
    if as_json:
        print_json(asdict(found))
        return
    _print_vocabularies(found)
    if not found.pairs:
        return
    say("")
    rows = [
        (one.student, one.teacher, f"{one.rows:,}", "" if one.share is None else f"{one.share:.1%}")
        for one in found.pairs
    ]
    print_rows(("STUDENT'S", "TEACHER'S", "EXACT ROWS", "OF THE TEXT"), rows)


def _print_vocabularies(found: VocabularyComparison) -> None:
    rows = [
        (
            one.name,
            f"{one.alphabet} {one.model}" if one.alphabet != one.model else one.model,
            f"{one.size:,}",
            "" if one.bytes_per_token is None else f"{one.bytes_per_token:.2f}",
            _listed(one.special),
        )
        for one in found.vocabularies
    ]
    print_rows(("TOKENIZER", "KIND", "TOKENS", "BYTES/TOKEN", "SPECIAL TOKENS"), rows)


def _listed(tokens: tuple[str, ...], most: int = 5) -> str:
    more = f", {len(tokens) - most} more" if len(tokens) > most else ""
    return ", ".join(tokens[:most]) + more
