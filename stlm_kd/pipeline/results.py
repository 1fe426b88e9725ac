"""The final outputs of a run: results, table, explanations, curves and model cards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from stlm_kd.artifacts.atomic import write_json, write_text
from stlm_kd.artifacts.hashing import known_sha256
from stlm_kd.artifacts.output import width_of
from stlm_kd.artifacts.reports import AdaptationReport, TrainingReport, read_adaptation, read_report
from stlm_kd.artifacts.results import Row, ScoredModel, SuiteResult, Variant
from stlm_kd.artifacts.stage_store import WEIGHTS
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.data.tokenizers import load_tokenizer, tokenizer_identity
from stlm_kd.models.load import count_parameters
from stlm_kd.pipeline.builders.models import empty_model
from stlm_kd.pipeline.builders.text import tokens_by_domain
from stlm_kd.pipeline.checks.overlap import recipe_notes
from stlm_kd.pipeline.checks.requirements import gguf_models
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.stage_keys import model_identity
from stlm_kd.pipeline.stages.score import write_reports
from stlm_kd.pipeline.stages.teacher import PreparedTeacher, copy_reports
from stlm_kd.pipeline.stages.tokenizer import setup_of
from stlm_kd.pipeline.summary import comparisons, selection_remark, text_remark, weak_teachers
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.cache import objectives_of_teacher
from stlm_kd.reporting.explanations import write_explanations
from stlm_kd.reporting.figures import draw_curves
from stlm_kd.reporting.format import cell
from stlm_kd.reporting.model_card import CardFacts, family_of, write_card
from stlm_kd.reporting.tables.results import as_json, result_table
from stlm_kd.sharing.gguf import gguf_file
from stlm_kd.sharing.names import hub_name_or_path
from stlm_kd.sharing.pins import current
from stlm_kd.tracking.metrics import UNITS


def write_results(
    recipe: Recipe,
    run: Path,
    teachers: Sequence[PreparedTeacher],
    students: Mapping[Variant, Sequence[Path]],
    scores: Mapping[str, tuple[SuiteResult, ...]],
    context: RunContext,
) -> None:
    """Write results.json, table.txt, curves.png, attribution pages, lm-eval reports and model cards."""
    copy_reports(teachers, run)
    for folders in students.values():
        for folder in folders:
            write_reports(scores[str(folder / "model")], folder)
    rows = result_rows(recipe, teachers, students, scores, trust=context.trust_remote_code)
    setup = setup_of(recipe, context)
    domains = tokens_by_domain(setup) if recipe.language_task is not None else {}
    table = ResultsTable(rows)
    verdicts, notes = comparisons(table)
    remarks = [
        *weak_teachers(table),
        *verdicts,
        *notes,
        *selection_remark(recipe),
        *recipe_notes(setup),
        *gguf_models(recipe),
        *text_remark(domains),
    ]
    used = current().records()
    values = as_json(table, remarks, domains, verdicts=verdicts)
    write_json(run / "results.json", {**values, "pins": [asdict(one) for one in used]})
    write_text(run / "table.txt", _as_text(table, remarks, title=run.name))
    write_explanations(rows, run)
    draw_curves(
        {str(variant): folders for variant, folders in students.items()},
        run / "curves.png",
        unit=UNITS[recipe.task],
    )
    for variant, folders in students.items():
        for seed, folder in zip(recipe.seeds, folders, strict=True):
            model, report = folder / "model", read_report(folder)
            facts = CardFacts(run.name, recipe, variant, seed, report, table, remarks, family_of(model), used)
            write_card(facts, model)


def result_rows(
    recipe: Recipe,
    teachers: Sequence[PreparedTeacher],
    students: Mapping[Variant, Sequence[Path]],
    scores: Mapping[str, tuple[SuiteResult, ...]],
    *,
    trust: bool,
) -> list[Row]:
    """Table rows: each teacher (original and adapted), then the student and each control."""
    own = [teacher for teacher in teachers if not teacher.is_only_read]
    rows = [row for teacher in own for row in _teacher_rows(teacher, scores, trust)]
    is_distilled = any(objectives_of_teacher(recipe, teacher.name) for teacher in recipe.teachers)
    for variant, folders in students.items():
        reports = [read_report(folder) for folder in folders]
        rows.append(
            Row(
                name="distilled student" if variant == "student" and is_distilled else variant,
                kind="student" if variant == "student" else "control",
                variant=variant,
                parameters=reports[0].parameters,
                tokens_of_text=max(report.tokens_of_text for report in reports),
                tokens_seen=max(report.tokens_seen for report in reports),
                steps=max(report.steps for report in reports),
                flops=_most(report.flops for report in reports),
                seeds=recipe.seeds,
                scores=tuple(scores[str(folder / "model")] for folder in folders),
                of=tuple(scored_model(str(folder / "model"), trust=trust) for folder in folders),
            )
        )
    return rows


def _teacher_rows(
    teacher: PreparedTeacher, scores: Mapping[str, tuple[SuiteResult, ...]], trust: bool
) -> Iterator[Row]:
    trained = read_report(teacher.training) if teacher.training is not None else None
    yield Row(
        name=f"teacher {teacher.name}",
        kind="teacher",
        teaches=teacher.adaptation is None,
        parameters=trained.parameters if trained else parameters_of(teacher.original, trust),
        **_cost(trained),
        seeds=(),
        scores=(scores[teacher.original],),
        of=(scored_model(teacher.original, trust=trust),),
    )
    if teacher.adaptation is not None:
        adapted = read_adaptation(teacher.adaptation)
        yield Row(
            name=f"teacher {teacher.name}, adapted",
            kind="adapted",
            teaches=True,
            parameters=parameters_of(teacher.model, trust),
            **_cost(adapted),
            seeds=(),
            scores=(scores[teacher.model],),
            of=(scored_model(teacher.model, trust=trust),),
        )


def scored_model(model: str, *, trust: bool) -> ScoredModel:
    """The hashes of a folder's weights, or the commit of a name on the Hub, and the tokenizer's identity."""
    tokenizer = tokenizer_identity(load_tokenizer(model, trust_remote_code=trust))
    if hub_name_or_path(model) is not None:
        return ScoredModel({}, tokenizer, model_identity(model))
    file = gguf_file(model)
    files = sorted(Path(model).glob(f"*{WEIGHTS}")) if file is None else [file]
    return ScoredModel({file.name: f"sha256:{known_sha256(file)}" for file in files}, tokenizer)


def _cost(report: TrainingReport | AdaptationReport | None) -> dict[str, Any]:
    names = ("tokens_of_text", "tokens_seen", "steps", "flops")
    return {name: getattr(report, name, None) for name in names}


def _most(counts: Iterable[int | None]) -> int | None:
    """The maximum; None if any count is unknown."""
    found = list(counts)
    known = [count for count in found if count is not None]
    return max(known) if len(known) == len(found) else None


def parameters_of(model: str, trust: bool) -> int:
    """The number of parameters according to a model's configuration, without reading its weights."""
    return count_parameters(empty_model(model, trust_remote_code=trust))


def _as_text(scores: ResultsTable, remarks: Sequence[str], *, title: str) -> str:
    text, table = StringIO(), result_table(scores, title)
    console = Console(file=text, width=width_of(table))
    console.print(table)
    for remark in remarks:
        console.print(cell(remark), soft_wrap=True)
    return text.getvalue()
