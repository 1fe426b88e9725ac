"""Distil one or several large teachers into a tiny language model.

The names of ``__all__`` are imported on first use, so that ``import stlm_kd`` takes a few milliseconds.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stlm_kd import errors, losses
    from stlm_kd.artifacts.results import SuiteResult
    from stlm_kd.comparison.compare import Comparison, compare
    from stlm_kd.pipeline.adapt import adapt_teacher
    from stlm_kd.pipeline.cache import build_cache
    from stlm_kd.pipeline.distill import distill
    from stlm_kd.pipeline.run import Run, open_run
    from stlm_kd.pipeline.scoring.evaluate import evaluate
    from stlm_kd.recipe import Recipe
    from stlm_kd.recipe.load import load as load_recipe

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
    "evaluate": "stlm_kd.pipeline.scoring.evaluate:evaluate",
    "Recipe": "stlm_kd.recipe:Recipe",
    "load_recipe": "stlm_kd.recipe.load:load",
}
"""Where each public name lives, as in the imports for type checkers."""

__all__ = [
    "Comparison",
    "Recipe",
    "Run",
    "SuiteResult",
    "adapt_teacher",
    "build_cache",
    "compare",
    "distill",
    "errors",
    "evaluate",
    "load_recipe",
    "losses",
    "open_run",
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
