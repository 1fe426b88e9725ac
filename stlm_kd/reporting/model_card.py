"""A model card in the Hub's format, for a trained student, from the records of its run.

It is stored in the run's own copy of the model, not in the shared stage: two runs with different scores may
share a model, and a stage's content must match its hash.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from stlm_kd.artifacts.atomic import write_text
from stlm_kd.artifacts.reports import TrainingReport
from stlm_kd.artifacts.results import Row, Variant
from stlm_kd.comparison.metrics import metrics_of, spread
from stlm_kd.data.sources.files import expanded
from stlm_kd.recipe import Recipe, resolved_yaml
from stlm_kd.recipe.describe import describe
from stlm_kd.reporting.tables.results import notes_of

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
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The contents of a card.

    Attributes:
        run: The run's name.
        recipe: The run's recipe.
        variant: Which of its students.
        seed: Which of its seeds.
        report: The training report.
        row: The scores of all seeds.
        remarks: The notes below the run's table.
        family: The model family in the model's configuration.
    """

    run: str
    recipe: Recipe
    variant: Variant
    seed: int
    report: TrainingReport
    row: Row
    remarks: Sequence[str]
    family: str


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
    parts = [
        f"---\n{yaml.safe_dump(_front(facts), sort_keys=False, allow_unicode=True)}---",
        f"# {facts.row.name}, seed {facts.seed}, of the run {facts.run}",
        "\n".join(_what(facts)),
        f"## Scores\n\n{_scores(facts)}",
        f"## Usage\n\n```python\n{_loading(facts)}\n```",
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(facts)),
        f"## Recipe summary\n\n{_fenced(describe(facts.recipe))}",
        f"## Resolved recipe\n\n{_fenced(resolved_yaml(facts.recipe), 'yaml')}",
    ]
    return "\n\n".join(parts) + "\n"


def is_synthetic(recipe: Recipe) -> bool:
    """Whether any of its text or examples, training or held-out, is generated."""
    return any(one.sample is not None for one in (*recipe.data.train, *(recipe.data.validation or ())))


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
        "base_model": list(dict.fromkeys(name for name in bases if _is_on_the_hub(name))),
        "datasets": list(dict.fromkeys(source.hub for source in sources if source.hub)),
        "tags": [
            "stlm-kd",
            *(["knowledge-distillation"] if is_taught else []),
            *(["synthetic-data"] if is_synthetic(recipe) else []),
        ],
    }
    return {key: value for key, value in found.items() if value}


def _is_on_the_hub(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and not expanded(name).exists()


def _what(facts: CardFacts) -> Iterator[str]:
    report, names = facts.report, [teacher.name for teacher in facts.recipe.teachers]
    if facts.variant != "student":
        how = f"a control without teachers ({facts.variant})"
    else:
        how = f"distilled from {', '.join(names)}" if names else "trained without teachers"
    yield f"A {facts.family} of {report.parameters:,} parameters for {facts.recipe.task}, {how}."
    if is_synthetic(facts.recipe):
        yield "Some of its text or examples are **synthetic**: generated by stlm-kd, not written by people."
    kept = "the last step" if report.best_step is None else f"step {report.best_step:,}"
    kept += " (before training)" if report.best_step == 0 else ""
    yield (
        f"Trained for {report.steps:,} steps on {report.tokens_seen:,} tokens (of {report.tokens_of_text:,} "
        f"tokens of text) in {report.seconds:,.0f} seconds; checkpoint: {kept}."
    )
    if report.flops is not None:
        yield f"The training took {report.flops:.2e} FLOPs, including those of the teachers."


def _scores(facts: CardFacts) -> str:
    row, place = facts.row, facts.row.seeds.index(facts.seed)
    lines = [f"| metric | this model | all {len(row.seeds)} seeds |", "|---|---|---|"]
    for metric in metrics_of([row]):
        own = spread(_alone(row, place), metric)
        both = spread(row, metric) if len(row.seeds) > 1 else None
        lines.append(f"| {metric.label} | {own if own is not None else ''} | {both or '—'} |")
    if len(lines) == 2:
        return "None: the recipe has no eval."
    legend = "This model: ± standard error over examples. All seeds: mean ± 95 % interval (Student's t)."
    known = dict.fromkeys((*facts.remarks, *notes_of([row])))
    return "\n".join([*lines, "", legend, "", *(f"- {one}" for one in known if one)]).rstrip()


def _alone(row: Row, place: int) -> Row:
    return Row(
        name=row.name,
        kind=row.kind,
        parameters=row.parameters,
        tokens_of_text=row.tokens_of_text,
        tokens_seen=row.tokens_seen,
        seeds=(row.seeds[place],),
        scores=(row.scores[place],),
        variant=row.variant,
    )


def _loading(facts: CardFacts) -> str:
    loader = LOADERS[facts.recipe.task]
    lines = [f"from transformers import {loader}, PreTrainedTokenizerFast"]
    if facts.family == "mobillama":
        lines.insert(0, "from stlm_kd.models.architectures import mobillama")
        lines += ["", "mobillama.register()"]
    return "\n".join(
        [
            *lines,
            "",
            f'model = {loader}.from_pretrained("FOLDER")  # the folder of this file',
            'tokenizer = PreTrainedTokenizerFast.from_pretrained("FOLDER")',
        ]
    )


def _limits(facts: CardFacts) -> Iterator[str]:
    yield "A tiny model for research and narrow tasks; its output can be fluent and wrong."
    yield "Its scores apply only to the held-out data and suites above."
    yield "It was not evaluated for bias, safety or memorisation of its training data."
    yield "Its licence is unknown: it depends on those of the data and the teachers; check them before use."
    if facts.variant != "student":
        yield "It is the control of an experiment, trained for comparison only."


def _fenced(content: str, language: str = "") -> str:
    """A fenced code block, with a fence longer than any in the content."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content.rstrip()}\n{fence}"
