"""The registry of suites and their requirements.

A new suite is a function decorated with ``SUITES.register``; its keyword-only arguments become its options in
recipes. List it in ``NEEDS_TEXT`` if it reads the held-out text, and in ``NEEDS_TEACHERS`` if it compares a
student with its teachers. If its scores depend on other data, add it to ``IDENTITIES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.eval.fine_tuning.base import FineTuneJob
from stlm_kd.eval.identity import Identity, of_lm_eval, of_wikitext
from stlm_kd.models.families import Goal
from stlm_kd.registry import Registry

Suite = Callable[..., SuiteResult | tuple[FineTuneJob, ...]]
"""``suite(model, tokenizer, held_out, /, **options)``; ``held_out``: the recipe's documents or examples.

Suites in ``NEEDS_TEACHERS`` receive the student's teachers as a fourth argument. Those in ``tuned_suites``
take only options, and return fine-tuning jobs.
"""

SUITES: Registry[Suite] = Registry("suite")

IDENTITIES: dict[str, Identity] = {"lm-eval": of_lm_eval, "perplexity": of_wikitext}
"""Cache keys of suites that do not read the held-out text, beyond model and options."""

NEEDS_TEXT = frozenset(
    {
        "perplexity",
        "pseudo-perplexity",
        "masked-loss",
        "classification",
        "regression",
        "interchange",
        "agreement",
    }
)
"""Suites that read held-out text or examples; see ``reads_held_out`` for options that change this."""


def reads_held_out(suite: str, options: Mapping[str, object]) -> bool:
    """Whether a suite with these options reads the held-out text or examples."""
    return suite in NEEDS_TEXT and options.get("on", "held-out") == "held-out"


NEEDS_TEACHERS = frozenset({"agreement", "interchange"})
"""Suites that compare a student with its teachers, and do not score teachers."""

TASK_OF_SUITE: dict[str, Goal] = {
    "perplexity": "clm",
    "lm-eval": "clm",
    "pseudo-perplexity": "mlm",
    "masked-loss": "mlm",
    "classification": "classification",
    "regression": "regression",
    "agreement": "classification",
}
"""The model task that a suite requires; suites in ``tuned_suites`` accept any language model."""
