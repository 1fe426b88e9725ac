"""The command ``eval``: any suites on any models."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from stlm_kd.data.labelled import LabelledSource, read_examples
from stlm_kd.data.sources import Source
from stlm_kd.data.sources import documents as read_documents
from stlm_kd.errors import UsageError
from stlm_kd.eval import NEEDS_TEXT, TASK_OF_SUITE
from stlm_kd.eval.results import SuiteResult
from stlm_kd.models.classifiers import class_names
from stlm_kd.models.load import load_config
from stlm_kd.recipe import load
from stlm_kd.run.folder import RECIPE, RECORD
from stlm_kd.run.material import HeldOut, held_out_of_recipe
from stlm_kd.run.models import model_of
from stlm_kd.run.output import write_output
from stlm_kd.run.scoring import SuiteCall, score

LABELLED = {"classification", "regression"}
"""The tasks of labelled examples."""


def evaluate(
    models: Sequence[str],
    *,
    suites: Sequence[Mapping[str, Any]],
    data: Sequence[str],
    text: Sequence[str],
    label: str,
    output: Path | None,
    trust_remote_code: bool,
) -> dict[str, list[SuiteResult]]:
    """Each model's scores, by the name that it was given.

    Args:
        models: Runs, model folders or Hub ids.
        suites: Each ``{"suite": name, **options}``.
        data: Files of held-out text, or of labelled examples, for the suites that read them; none: each run's
            own.
        text: Of labelled examples, the columns of the text.
        label: Of labelled examples, the column of the label.
        output: A JSON file for all results, or None.
        trust_remote_code: Whether models may run code that they bring.

    Raises:
        UsageError: A suite that reads text, without any.
    """
    calls = [
        SuiteCall(str(entry["suite"]), {key: value for key, value in entry.items() if key != "suite"})
        for entry in suites
    ]
    needed = {TASK_OF_SUITE.get(call.suite) for call in calls if call.suite in NEEDS_TEXT}
    labelled = needed & LABELLED
    if (labelled and needed != labelled) or len(labelled) > 1:
        raise UsageError(
            "--suite: suites of text, of classes and of numbers score different models; ask apart"
        )
    columns = (tuple(text), label) if labelled else None
    results = {}
    for name in models:
        held: HeldOut = read_held_out(data, columns, name, labelled) if data else []
        held = held or (held_out_of_run(name) if needed else [])
        results[name] = score(model_of(name), calls, held, trust=trust_remote_code)
    if output is not None:
        write_output(
            output, {name: [result.to_json() for result in found] for name, found in results.items()}
        )
    return results


def read_held_out(
    files: Sequence[str],
    columns: tuple[tuple[str, ...], str] | None,
    model: str,
    tasks: Collection[str | None],
) -> HeldOut:
    """Documents; or examples with these columns, whose classes are the model's."""
    if columns is None:
        return [text for file in files for text in read_documents(Source(path=file))]
    sources = [LabelledSource(path=file, text=columns[0], label=columns[1]) for file in files]
    if "regression" in tasks:
        return read_examples(*sources, regression=True)
    names = class_names(load_config(model_of(model)))
    unnamed = names == tuple(f"LABEL_{place}" for place in range(len(names)))
    return read_examples(*sources, labels=[str(place) for place in range(len(names))] if unnamed else names)


def held_out_of_run(name: str) -> HeldOut:
    """The validation text or examples of the run that a model belongs to.

    Raises:
        UsageError: It belongs to none that has some.
    """
    for folder in (Path(name), *Path(name).resolve().parents):
        if (folder / RECORD).is_file():
            found = held_out_of_recipe(load(str(folder / RECIPE)))
            if found:
                return found
    raise UsageError(
        f"{name}: the suites need held-out data, and this is no run that has some; give --data FILE"
    )
