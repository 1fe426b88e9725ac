"""Where a command works and what it is allowed to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stlm_kd.run.stages import Stages
from stlm_kd.tracking import Trackers, open_tracker


@dataclass(frozen=True, slots=True)
class Workshop:
    """Passed to everything that makes something; small enough to be sent to another process.

    Attributes:
        output_dir: Holds the runs, and ``stages/``, which all runs share.
        resume: Whether unfinished work is continued.
        trust_remote_code: Whether models may run code that they bring.
        run_name: Of the run that the work is for.
        quiet_name: Where several jobs run side by side: the prefix of this one's progress lines.
    """

    output_dir: Path
    resume: bool = True
    trust_remote_code: bool = False
    run_name: str = ""
    quiet_name: str | None = None

    @property
    def stages(self) -> Stages:
        """Results that all runs share."""
        return Stages(self.output_dir / "stages", self.resume)

    @property
    def tokens(self) -> Path:
        """Where tokenised text is kept."""
        return self.output_dir / "stages" / "tokens"

    def tracker(self, folder: Path, *, backends: tuple[str, ...], stage: str) -> Trackers:
        """Progress and metrics of one training."""
        from stlm_kd.run.jobs import PrefixedLines

        stream = PrefixedLines(self.quiet_name) if self.quiet_name else None
        tracker = open_tracker(folder, backends=backends, run_name=self.run_name, stream=stream)
        tracker.stage(stage)
        return tracker
