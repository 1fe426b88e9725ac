"""Where a command works and what it is allowed to do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stlm_kd.artifacts.stage_store import Stages
from stlm_kd.distributed import process_rank
from stlm_kd.recipe import Recipe
from stlm_kd.tracking import Trackers, open_tracker
from stlm_kd.tracking.metrics import UNITS

Zero = Literal[0, 1, 2] | None


@dataclass(frozen=True, slots=True)
class RunContext:
    """Passed to everything that makes something; small enough to be sent to another process.

    Attributes:
        output_dir: Holds the runs, and ``stages/``, which all runs share.
        resume: Whether unfinished work is continued.
        trust_remote_code: Whether models may run code that they bring.
        zero: DeepSpeed's ZeRO stage for all trainings; None without DeepSpeed.
        run_name: Of the run that the work is for.
        quiet_name: Where several jobs run side by side: the prefix of this one's progress lines.
    """

    output_dir: Path
    resume: bool = True
    trust_remote_code: bool = False
    zero: Zero = None
    run_name: str = ""
    quiet_name: str | None = None

    def named(self, name: str, jobs: int) -> RunContext:
        """The same for one of several jobs, whose progress lines bear its name."""
        return replace(self, quiet_name=name) if jobs > 1 else self

    @property
    def stages(self) -> Stages:
        """Results that all runs share."""
        return Stages(self.output_dir / "stages", self.resume)

    @property
    def tokens(self) -> Path:
        """Where tokenised text is kept."""
        return self.output_dir / "stages" / "tokens"

    def tracker(self, folder: Path, *, recipe: Recipe, stage: str) -> Trackers:
        """Progress and metrics of one training; only the first process tells them."""
        if process_rank() > 0:
            return Trackers()
        from stlm_kd.pipeline.jobs import PrefixedLines

        stream = PrefixedLines(self.quiet_name) if self.quiet_name else None
        tracker = open_tracker(
            folder,
            backends=recipe.tracking,
            run_name=self.run_name,
            stream=stream,
            unit=UNITS[recipe.task],
        )
        tracker.stage(stage)
        return tracker


def context_for(
    recipe: Recipe, output_dir: Path, *, resume: bool, trust_remote_code: bool, run_name: str
) -> RunContext:
    """The workshop of a recipe's run: its engine trains everything, the teachers of other recipes too."""
    zero = recipe.engine.deepspeed.zero if recipe.engine.deepspeed is not None else None
    return RunContext(output_dir, resume, trust_remote_code, zero, run_name=run_name)
