"""A run of a recipe: its folder, results and models."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stlm_kd.artifacts.atomic import read_json
from stlm_kd.artifacts.record import Record
from stlm_kd.artifacts.run_dir import open_run as open_folder
from stlm_kd.artifacts.run_dir import show_run
from stlm_kd.errors import CheckpointError, MissingResourceError
from stlm_kd.pipeline.stages.teacher_set import teachers_of_run

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of a distillation or an adaptation."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def results(self) -> dict[str, Any]:
        """The contents of ``results.json``.

        Raises:
            MissingResourceError: The run is not finished.
            CheckpointError: The file is damaged.
        """
        file = self.path / "results.json"
        try:
            found: dict[str, Any] = read_json(file, nan=True)
        except FileNotFoundError as error:
            raise MissingResourceError(f"{file}: not written yet; finish the run first") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file}: damaged ({error})") from error
        return found

    @property
    def scores(self) -> DataFrame:
        """The scores of all models and examples as one long table; see ``ResultsTable.frame``.

        Raises:
            MissingResourceError: The run is not finished.
            CheckpointError: Its results are damaged, or have no scores.
        """
        from stlm_kd.comparison.entries import read_rows
        from stlm_kd.comparison.results_table import ResultsTable

        return ResultsTable(read_rows([str(self.path)])).frame.infer_objects()

    @property
    def record(self) -> Record:
        """Its command, status, times, hash of the recipe, and versions; CheckpointError if damaged."""
        return show_run(self.path).record

    @property
    def table(self) -> str | None:
        """The table of results as text; None before the run is finished."""
        return show_run(self.path).table

    @property
    def models(self) -> tuple[Path, ...]:
        """The folders of finished models, readable by ``from_pretrained``: students, adapted teachers."""
        return show_run(self.path).models

    def model(self, name: str = "student", *, seed: int | None = None) -> Path:
        """The folder of one model.

        Args:
            name: ``student``, a control such as ``no-teacher``, or the name of a teacher, which may lie in
                the stages that runs share.
            seed: The seed of a student or control; default: the smallest.

        Raises:
            MissingResourceError: There is no such finished model; the message lists those that there are.
        """
        models = {model.relative_to(self.path).parts: model for model in self.models}
        seeds = {
            int(parts[2].removeprefix("seed-")): model
            for parts, model in models.items()
            if parts[:2] == ("students", name) and parts[2].removeprefix("seed-").isdigit()
        }
        if seeds and (seed is None or seed in seeds):
            return seeds[min(seeds) if seed is None else seed]
        teacher = models.get(("teachers", name)) or Path(teachers_of_run(self.path).get(name, ""))
        if seed is None and not seeds and teacher.joinpath("config.json").is_file():
            return teacher
        listed = ", ".join(str(Path(*parts)) for parts in models) or "none yet"
        seeded = "" if seed is None else f" of seed {seed}"
        raise MissingResourceError(f"{self.path}: no model {name}{seeded}; finished models: {listed}")

    def load(
        self, name: str = "student", *, seed: int | None = None, trust_remote_code: bool = False
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        """A model, in evaluation mode on the CPU, with its tokenizer.

        Args:
            name: As for ``model``.
            seed: As for ``model``.
            trust_remote_code: Whether to run code shipped with the model.

        Raises:
            MissingResourceError: As for ``model``.
            ModelError: The folder cannot be loaded.
        """
        from stlm_kd.data.tokenizers import load_tokenizer
        from stlm_kd.models.heads.classifiers import kind_of, load_classifier
        from stlm_kd.models.load import load_config, load_language_model

        folder, trust = str(self.model(name, seed=seed)), trust_remote_code
        tokenizer = load_tokenizer(folder, trust_remote_code=trust)
        if kind_of(load_config(folder, trust_remote_code=trust)) is not None:
            return load_classifier(folder, None, tokenizer=tokenizer, trust_remote_code=trust), tokenizer
        return load_language_model(folder, None, trust_remote_code=trust), tokenizer


def open_run(path: str | PathLike[str]) -> Run:
    """An existing run.

    Args:
        path: The run's folder.

    Raises:
        MissingResourceError: The folder does not exist.
        CheckpointError: It is not a run's folder, or its record is damaged.
    """
    return Run(open_folder(Path(path)).path)
