"""The root command: an error becomes one message and an exit code, in every command alike."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from stlm_kd.errors import Elsewhere, Interrupted, StlmKdError


class Commands(TyperGroup):
    """Runs a command; what a user can cause is said on stderr in one message, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the words name; ``ctx`` is the context of click, or of the copy in Typer."""
        try:
            return super().invoke(ctx)
        except Elsewhere as error:
            raise typer.Exit(error.exit_code) from error
        except StlmKdError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(Interrupted.exit_code) from error
        finally:
            if "stlm_kd.engine.launched" in sys.modules:
                sys.modules["stlm_kd.engine.launched"].end_processes()
