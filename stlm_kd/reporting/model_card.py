"""A model card in the Hub's format, for a trained student, from the records of its run.

It is stored in the run's own copy of the model, not in the shared stage: two runs with different scores may
share a model, and a stage's content must match its hash.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from stlm_kd.artifacts.atomic import write_text
from stlm_kd.artifacts.record import Pinned
from stlm_kd.artifacts.reports import TrainingReport
from stlm_kd.artifacts.results import Row, Variant
from stlm_kd.comparison.results_table import ResultsTable, alone
from stlm_kd.recipe import Recipe, resolved_yaml
from stlm_kd.recipe.describe import describe
from stlm_kd.reporting.format import UNKNOWN, count, flops
from stlm_kd.reporting.tables.results import notes_of
from stlm_kd.reporting.templating import render
from stlm_kd.sharing.names import hub_name, hub_name_or_path

CARD = "README.md"
PIPELINES = {
    "clm": "text-generation",
    "mlm": "fill-mask",
    "classification": "text-classification",
    "regression": "text-classification",
}
LOADERS = {
    "clm": "AutoModelForCausalLM",
    "mlm": "AutoModelForMaskedLM",
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
}


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The contents of the card of one seed of a run's student; ``remarks`` are the notes below its table."""

    run: str
    recipe: Recipe
    variant: Variant
    seed: int
    report: TrainingReport
    scores: ResultsTable
    remarks: Sequence[str]
    family: str
    pins: Sequence[Pinned] = ()

    @property
    def row(self) -> Row:
        """The scores of all seeds."""
        return next(row for row in self.scores.rows if row.variant == self.variant)


def write_card(facts: CardFacts, model: Path) -> None:
    """Write the card into a model's folder, unless an identical one exists."""
    content = card(facts)
    target = model / CARD
    if not target.is_file() or target.read_text(encoding="utf-8") != content:
        write_text(target, content)


def family_of(model: Path) -> str:
    """The model family in a model's configuration."""
    return str(json.loads((model / "config.json").read_text(encoding="utf-8"))["model_type"])


def card(facts: CardFacts) -> str:
    """The whole card, in Markdown."""
    row, recipe = facts.row, facts.recipe
    return render(
        "model_card.md.j2",
        facts=facts,
        row=row,
        report=facts.report,
        front=yaml.safe_dump(_front(facts), sort_keys=False, allow_unicode=True),
        origin=_origin(facts),
        synthetic=is_synthetic(recipe),
        scores=_scores(facts.scores, row, facts.seed),
        notes=[note for note in dict.fromkeys((*facts.remarks, *notes_of(facts.scores, [row]))) if note],
        loader=LOADERS[recipe.task],
        summary=_fenced(describe(recipe)),
        resolved=_fenced(resolved_yaml(recipe), "yaml"),
        count=count,
        flops=flops,
    )


def is_synthetic(recipe: Recipe) -> bool:
    """Whether any of its text or examples, training or held-out, is generated."""
    return any(one.kind == "sample" for one in (*recipe.data.train, *(recipe.data.validation or ())))


def _front(facts: CardFacts) -> dict[str, object]:
    recipe, is_taught = facts.recipe, facts.variant == "student" and facts.recipe.teachers != ()
    sources = (*recipe.data.train, *(recipe.data.validation or ()))
    bases = [recipe.student.model] if recipe.student.model else []
    bases += [teacher.model for teacher in recipe.teachers if is_taught and teacher.model is not None]
    if recipe.student.init_from is not None:
        wanted = recipe.student.init_from.teacher
        bases += [teacher.model for teacher in recipe.teachers if teacher.name == wanted and teacher.model]
    found = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINES[recipe.task],
        "license": "unknown",
        "base_model": list(dict.fromkeys(name for base in bases if (name := _hub_id(base)) is not None)),
        "datasets": list(dict.fromkeys(hub_name(one.value).id for one in sources if one.kind == "hub")),
        "tags": [
            "stlm-kd",
            *(["knowledge-distillation"] if is_taught else []),
            *(["synthetic-data"] if is_synthetic(recipe) else []),
        ],
    }
    return {key: value for key, value in found.items() if value}


def _hub_id(name: str) -> str | None:
    found = hub_name_or_path(name)
    return None if found is None else found.id


def _origin(facts: CardFacts) -> str:
    """How the model was trained."""
    if facts.variant != "student":
        return f"a control without teachers ({facts.variant})"
    names = [teacher.name for teacher in facts.recipe.teachers]
    return f"distilled from {', '.join(names)}" if names else "trained without teachers"


def _scores(scores: ResultsTable, row: Row, seed: int) -> list[tuple[str, str, str]]:
    """Each metric with its score for one seed, and over all seeds if there are several."""
    return [
        (
            metric.label,
            str(alone(scores.scores_by_seed[name, metric].get(seed)) or ""),
            str(scores.spread(row, metric) or UNKNOWN) if len(row.seeds) > 1 else UNKNOWN,
        )
        for name, metric in scores.samples
        if name == row.name
    ]


def _fenced(content: str, language: str = "") -> str:
    """A fenced code block, with a fence longer than any in the content."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content.rstrip()}\n{fence}"
