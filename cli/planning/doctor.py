"""``stlm-kd doctor``: whether this machine is fit for training."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli import options
from stlm_kd.cli.console import print_json, print_rows, say
from stlm_kd.cli.invocation import is_watched, relaunch, requested_processes
from stlm_kd.distributed import TIMEOUT, launched_processes, process_rank, wait_for_all
from stlm_kd.errors import MissingResourceError, StlmKdError


def doctor(
    output_dir: options.OutputDir = Path("runs"),
    processes: options.Processes = 1,
    nodes: options.Nodes = 1,
    node_rank: options.NodeRank = None,
    master: options.Master = None,
    hostfile: options.HostFile = None,
    process_timeout: options.ProcessTimeout = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the Hub.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Check versions, devices, processes, folders, the Hub and unfinished runs; say what to do about faults.

    Several processes, also those of torchrun or srun, meet and add numbers. The exit code is 5 if there is a
    fault.
    """
    if requested_processes(processes) > 1 or is_watched():
        relaunch(processes)
        return
    import stlm_kd

    os.environ.setdefault(TIMEOUT, "1")
    found = stlm_kd.diagnose(output_dir, offline=offline)
    if process_rank() == 0:
        if as_json:
            print_json([asdict(one) for one in found])
        else:
            print_rows(("CHECK", "STATUS", "FOUND"), [(one.check, one.status, one.found) for one in found])
            cures = [f"{one.check}: {one.cure}" for one in found if one.cure]
            if cures:
                say("\n".join(["", "What to do:", *cures]))
    else:
        faults = (one.found for one in found if one.status == "fault")
        say("".join(f"process {process_rank()}: {fault}\n" for fault in faults), err=True, nl=False)
    has_met = "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized()
    if launched_processes() > 1 and has_met:  # a process that fails ends the others
        with suppress(StlmKdError):
            wait_for_all()
    if any(one.status == "fault" for one in found):
        raise typer.Exit(MissingResourceError.exit_code)
