"""Distil one or several large teachers into a tiny language model.

The names of ``__all__`` are imported on first use, so that ``import stlm_kd`` takes a few milliseconds.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stlm_kd import errors, losses
    from stlm_kd.adaptation.initialisers import register_initialiser
    from stlm_kd.artifacts.housekeeping import StageSummary, clean_stages, list_stages
    from stlm_kd.artifacts.results import SuiteResult
    from stlm_kd.artifacts.run_dir import list_runs
    from stlm_kd.comparison.compare import Comparison, compare
    from stlm_kd.comparison.smallest import Smallest
    from stlm_kd.data.sources import register_data_source
    from stlm_kd.distillation.step import DistillationStep
    from stlm_kd.distillation.train import train
    from stlm_kd.doctor import diagnose
    from stlm_kd.doctor.finding import Finding
    from stlm_kd.estimate.estimate import estimate_recipe
    from stlm_kd.estimate.result import Estimate
    from stlm_kd.estimate.vocabularies.curve import VocabularyCurve, vocabulary_curve
    from stlm_kd.estimate.vocabularies.of_recipe import RecipeVocabularies, recipe_vocabularies
    from stlm_kd.eval import register_suite
    from stlm_kd.interventions import register_source
    from stlm_kd.losses import Temperature, register_loss
    from stlm_kd.models.families import register_family
    from stlm_kd.pipeline.adapt import adapt_teacher, adaptation_recipe
    from stlm_kd.pipeline.cache import CacheSummary, build_cache, inspect_cache, verify_cache
    from stlm_kd.pipeline.checks.data_info import data_info
    from stlm_kd.pipeline.checks.data_sets import DataSet, get_data, list_data
    from stlm_kd.pipeline.distill import distill
    from stlm_kd.pipeline.generate import generate
    from stlm_kd.pipeline.plan import plan
    from stlm_kd.pipeline.run import Run, open_run
    from stlm_kd.pipeline.scoring.agreement import agreement
    from stlm_kd.pipeline.scoring.evaluate import evaluate
    from stlm_kd.pipeline.scoring.interchange import interchange
    from stlm_kd.pipeline.scoring.vocabularies import VocabularyComparison, compare_vocabularies
    from stlm_kd.pipeline.sweep import compare_students, sweep_recipes
    from stlm_kd.publishing.diff import compare_recipes
    from stlm_kd.publishing.export import export
    from stlm_kd.publishing.locking import lock_recipe, locked
    from stlm_kd.publishing.models import push_model
    from stlm_kd.publishing.pull import pull as pull_recipe
    from stlm_kd.publishing.push import push as push_recipe
    from stlm_kd.publishing.search import search as search_recipes
    from stlm_kd.publishing.signing import sign_recipe
    from stlm_kd.publishing.verify.ladder import verify as verify_recipe
    from stlm_kd.recipe import Recipe
    from stlm_kd.recipe.catalogue import copy_recipe, show_recipe
    from stlm_kd.recipe.load import load as load_recipe
    from stlm_kd.recipe.locate import settled
    from stlm_kd.recipes import list_recipes
    from stlm_kd.reporting.run_page.page import report
    from stlm_kd.teachers.cache.merge import merge_caches
    from stlm_kd.teachers.cached import CachedTeacher
    from stlm_kd.teachers.combination import register_combiner
    from stlm_kd.teachers.live import LiveTeacher
    from stlm_kd.training import TrainingConfig

    __version__: str

_PLACES = {
    "errors": "stlm_kd.errors:",
    "losses": "stlm_kd.losses:",
    "SuiteResult": "stlm_kd.artifacts.results:SuiteResult",
    "Comparison": "stlm_kd.comparison.compare:Comparison",
    "compare": "stlm_kd.comparison.compare:compare",
    "adapt_teacher": "stlm_kd.pipeline.adapt:adapt_teacher",
    "build_cache": "stlm_kd.pipeline.cache:build_cache",
    "distill": "stlm_kd.pipeline.distill:distill",
    "Run": "stlm_kd.pipeline.run:Run",
    "open_run": "stlm_kd.pipeline.run:open_run",
    "Estimate": "stlm_kd.estimate.result:Estimate",
    "estimate_recipe": "stlm_kd.estimate.estimate:estimate_recipe",
    "RecipeVocabularies": "stlm_kd.estimate.vocabularies.of_recipe:RecipeVocabularies",
    "recipe_vocabularies": "stlm_kd.estimate.vocabularies.of_recipe:recipe_vocabularies",
    "VocabularyCurve": "stlm_kd.estimate.vocabularies.curve:VocabularyCurve",
    "vocabulary_curve": "stlm_kd.estimate.vocabularies.curve:vocabulary_curve",
    "evaluate": "stlm_kd.pipeline.scoring.evaluate:evaluate",
    "Recipe": "stlm_kd.recipe:Recipe",
    "load_recipe": "stlm_kd.recipe.load:load",
    "StageSummary": "stlm_kd.artifacts.housekeeping:StageSummary",
    "clean_stages": "stlm_kd.artifacts.housekeeping:clean_stages",
    "list_runs": "stlm_kd.artifacts.run_dir:list_runs",
    "list_stages": "stlm_kd.artifacts.housekeeping:list_stages",
    "Smallest": "stlm_kd.comparison.smallest:Smallest",
    "adaptation_recipe": "stlm_kd.pipeline.adapt:adaptation_recipe",
    "CacheSummary": "stlm_kd.pipeline.cache:CacheSummary",
    "inspect_cache": "stlm_kd.pipeline.cache:inspect_cache",
    "verify_cache": "stlm_kd.pipeline.cache:verify_cache",
    "data_info": "stlm_kd.pipeline.checks.data_info:data_info",
    "Finding": "stlm_kd.doctor.finding:Finding",
    "diagnose": "stlm_kd.doctor:diagnose",
    "DataSet": "stlm_kd.pipeline.checks.data_sets:DataSet",
    "get_data": "stlm_kd.pipeline.checks.data_sets:get_data",
    "list_data": "stlm_kd.pipeline.checks.data_sets:list_data",
    "generate": "stlm_kd.pipeline.generate:generate",
    "plan": "stlm_kd.pipeline.plan:plan",
    "agreement": "stlm_kd.pipeline.scoring.agreement:agreement",
    "interchange": "stlm_kd.pipeline.scoring.interchange:interchange",
    "compare_students": "stlm_kd.pipeline.sweep:compare_students",
    "sweep_recipes": "stlm_kd.pipeline.sweep:sweep_recipes",
    "VocabularyComparison": "stlm_kd.pipeline.scoring.vocabularies:VocabularyComparison",
    "compare_vocabularies": "stlm_kd.pipeline.scoring.vocabularies:compare_vocabularies",
    "compare_recipes": "stlm_kd.publishing.diff:compare_recipes",
    "lock_recipe": "stlm_kd.publishing.locking:lock_recipe",
    "locked": "stlm_kd.publishing.locking:locked",
    "pull_recipe": "stlm_kd.publishing.pull:pull",
    "push_model": "stlm_kd.publishing.models:push_model",
    "push_recipe": "stlm_kd.publishing.push:push",
    "search_recipes": "stlm_kd.publishing.search:search",
    "sign_recipe": "stlm_kd.publishing.signing:sign_recipe",
    "verify_recipe": "stlm_kd.publishing.verify.ladder:verify",
    "settled": "stlm_kd.recipe.locate:settled",
    "copy_recipe": "stlm_kd.recipe.catalogue:copy_recipe",
    "list_recipes": "stlm_kd.recipes:list_recipes",
    "show_recipe": "stlm_kd.recipe.catalogue:show_recipe",
    "report": "stlm_kd.reporting.run_page.page:report",
    "merge_caches": "stlm_kd.teachers.cache.merge:merge_caches",
    "export": "stlm_kd.publishing.export:export",
    "CachedTeacher": "stlm_kd.teachers.cached:CachedTeacher",
    "DistillationStep": "stlm_kd.distillation.step:DistillationStep",
    "LiveTeacher": "stlm_kd.teachers.live:LiveTeacher",
    "Temperature": "stlm_kd.losses:Temperature",
    "TrainingConfig": "stlm_kd.training:TrainingConfig",
    "register_data_source": "stlm_kd.data.sources:register_data_source",
    "register_combiner": "stlm_kd.teachers.combination:register_combiner",
    "register_family": "stlm_kd.models.families:register_family",
    "register_initialiser": "stlm_kd.adaptation.initialisers:register_initialiser",
    "register_loss": "stlm_kd.losses:register_loss",
    "register_source": "stlm_kd.interventions:register_source",
    "register_suite": "stlm_kd.eval:register_suite",
    "train": "stlm_kd.distillation.train:train",
}
"""Where each public name lives, as in the imports for type checkers."""

__all__ = [
    "CacheSummary",
    "CachedTeacher",
    "Comparison",
    "DataSet",
    "DistillationStep",
    "Estimate",
    "Finding",
    "LiveTeacher",
    "Recipe",
    "RecipeVocabularies",
    "Run",
    "Smallest",
    "StageSummary",
    "SuiteResult",
    "Temperature",
    "TrainingConfig",
    "VocabularyComparison",
    "VocabularyCurve",
    "adapt_teacher",
    "adaptation_recipe",
    "agreement",
    "build_cache",
    "clean_stages",
    "compare",
    "compare_recipes",
    "compare_students",
    "compare_vocabularies",
    "copy_recipe",
    "data_info",
    "diagnose",
    "distill",
    "errors",
    "estimate_recipe",
    "evaluate",
    "export",
    "generate",
    "get_data",
    "inspect_cache",
    "interchange",
    "list_data",
    "list_recipes",
    "list_runs",
    "list_stages",
    "load_recipe",
    "lock_recipe",
    "locked",
    "losses",
    "merge_caches",
    "open_run",
    "plan",
    "pull_recipe",
    "push_model",
    "push_recipe",
    "recipe_vocabularies",
    "register_combiner",
    "register_data_source",
    "register_family",
    "register_initialiser",
    "register_loss",
    "register_source",
    "register_suite",
    "report",
    "search_recipes",
    "settled",
    "show_recipe",
    "sign_recipe",
    "sweep_recipes",
    "train",
    "verify_cache",
    "verify_recipe",
    "vocabulary_curve",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("stlm-kd")
        except PackageNotFoundError:  # a checkout that is not installed
            return "0+unknown"
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return resolve_name(_PLACES[name])


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
