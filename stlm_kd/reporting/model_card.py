"""A model card: what a trained student is, in the form that the Hub reads, of facts of its run alone.

It lies in the run's own copy of the model, never in the stage that runs share: two runs of other scores may
share a model, and a stage is what its hash says.
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
    """What a card tells.

    Attributes:
        run: The run's name.
        recipe: The run's.
        variant: Which of its students.
        seed: Which of its seeds.
        report: What the training took.
        row: The scores of all seeds.
        remarks: What the run's table ends with.
        family: As the model's configuration names it.
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
    """Put the card into a model's folder; one that says the same stays as it is."""
    content = card(facts)
    target = model / CARD
    if not target.is_file() or target.read_text(encoding="utf-8") != content:
        write_text(target, content)


def family_of(model: Path) -> str:
    """The family that a model's configuration names."""
    return str(json.loads((model / "config.json").read_text(encoding="utf-8"))["model_type"])


def card(facts: CardFacts) -> str:
    """The whole card, in Markdown."""
    parts = [
        f"---\n{yaml.safe_dump(_front(facts), sort_keys=False, allow_unicode=True)}---",
        f"# {facts.row.name}, seed {facts.seed}, of the run {facts.run}",
        "\n".join(_what(facts)),
        f"## Scores\n\n{_scores(facts)}",
        f"## How to load it\n\n```python\n{_loading(facts)}\n```",
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(facts)),
        f"## What the recipe says\n\n{_fenced(describe(facts.recipe))}",
        f"## The recipe as resolved\n\n{_fenced(resolved_yaml(facts.recipe), 'yaml')}",
    ]
    return "\n\n".join(parts) + "\n"


def is_synthetic(recipe: Recipe) -> bool:
    """Whether some of its text or examples, training or held out, are generated."""
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
    kept = "the last" if report.best_step is None else f"those of step {report.best_step:,}"
    kept += ", before any training" if report.best_step == 0 else ""
    yield (
        f"Trained for {report.steps:,} steps on {report.tokens_seen:,} tokens (of {report.tokens_of_text:,} "
        f"tokens of text) in {report.seconds:,.0f} seconds; kept weights: {kept}."
    )
    if report.flops is not None:
        yield f"The training took {report.flops:.2e} floating-point operations, teachers' answers included."


def _scores(facts: CardFacts) -> str:
    row, place = facts.row, facts.row.seeds.index(facts.seed)
    lines = [f"| metric | this model | all {len(row.seeds)} seeds |", "|---|---|---|"]
    for metric in metrics_of([row]):
        own = spread(_alone(row, place), metric)
        both = spread(row, metric) if len(row.seeds) > 1 else None
        lines.append(f"| {metric.label} | {own if own is not None else ''} | {both or '—'} |")
    if len(lines) == 2:
        return "None: the recipe has no eval."
    told = "This model: ± standard error over examples. All seeds: mean ± 95 % interval (Student's t)."
    known = dict.fromkeys((*facts.remarks, *notes_of([row])))
    return "\n".join([*lines, "", told, "", *(f"- {one}" for one in known if one)]).rstrip()


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
        lines.insert(0, "from stlm_kd.models import mobillama")
        lines += ["", "mobillama.register()"]
    return "\n".join(
        [
            *lines,
            "",
            f'model = {loader}.from_pretrained("FOLDER")  # where this file lies',
            'tokenizer = PreTrainedTokenizerFast.from_pretrained("FOLDER")',
        ]
    )


def _limits(facts: CardFacts) -> Iterator[str]:
    yield "A tiny model: it was made for study and for narrow tasks, and says wrong things fluently."
    yield "Its scores are of the held-out data and suites above alone, and of nothing else."
    yield "It was not examined for bias, safety or what it remembers of its training data."
    yield "Its licence is unknown: it depends on those of the data and the teachers; look them up before use."
    if facts.variant != "student":
        yield "It is a control of an experiment, there to be compared with."


def _fenced(content: str, language: str = "") -> str:
    """A block of text that nothing in it can end."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content.rstrip()}\n{fence}"
