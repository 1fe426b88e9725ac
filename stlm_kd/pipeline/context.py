"""The run context: output folder, permissions and progress of a command."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stlm_kd.artifacts.stage_store import Stages
from stlm_kd.artifacts.uses import known_uses
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.validation.deepspeed import passed_settings
from stlm_kd.tracking import Trackers, open_tracker
from stlm_kd.tracking.metrics import UNITS
from stlm_kd.training.config import DeepSpeedOptions, TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Zero = Literal[0, 1, 2, 3] | None


@dataclass(frozen=True, slots=True)
class RunContext:
    """The settings that all stages of a command share; can be pickled for another process.

    Attributes:
        output_dir: Contains the runs, and ``stages/``, which all runs share.
        resume: Whether to resume unfinished work.
        trust_remote_code: Whether to run code shipped with a model.
        zero: DeepSpeed's ZeRO stage for all trainings; None without DeepSpeed.
        deepspeed: Its other options.
        run_name: Name of the current run.
        quiet_name: With parallel jobs: the prefix of this job's progress lines.
    """

    output_dir: Path
    resume: bool = True
    trust_remote_code: bool = False
    zero: Zero = None
    deepspeed: DeepSpeedOptions = field(default_factory=DeepSpeedOptions)
    run_name: str = ""
    quiet_name: str | None = None

    def named(self, name: str, jobs: int) -> RunContext:
        """A copy for one of several parallel jobs, with the job's name as prefix of its progress lines."""
        return replace(self, quiet_name=name) if jobs > 1 else self

    @property
    def stages(self) -> Stages:
        """The stage store that all runs share."""
        run = self.output_dir / self.run_name if self.run_name else None
        return Stages(self.output_dir / "stages", self.resume, run)

    def with_engine(self, settings: TrainingConfig) -> TrainingConfig:
        """The settings of a training under the engine of this command."""
        return replace(settings, zero=self.zero, deepspeed=self.deepspeed)

    def described(self, model: str) -> str:
        """What a model is to the run: one of its stages or folders; or its path or name."""
        run, folder = self.stages.run, Path(model)
        if run is None:
            return model
        if folder.is_relative_to(run):
            return " ".join(folder.relative_to(run).parts[1:-1]).replace("seed-", "seed ")
        return next(iter(known_uses(run).get(folder.parent.name, ())), model)

    @property
    def tokens(self) -> Path:
        """The folder of tokenised text."""
        return self.output_dir / "stages" / "tokens"

    def tracker(self, folder: Path, *, recipe: Recipe, stage: str) -> Trackers:
        """Trackers for the progress and metrics of one training; only the main process writes."""
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


@dataclass(frozen=True, slots=True)
class RecipeSetup:
    """What the stages of a recipe share.

    Attributes:
        recipe: The recipe.
        tokenizer: The student's tokenizer.
        context: The run context.
    """

    recipe: Recipe
    tokenizer: PreTrainedTokenizerFast
    context: RunContext


def context_for(
    recipe: Recipe, output_dir: Path, *, resume: bool, trust_remote_code: bool, run_name: str
) -> RunContext:
    """The context of a recipe's run; its engine also trains the teachers that come from other recipes."""
    context = RunContext(output_dir, resume, trust_remote_code, run_name=run_name)
    engine = recipe.engine.deepspeed
    if engine is None:
        return context
    settings = {} if engine.config is None else passed_settings(engine.config)
    options = DeepSpeedOptions(engine.offload, engine.weights, settings)
    return replace(context, zero=engine.zero, deepspeed=options)
