"""Cards in the Hub's format: of a trained student, and of a recipe, from the records of a run.

That of a student is stored in the run's own copy of the model, not in the shared stage: two runs with
different scores may share a model, and a stage's content must match its hash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stlm_kd.artifacts.atomic import read_json, write_text
from stlm_kd.artifacts.record import Pinned
from stlm_kd.artifacts.reports import MEASURES, TrainingReport
from stlm_kd.artifacts.results import Row, measurable
from stlm_kd.artifacts.saved_results import Results
from stlm_kd.comparison.metrics import MEASURES_TEXT, Metric
from stlm_kd.comparison.results_table import ResultsTable, alone
from stlm_kd.errors import inline_markdown
from stlm_kd.recipe import Recipe, from_values, plain, resolved_yaml
from stlm_kd.recipe.describe import describe
from stlm_kd.recipe.lock import Lock
from stlm_kd.reporting.format import UNKNOWN, count, flops
from stlm_kd.reporting.tables.results import notes_of, result_table
from stlm_kd.reporting.templating import cells, render
from stlm_kd.sharing.address import TAG
from stlm_kd.sharing.names import hub_name, hub_name_or_path

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

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
    """The contents of the card of one seed of a run's student.

    Attributes:
        remarks: The notes below its table.
        pins: What the run used from the Hub.
        data: The commits of each suite's data sets, by ``suite:task`` and id.
        address: The address of the recipe, if it was pushed.
    """

    run: str
    recipe: Recipe
    variant: str
    seed: int
    report: TrainingReport
    scores: ResultsTable
    remarks: Sequence[str]
    family: str
    pins: Sequence[Pinned] = ()
    data: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    address: str = ""

    @property
    def row(self) -> Row:
        """The scores of all seeds."""
        return next(row for row in self.scores.rows if row.variant == self.variant)


@dataclass(frozen=True, slots=True)
class RecipeFacts:
    """The contents of a recipe's card.

    Attributes:
        name: Title.
        address: Where it is.
        purpose: The first line of the recipe's header; "" if it has none.
        pins: What it uses from the Hub.
        results: Those of its run; None if it was not run.
    """

    name: str
    address: str
    recipe: Recipe
    purpose: str
    lock: Lock
    pins: Sequence[Pinned] = ()
    results: Results | None = None


def write_card(facts: CardFacts, model: Path) -> None:
    """Write the card into a model's folder, unless an identical one exists."""
    content = card(facts)
    target = model / CARD
    if not target.is_file() or target.read_text(encoding="utf-8") != content:
        write_text(target, content)


def family_of(model: Path) -> str:
    """The model family in a model's configuration."""
    return str(read_json(model / "config.json", nan=True)["model_type"])


def card(facts: CardFacts) -> str:
    """The whole card, in Markdown."""
    row, recipe = facts.row, facts.recipe
    return render(
        "model_card.md.j2",
        facts=facts,
        row=row,
        report=facts.report,
        front=_student_front(facts),
        licence=_licence(facts.recipe, facts.pins),
        origin=_origin(facts),
        synthetic=is_synthetic(recipe),
        scores=_scores(facts.scores, row, facts.seed),
        notes=[note for note in dict.fromkeys((*facts.remarks, *notes_of(facts.scores, [row]))) if note],
        loader=LOADERS[recipe.task],
        summary=_fenced(_summary(recipe)),
        resolved=_fenced(resolved_yaml(recipe), "yaml"),
        count=count,
        flops=flops,
    )


def recipe_card(facts: RecipeFacts) -> str:
    """The card of a recipe, in Markdown: its summary and lock, and the results of its run as one table."""
    recipe, results = facts.recipe, facts.results
    table = None if results is None or not results.rows else ResultsTable(results.rows)
    return render(
        "recipe_card.md.j2",
        facts=facts,
        front=_recipe_front(facts, table),
        synthetic=is_synthetic(recipe),
        table=None if table is None else cells(result_table(table, "")),
        adaptations={} if results is None else results.adaptations,
        measures=MEASURES,
        remarks=() if results is None else results.remarks,
        summary=_fenced(_summary(recipe)),
        resolved=_fenced(resolved_yaml(recipe), "yaml"),
    )


def plain_card(name: str) -> str:
    """The card of a model of which nothing is known."""
    front = _front(license="unknown", library_name="transformers", tags=["stlm-kd"])
    return f"---\n{front}---\n\n# {inline_markdown(name)}\n"


def is_synthetic(recipe: Recipe) -> bool:
    """Whether any of its text or examples, training or held-out, is generated."""
    return any(one.kind == "sample" for one in (*recipe.data.train, *(recipe.data.validation or ())))


