"""The command ``agreement``: students beside their teacher on the same labelled examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from stlm_kd.data.labelled import Examples
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.engine import current_device
from stlm_kd.errors import DataError, UsageError
from stlm_kd.eval.agreement import Agreement, Mean, Predictions, agreement
from stlm_kd.eval.examples import hash_of_texts, logits_of
from stlm_kd.eval.predictions import Kappa
from stlm_kd.models.classifiers import class_names, load_classifier
from stlm_kd.models.load import load_config
from stlm_kd.run.evaluate import held_out_of_run, read_held_out
from stlm_kd.run.models import model_of

SHOWN_FLIPS = 10


@dataclass(frozen=True, slots=True)
class Agreements:
    """A teacher and its students, and what they were asked.

    Attributes:
        found: One for each student.
        predictions: Of the teacher, then of each student.
        texts: Of each example by id: one or two.
    """

    found: tuple[Agreement, ...]
    predictions: tuple[Predictions, ...]
    texts: Mapping[str, tuple[str, ...]]


def agreements(
    teacher: str,
    students: Sequence[str],
    *,
    data: Sequence[str],
    text: Sequence[str],
    label: str,
    context: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    trust_remote_code: bool = False,
) -> Agreements:
    """How each student agrees with the teacher; every model reads by its own tokenizer.

    Args:
        teacher: A run, model folder or Hub id of a classifier.
        students: The same; different ones.
        data: Files of labelled examples; none: the validation examples of each model's own run, which have to
            be the same, or of the run of another where a model has none.
        text: The columns of the text, one or two.
        label: The column of the label.
        context: Tokens of an example at most; by default 512, or as many as a model has positions for.
        precision: ``bf16`` runs the models under autocast.
        trust_remote_code: Whether models may run code that they bring.

    Raises:
        UsageError: A model given twice, or no examples.
        DataError: Other examples, or numbers in place of classes.
        ModelError, EnvironmentFault: As ``load_classifier``.
    """
    names = [teacher, *students]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: given twice")
    held = _of_data(names, data, tuple(text), label) if data else _of_runs(names)
    predictions = []
    for name in names:
        examples = held[name]
        logits_NC = _logits(name, examples, context, precision, trust_remote_code)
        predictions.append(
            Predictions(name, examples.ids, examples.labels, logits_NC, examples.label_names)  # type: ignore[arg-type]
        )
    first = held[teacher]
    return Agreements(
        tuple(agreement(predictions[0], student) for student in predictions[1:]),
        tuple(predictions),
        dict(zip(first.ids, first.texts, strict=True)),
    )


def as_json(found: Agreements) -> dict[str, Any]:
    """Everything, ready for ``json.dumps``; of each example its label and what every model says of it."""
    teacher = found.predictions[0]
    names = teacher.classes
    predicted = {one.name: one.ordered(teacher.ids).predicted for one in found.predictions}
    return {
        "agreements": [asdict(one) for one in found.found],
        "classes": list(names),
        "examples": [
            {
                "id": example,
                "text": list(found.texts[example]),
                "label": names[teacher.labels[place]],
                "predicted": {name: names[classes[place]] for name, classes in predicted.items()},
            }
            for place, example in enumerate(teacher.ids)
        ],
    }


def agreement_table(found: Agreements) -> Table:
    """One column for each model, the teacher first; the notes stand below."""
    notes = dict.fromkeys(note for one in found.found for note in one.notes)
    first = found.found[0]
    lines = [
        f"{first.examples:,} examples; ±: standard error; […]: 95 % interval; divergences in nats",
        *notes,
    ]
    table = Table(caption=Text("\n".join(lines), "table.caption"), caption_justify="left")
    table.add_column("")
    table.add_column(Text(f"teacher {first.teacher}"), justify="right")
    for one in found.found:
        table.add_column(Text(one.student), justify="right")
    calibration = "calibration error (ECE) ↓"
    table.add_row(
        "accuracy ↑", _shown(first.teacher_accuracy), *(_shown(one.student_accuracy) for one in found.found)
    )
    table.add_row(
        calibration,
        f"{first.teacher_calibration:.4f}",
        *(f"{one.student_calibration:.4f}" for one in found.found),
    )
    rows = [_of_student(one) for one in found.found]
    for name in rows[0]:
        table.add_row(Text(name), "", *(Text(row[name]) for row in rows))
    return table


def flip_lines(found: Agreements) -> list[str]:
    """The first ``SHOWN_FLIPS`` examples of each student that it classifies differently from the teacher."""
    lines = []
    for one in found.found:
        lines.append(
            f"{one.student}: {len(one.flips)} flips" + (f", the first {SHOWN_FLIPS}:" if one.flips else "")
        )
        lines += [
            f"  {flip.id}: {flip.teacher} → {flip.student} (label {flip.label}): "
            f"{' | '.join(found.texts[flip.id])}"
            for flip in one.flips[:SHOWN_FLIPS]
        ]
    return lines


def _of_data(
    names: Sequence[str], data: Sequence[str], text: tuple[str, ...], label: str
) -> dict[str, Examples]:
    """The same examples for all, with the classes of the first model that names its own."""
    named = (name for name in names if class_names(load_config(model_of(name)))[0] != "LABEL_0")
    examples = read_held_out(data, (text, label), next(named, names[0]), {"classification"})
    assert isinstance(examples, Examples)
    return dict.fromkeys(names, examples)


def _of_runs(names: Sequence[str]) -> dict[str, Examples]:
    """Each model's own validation examples; a model without a run gets those of the first that has one."""
    own = {name: found for name in names if (found := _of_run(name)) is not None}
    if not own:
        raise UsageError(f"{', '.join(names)}: none is of a run that has labelled examples; give --data FILE")
    first = next(iter(own))
    for name, examples in own.items():
        if hash_of_texts(examples) != hash_of_texts(own[first]):
            raise DataError(
                f"{name} and {first} cannot be compared: the validation examples of their runs are other "
                "texts, or have other ids; score both on the same: --data FILE"
            )
    return {name: own.get(name, own[first]) for name in names}


