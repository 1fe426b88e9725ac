"""``stlm-kd vocabulary``: what tokenizers are, and what they have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stlm_kd.cli.console import print_json, print_rows, say
from stlm_kd.cli.group import Command
from stlm_kd.cli.invocation import begin_pins
from stlm_kd.cli.options import AsJson, OutputDir, Overrides, TrustRemoteCode, split
from stlm_kd.errors import DataError, UsageError

if TYPE_CHECKING:
    from stlm_kd import Recipe, RecipeVocabularies, VocabularyComparison, VocabularyCurve

app = typer.Typer(no_args_is_help=True, help="Show and compare tokenizers.", rich_markup_mode=None)

FileOfText = Annotated[Path | None, typer.Option("--text", metavar="FILE", help="Measure them on this text.")]
_TOKENIZER = "A folder or Hub id of a tokenizer or model."
_TOKENIZER_OR_RECIPE = "A folder or Hub id of a tokenizer or model; or a recipe's file or built-in name."


@app.command(cls=Command)
def show(
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER|RECIPE", help=_TOKENIZER_OR_RECIPE)],
    overrides: Overrides = None,
    text: FileOfText = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Show a tokenizer: kind, size, special tokens, and bytes per token of a text.

    Of a recipe: the tokenizers of its student and teachers on the first 2 MB of its training text, the exact
    rows of each teacher, and what the student's embedding costs.
    """
    import stlm_kd

    begin_pins()
    if Path(tokenizer).suffix in (".yaml", ".yml") or tokenizer in {
        one.name for one in stlm_kd.list_recipes()
    }:
        if text is not None:
            raise UsageError("--text: a recipe's tokenizers are shown on its own text; leave --text out")
        of_recipe = stlm_kd.recipe_vocabularies(
            tokenizer, overrides or (), trust_remote_code=trust_remote_code
        )
        if as_json:
            print_json(asdict(of_recipe))
        else:
            _print_of_recipe(of_recipe)
        return
    if overrides:
        raise UsageError(f"{overrides[0]}: changes a recipe, but {tokenizer} is a tokenizer; leave it out")
    found = stlm_kd.compare_vocabularies([tokenizer], text, trust_remote_code=trust_remote_code)
    if as_json:
        print_json(asdict(found.vocabularies[0]))
    else:
        _print_vocabularies(found)


@app.command(cls=Command)
def compare(
    tokenizers: Annotated[list[str], typer.Argument(metavar="TOKENIZER...", help=_TOKENIZER)],
    text: FileOfText = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Compare tokenizers: for each pair, how many rows of an adapted teacher would be exact.

    With --text, also the share of the text's tokens that have such a row.
    """
    import stlm_kd

    begin_pins()
    found = stlm_kd.compare_vocabularies(tokenizers, text, trust_remote_code=trust_remote_code)
    if as_json:
        print_json(asdict(found))
        return
    _print_vocabularies(found)
    _print_pairs(found)


@app.command(cls=Command)
def curve(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's file or built-in name.")],
    overrides: Overrides = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,…",
            help="Numbers of tokens, such as 4k,8k. Default: a quarter to four times the recipe's.",
        ),
    ] = None,
    num_bytes: Annotated[
        str, typer.Option("--bytes", metavar="N", help="How much held-out text the teachers read.")
    ] = "50k",
    output_dir: OutputDir = Path("runs"),
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Draw the trade of a vocabulary's size: bits per byte of the teachers, parameters of the student.

    Makes the student's tokenizer in several sizes and scores each teacher with it, without training. What is
    measured is kept, so the command goes on after a stop. Writes curve.json, curve.csv and curve.png.
    """
    import stlm_kd

    begin_pins()
    found = stlm_kd.vocabulary_curve(
        recipe,
        overrides or (),
        sizes=split(sizes),
        num_bytes=num_bytes,
        output_dir=output_dir,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        print_json(asdict(found))
    else:
        _print_curve(found)


def _print_curve(found: VocabularyCurve) -> None:
    rows = [
        (
            one.teacher,
            f"{one.tokens:,}{'' if one.vocabulary == 'student' else ', its own'}",
            f"{one.tokens_per_byte:.3f}",
            f"{one.exact_rows:,}",
            f"{one.share:.1%}",
            _measured(one.bits_per_byte, one.stderr),
            _measured(one.above_own, one.above_own_stderr, sign="+") if one.vocabulary == "student" else "",
            "" if one.parameters is None else f"{one.parameters:,}",
            "" if one.embedding is None else f"{one.embedding:,}",
        )
        for one in found.points
    ]
    header = ("TEACHER", "TOKENS", "PER BYTE", "EXACT ROWS", "OF THE TEXT", "BITS/BYTE (SE)", "ABOVE ITS OWN")
    print_rows((*header, "STUDENT", "ITS EMBEDDING"), rows)
    say()
    for line in found.notes:
        say(line)
    say(f"folder: {found.folder}")


def _measured(value: float | None, stderr: float | None, sign: str = "") -> str:
    """A number with its standard error, as far as they are known."""
    if value is None:
        return ""
    return f"{value:{sign}.3f}" + ("" if stderr is None else f" ({stderr:.3f})")


def print_of_recipes(recipes: Iterable[Recipe], *, trust_remote_code: bool) -> None:
    """The vocabularies of each recipe whose teachers have a model, after its plan."""
    import stlm_kd

    for recipe in recipes:
        if not any(teacher.has_model for teacher in recipe.teachers):
            continue
        say()
        try:
            found = stlm_kd.recipe_vocabularies(recipe, trust_remote_code=trust_remote_code)
        except DataError as error:  # the whole text may be enough for the tokenizer
            say(f"vocabularies: {error}")
        else:
            _print_of_recipe(found)


def _print_of_recipe(found: RecipeVocabularies) -> None:
    """The tokenizers of a recipe, and the parameters of its student's embedding."""
    _print_vocabularies(found.compared)
    _print_pairs(found.compared)
    say("")
    if found.parameters is not None and found.embedding is not None:
        share = f"{found.embedding / found.parameters:.1%}"
        say(
            f"student: {found.embedding:,} of {found.parameters:,} parameters ({share}) in embedding and head"
        )
    text = f"the first {found.bytes_read:,} bytes of the training text"
    say(f"measured on {text}, of which tokenizers are made here")


def _print_pairs(found: VocabularyComparison) -> None:
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
