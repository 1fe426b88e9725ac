"""Model names on the command line: a run, a run's student, a model folder or a Hub id."""

from __future__ import annotations

from pathlib import Path

from stlm_kd.artifacts.run_dir import RECORD, show_run
from stlm_kd.errors import MissingResourceError


def model_of(name: str) -> str:
    """Resolve a name to a model folder or Hub id; a run resolves to its first student or only teacher.

    Raises:
        MissingResourceError: The run has no finished model.
    """
    folder = Path(name)
    if (folder / RECORD).is_file():
        models = show_run(folder).models
        if not models:
            raise MissingResourceError(
                f"{name}: no finished model in this run; finish it with the command that began it"
            )
        own = [model for model in models if model.parent.parent.name == "student"]
        return str((own or models)[0])
    if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    return name
