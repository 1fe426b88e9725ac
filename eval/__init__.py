"""Evaluation suites: a model, its tokenizer and held-out text in, scores with standard errors out.

* ``suite``: the table of suites; the keyword-only arguments of a suite are its options in recipes.
* ``suites``: those that score a model as it is; ``fine_tuning.suites``: those that fine-tune a copy first.
* ``identity``: what decides a suite's scores beside the model, so that they can be kept.
* ``runner``: in which mode and precision, over how many positions, a model is run.

One package for each kind: ``language_modeling``, ``harness`` (lm-evaluation-harness), ``classification``,
``fine_tuning`` (GLUE, CoNLL-2003, SQuAD), ``interchange``, ``agreement``, ``attribution``.
"""

from stlm_kd.eval import suites as _suites
from stlm_kd.eval.agreement import suite as _agreement_suite  # these two are rows of the table
from stlm_kd.eval.fine_tuning.suites import FINE_TUNED
from stlm_kd.eval.suite import IDENTITIES, NEEDS_TEACHERS, NEEDS_TEXT, SUITES, TASK_OF_SUITE, reads_held_out

assert SUITES["agreement"] is _agreement_suite.agreement and SUITES["perplexity"] is _suites.perplexity

__all__ = [
    "FINE_TUNED",
    "IDENTITIES",
    "NEEDS_TEACHERS",
    "NEEDS_TEXT",
    "SUITES",
    "TASK_OF_SUITE",
    "reads_held_out",
]