def _of_run(name: str) -> Examples | None:
    try:
        found = held_out_of_run(name)
    except UsageError:  # which says that it is of no run
        return None
    if not isinstance(found, Examples) or found.is_regression:
        raise UsageError(f"{name}: its run has no examples with classes, by which alone models agree or not")
    return found


def _logits(
    name: str, examples: Examples, context: int | None, precision: Literal["fp32", "bf16"], trust: bool
) -> npt.NDArray[np.float64]:
    folder = model_of(name)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    model = load_classifier(folder, examples.label_names, tokenizer=tokenizer, trust_remote_code=trust)
    model.to(current_device())  # type: ignore[arg-type]
    return logits_of(model, tokenizer, examples, context=context, precision=precision)


def _of_student(one: Agreement) -> dict[str, str]:
    """What a student has in common with the teacher, by the name of the row."""
    errors = one.errors
    overlap = "—"
    if errors.overlap is not None:
        overlap = f"{errors.overlap:.4f} ({errors.by_chance:.4f})"
    return {
        "accuracy - teacher's": (
            f"{one.difference.mean:+.4f} [{one.difference.low:+.4f}, {one.difference.high:+.4f}]"
        ),
        "McNemar p (mid-p)": f"{one.test.p:.3g}",
        "Cohen's κ": _of_kappa(one.kappa),
        "same class": _shown(one.top1),
        "KL(teacher || student)": _shown(one.kl),
        "Jensen-Shannon": _shown(one.js),
        "wrong: both (same class), teacher alone, student alone": (
            f"{errors.both} ({errors.same}), {errors.only_teacher}, {errors.only_student}"
        ),
        "overlap of errors (if independent)": overlap,
        "κ of errors": _of_kappa(errors.consistency),
        "flips": str(len(one.flips)),
    }


def _of_kappa(kappa: Kappa) -> str:
    if kappa.value is None:
        return "—"
    return f"{kappa.value:.4f} [{kappa.low:.4f}, {kappa.high:.4f}]"


def _shown(mean: Mean) -> str:
    return f"{mean.value:.4f} ± {mean.stderr:.4f}"
