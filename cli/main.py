"""The root command. Commands import torch and other slow packages lazily."""

from __future__ import annotations

from typing import Annotated

import typer

from stlm_kd.cli.adapt_teacher import adapt_teacher
from stlm_kd.cli.console import say
from stlm_kd.cli.data import app as data
from stlm_kd.cli.distill import distill
from stlm_kd.cli.group import Command, Commands
from stlm_kd.cli.models import export, generate, push
from stlm_kd.cli.planning.doctor import doctor
from stlm_kd.cli.planning.estimate import estimate
from stlm_kd.cli.recipes import app as recipes
from stlm_kd.cli.runs import app as runs
from stlm_kd.cli.scores.agreement import agreement
from stlm_kd.cli.scores.compare import compare
from stlm_kd.cli.scores.evaluate import evaluate
from stlm_kd.cli.scores.interchange import interchange
from stlm_kd.cli.scores.report import report
from stlm_kd.cli.teachers import app as teachers
from stlm_kd.cli.vocabularies import app as vocabularies

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from stlm_kd import __version__

        say(__version__)
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version.")
    ] = False,
    imports: Annotated[
        list[str],
        typer.Option(
            "--import",
            metavar="MODULE",
            help="Import a module that registers extensions, such as losses. May be repeated.",
        ),
    ] = [],  # noqa: B006  # never changed
    debug: Annotated[
        bool, typer.Option("--debug", help="Before an error's message, show where in the code it arose.")
    ] = False,
) -> None:
    """Distil one or several large teachers into a tiny language model.

    Try it offline: stlm-kd distill -r sample-two-teachers
    """
    if imports:
        from stlm_kd.extensions import import_modules

        import_modules(imports)


app.command("distill", cls=Command)(distill)
app.command("adapt-teacher", cls=Command)(adapt_teacher)
app.command("estimate", cls=Command)(estimate)
app.command("eval", cls=Command)(evaluate)
app.command("compare", cls=Command)(compare)
app.command("agreement", cls=Command)(agreement)
app.command("interchange", cls=Command)(interchange)
app.command("report", cls=Command)(report)
app.command("generate", cls=Command)(generate)
app.command("export", cls=Command)(export)
app.command("push", cls=Command)(push)
app.command("doctor", cls=Command)(doctor)
app.add_typer(data, name="data")
app.add_typer(recipes, name="recipe")
app.add_typer(runs, name="runs")
app.add_typer(teachers, name="teacher")
app.add_typer(vocabularies, name="vocabulary")
