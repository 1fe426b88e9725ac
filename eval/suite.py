"""The table of suites, and what is known of each.

A new suite is one function decorated with ``SUITES.register``; its keyword-only arguments become its options
in recipes. If it reads the held-out text, it is named in ``NEEDS_TEXT``; if it compares a student with its
teachers, in ``NEEDS_TEACHERS``; if its scores depend on something else, it has a row in ``IDENTITIES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.eval.fine_tuning.base import FineTuneJob
from stlm_kd.eval.identity import Identity, of_lm_eval, of_wikitext
from stlm_kd.models.families import Goal
from stlm_kd.registry import Registry

Suite = Callable[..., SuiteResult | tuple[FineTuneJob, ...]]
"""``suite(model, tokenizer, held_out, /, **options)``: the recipe's held-out documents, or its examples.

One of ``NEEDS_TEACHERS`` gets the student's teachers after them. Those of ``tuned_suites`` take options
alone, and say what is to be fine-tuned before it is scored.
"""

SUITES: Registry[Suite] = Registry("suite")

IDENTITIES: dict[str, Identity] = {"lm-eval": of_lm_eval, "perplexity": of_wikitext}
"""What decides the scores of a suite where it does not read the held-out text, beside model and options."""

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
"""The suites that read held-out text or examples; see ``reads_held_out`` for those that need not."""


def reads_held_out(suite: str, options: Mapping[str, object]) -> bool:
    """Whether a suite with these options reads the held-out text or examples."""
    return suite in NEEDS_TEXT and options.get("on", "held-out") == "held-out"


NEEDS_TEACHERS = frozenset({"agreement", "interchange"})
"""The suites that compare a student with its teachers, and score no teacher."""

TASK_OF_SUITE: dict[str, Goal] = {
    "perplexity": "clm",
    "lm-eval": "clm",
    "pseudo-perplexity": "mlm",
    "masked-loss": "mlm",
    "classification": "classification",
    "regression": "regression",
    "agreement": "classification",
}
"""What a model has to predict for a suite to score it; those of ``tuned_suites`` take any language model."""
