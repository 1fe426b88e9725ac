"""Command classes: errors become one message and an exit code in every command."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from stlm_kd.cli.console import say
from stlm_kd.cli.renamed import current_arguments
from stlm_kd.distributed import check_launch_variables, end_processes, process_rank
from stlm_kd.errors import (
    Interrupted,
    RemoteProcessError,
    StlmKdError,
    UsageError,
    first_line,
    is_out_of_memory,
)

PATIENCE_S = 10.0
"""Seconds that the other processes wait for the main process to report the same error."""


class Command(TyperCommand):
    """Raises an error for a repeated single-value option, of which click would keep only the last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; ``ctx`` is the context of click, or of its copy in Typer."""
        args = current_arguments(self.name or "", args)
        if not ctx.resilient_parsing:
            _, _, given = self.make_parser(ctx).parse_args(args=[*args])
            once = [param for param in given if _takes_one_value(param)]
            for param in once:
                if once.count(param) > 1:
                    raise UsageError(f"{param.opts[0]}: given twice; expected once; leave one of the two out")
        return super().parse_args(ctx, args)


def _takes_one_value(param: Any) -> bool:
    return param.param_type_name == "option" and not param.multiple and not param.is_flag and not param.count


class Commands(TyperGroup):
    """Runs a command; prints user errors to stderr as one message, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            check_launch_variables()
        except UsageError as error:
            say(str(error), err=True)
            raise typer.Exit(error.exit_code) from error
        try:
            return super().invoke(ctx)
        except RemoteProcessError as error:
            raise typer.Exit(error.exit_code) from error
        except StlmKdError as error:
            if _reports_errors():
                say(str(error), err=True)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:  # of a path that no other guard names
            if error.strerror is None or isinstance(error, BrokenPipeError):
                raise
            if _reports_errors():
                place = error.filename or "a file in use"
                say(f"{place}: {error.strerror}; correct that and run it again", err=True)
            raise typer.Exit(StlmKdError.exit_code) from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if _reports_errors():
                say(
                    f"memory ran out ({first_line(error)}); use a smaller train.micro_batch, fewer --jobs, "
                    "or precision: bf16 of the teachers; the same command resumes",
                    err=True,
                )
            raise typer.Exit(StlmKdError.exit_code) from error
        except KeyboardInterrupt as error:
            if process_rank() == 0:
                say("interrupted", err=True)
            raise typer.Exit(Interrupted.exit_code) from error
        finally:
            end_processes()


def _reports_errors() -> bool:
    """Whether this process reports an error: the main process, or a process that alone had it."""
    if process_rank() == 0:
        return True
    from stlm_kd.cli.launch import first_process_ends

    return not first_process_ends(PATIENCE_S)
