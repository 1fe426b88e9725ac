"""Command classes: errors become one message and an exit code in every command."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from stlm_kd.activity import doing
from stlm_kd.cli.console import say
from stlm_kd.cli.invocation import own_places
from stlm_kd.cli.options import NODES
from stlm_kd.cli.renamed import current_arguments
from stlm_kd.distributed import (
    SHORTEST_START_S,
    check_launch_variables,
    end_processes,
    process_rank,
    start_limit_s,
)
from stlm_kd.errors import (
    AbsentProcessError,
    Interrupted,
    RemoteProcessError,
    StlmKdError,
    UnreachableError,
    UsageError,
    first_line,
    memory_as_error,
)
from stlm_kd.placement import placement

_FREE_TEXT = ("prompt", "query")
"""Options and arguments that are neither paths nor names nor numbers, and may be blank."""


class Command(TyperCommand):
    """Raises an error for a repeated single-value option, of which click would keep only the last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; ``ctx`` is the context of click, or of its copy in Typer."""
        args = current_arguments(self.name or "", args)
        if not ctx.resilient_parsing:
            values, _, given = self.make_parser(ctx).parse_args(args=[*args])
            _refuse_blank(given, values)
            once = [param for param in given if _takes_one_value(param)]
            for param in once:
                if once.count(param) > 1:
                    raise UsageError(f"{param.opts[0]}: given twice; expected once; leave one of the two out")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a recipe's commands say themselves what they do, in each of their processes."""
        with nullcontext() if "processes" in ctx.params else doing(ctx.command_path):
            return super().invoke(ctx)


def _takes_one_value(param: Any) -> bool:
    return param.param_type_name == "option" and not param.multiple and not param.is_flag and not param.count


def _refuse_blank(params: Sequence[Any], values: Mapping[str, Any]) -> None:
    """Refuse blank values: as a path, such a one would be the current folder."""
    for param in params:
        value = values.get(param.name)
        for text in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(text, str) and not text.strip() and param.name not in _FREE_TEXT:
                place = (
                    param.opts[0] if param.opts[0].startswith("-") else param.metavar or param.name.upper()
                )
                raise UsageError(f"{place}: {text!r} found; expected text that is not blank")


class Commands(TyperGroup):
    """Runs a command; prints user errors to stderr as one message, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        NODES.clear()
        try:
            check_launch_variables()
        except UsageError as error:
            say(str(error), err=True)
            raise typer.Exit(error.exit_code) from error
        try:
            with memory_as_error():
                return super().invoke(ctx)
        except RemoteProcessError as error:
            raise typer.Exit(error.exit_code) from error
        except StlmKdError as error:
            _report(ctx, error, str(error))
            raise typer.Exit(error.exit_code) from error
        except OSError as error:  # of a path that no other guard names
            if error.strerror is None or isinstance(error, BrokenPipeError):
                raise
            place = error.filename or "a file in use"
            _report(ctx, error, f"{place}: {error.strerror}; correct that and run it again")
            raise typer.Exit(StlmKdError.exit_code) from error
        except KeyboardInterrupt as error:
            if process_rank() == 0:
                say("interrupted", err=True)
            raise typer.Exit(Interrupted.exit_code) from error
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            _tell(first_line(error), getattr(error, "exit_code", StlmKdError.exit_code))
            raise
        finally:
            end_processes()


def _report(ctx: Any, error: Exception, message: str) -> None:
    """Print a message, unless another process does; with ``--debug`` after the traceback, causes included.

    Tells the processes that wait for this one.
    """
    exit_code, is_same = getattr(error, "exit_code", StlmKdError.exit_code), None
    if not isinstance(error, (UnreachableError, AbsentProcessError)):
        is_same = _other_reports(message, exit_code)
    if not is_same:
        if ctx.find_root().params.get("debug"):
            say("".join(traceback.format_exception(error)), err=True)
        say(message, err=True)
    if is_same is None and not _launcher_ends_others():
        _tell(message, exit_code)


def _other_reports(message: str, exit_code: int) -> bool | None:
    """Whether another process reports the same error; None if this one does, and is to tell the others."""
    from stlm_kd.cli.launching.processes import first_process_ends
    from stlm_kd.rendezvous import PATIENCE_S, is_awaited

    if process_rank() == 0:
        return None
    if not is_awaited(own_places()):
        return first_process_ends(PATIENCE_S)
    return None if placement().leads_node else _tell(message, exit_code, PATIENCE_S)


def _launcher_ends_others() -> bool:
    """Whether a launcher of ours, which sees this process end, then ends all others: those of one node."""
    from stlm_kd.watchdog import REPORTS

    return REPORTS in os.environ and placement().nodes == 1 and process_rank() > 0


def _tell(reason: str, exit_code: int, patience_s: float | None = None) -> bool | None:
    """Tell processes that wait for this one, or for those that it was to launch, why it fails.

    Process 0 counts as absent after ``patience_s``, or after the time that all wait for each other.
    """
    from stlm_kd.rendezvous import is_awaited, tell_failure

    places = own_places()
    if not is_awaited(places):
        return None
    if patience_s is None:
        patience_s = SHORTEST_START_S
        with suppress(UsageError):  # a wrong variable, perhaps what this process fails for
            patience_s = start_limit_s()
    try:
        return tell_failure(places, reason, exit_code, patience_s)
    except KeyboardInterrupt:  # the user waits no longer
        return None