def _student_front(facts: CardFacts) -> str:
    recipe, is_taught = facts.recipe, facts.variant == "student" and facts.recipe.teachers != ()
    name, scores = facts.row.name, facts.scores.scores_by_seed
    values = {
        metric: scores[name, metric][facts.seed].value
        for model, metric in scores
        if model == name and facts.seed in scores[name, metric]
    }
    return _front(
        library_name="transformers",
        pipeline_tag=PIPELINES[recipe.task],
        license=_licence(recipe, facts.pins) or "unknown",
        base_model=_bases(recipe, is_taught=is_taught),
        datasets=_datasets(recipe),
        tags=[
            "stlm-kd",
            *(["knowledge-distillation"] if is_taught else []),
            *(["synthetic-data"] if is_synthetic(recipe) else []),
        ],
        model_name=f"{facts.run} {name}",
        eval_results=_index(recipe, values, facts.data, facts.pins),
    )


def _recipe_front(facts: RecipeFacts, table: ResultsTable | None) -> str:
    recipe = facts.recipe
    row = next((row for row in table.rows if row.kind == "student"), None) if table is not None else None
    values = {}
    if table is not None and row is not None:
        spreads = {metric: table.spread(row, metric) for metric in table.metrics}
        values = {metric: found.mean for metric, found in spreads.items() if found is not None}
    data = {place: suite.data for place, suite in facts.lock.eval.items()}
    return _front(
        library_name="stlm-kd",
        license=_licence(recipe, facts.pins) or "unknown",
        base_model=_bases(recipe, is_taught=True),
        datasets=_datasets(recipe),
        tags=[TAG, "stlm-kd", recipe.task, *(["synthetic-data"] if is_synthetic(recipe) else [])],
        purpose=facts.purpose,
        model_name=facts.name,
        eval_results=_index(recipe, values, data, facts.pins),
    )


def _front(**values: object) -> str:
    """The front matter of a card, by the Hub's own class, without empty values."""
    from huggingface_hub import ModelCardData

    given = {key: value for key, value in values.items() if value}
    if "eval_results" not in given:
        given.pop("model_name", None)
    return f"{ModelCardData(**given).to_yaml()}\n"  # type: ignore[arg-type]  # its keywords


def _index(
    recipe: Recipe,
    values: Mapping[Metric, float],
    data: Mapping[str, Mapping[str, str]],
    pins: Iterable[Pinned],
) -> list[EvalResult]:
    """The scores as the Hub lists them, with the commit of the data where one data set is known."""
    from huggingface_hub import EvalResult

    held_out = recipe.data.validation or ()
    commits = {one.id: one.commit for one in pins if one.kind == "dataset"}
    found = []
    for metric, value in values.items():
        if not measurable(value):
            continue
        sets = data.get(f"{metric.suite}:{metric.task}", {})
        if metric.suite in MEASURES_TEXT and [one.kind for one in held_out] == ["hub"]:
            name = hub_name(held_out[0].value).id
            sets = {name: commits.get(name, "")}
        kind, revision = next(iter(sets.items())) if len(sets) == 1 else (metric.suite, "")
        found.append(
            EvalResult(
                task_type=PIPELINES[recipe.task],
                dataset_type=kind.partition("@")[0],
                dataset_name=metric.task,
                dataset_revision=revision or None,
                metric_type=metric.metric,
                metric_name=metric.name,
                metric_value=value,
            )
        )
    return found


def _bases(recipe: Recipe, *, is_taught: bool) -> list[str]:
    bases = [recipe.student.model] if recipe.student.model else []
    bases += [teacher.model for teacher in recipe.teachers if is_taught and teacher.model is not None]
    if recipe.student.init_from is not None:
        wanted = recipe.student.init_from.teacher
        bases += [teacher.model for teacher in recipe.teachers if teacher.name == wanted and teacher.model]
    return list(dict.fromkeys(name for base in bases if (name := _hub_id(base)) is not None))


def _datasets(recipe: Recipe) -> list[str]:
    sources = (*recipe.data.train, *(recipe.data.validation or ()))
    return list(dict.fromkeys(hub_name(one.value).id for one in sources if one.kind == "hub"))


def _licence(recipe: Recipe, pins: Iterable[Pinned]) -> str | None:
    """The licence of all models and data that were used, if it is one; None if any is unknown."""
    sources = (*recipe.data.train, *(recipe.data.validation or ()))
    models = (recipe.student.model, *(teacher.model for teacher in recipe.teachers))
    if any(one.kind == "path" for one in sources) or any(one and _hub_id(one) is None for one in models):
        return None
    licences = {one.licence for one in pins}
    return licences.pop() if len(licences) == 1 else None


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


def _summary(recipe: Recipe) -> str:
    """The recipe in words, with relative paths as written."""
    return describe(from_values(plain(recipe), origin="the recipe", is_stored=True))


def _fenced(content: str, language: str = "") -> str:
    """A fenced code block, with a fence longer than any in the content."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content.rstrip()}\n{fence}"
