"""Whether this machine and its environment are fit for training: one function for each check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path

from stlm_kd.distributed import process_rank
from stlm_kd.doctor.finding import Finding

__all__ = ["Finding", "diagnose"]


def diagnose(output_dir: str | PathLike[str] = "runs", *, offline: bool = False) -> list[Finding]:
    """Check versions, devices, backends, processes, folders, the Hub and the locks of unfinished runs.

    In several processes all must call it; the first one returns all findings, the others those on processes.

    Args:
        output_dir: Contains the runs, or will.
        offline: Whether not to ask the Hub.
    """
    from stlm_kd.doctor.processes import check_processes

    shared = list(check_processes())
    if process_rank() > 0:
        return shared
    return [*shared, *(found for check in _checks(Path(output_dir), offline).values() for found in check())]


def _checks(output_dir: Path, offline: bool) -> Mapping[str, Callable[[], Iterator[Finding]]]:
    from stlm_kd.doctor.hub import check_hub
    from stlm_kd.doctor.machine import check_backends, check_devices, check_folders, check_port
    from stlm_kd.doctor.runs import check_runs
    from stlm_kd.doctor.versions import check_versions

    return {
        "versions": check_versions,
        "devices": check_devices,
        "backends": check_backends,
        "port": check_port,
        "folders": lambda: check_folders(output_dir),
        "Hub": lambda: check_hub(offline=offline),
        "runs": lambda: check_runs(output_dir),
    }
