"""Evaluation suites: score a model with its tokenizer on held-out data, with standard errors.

* ``suite``: the registry of suites; the keyword-only arguments of a suite are its options in recipes.
* ``suites``: suites that score a model as it is; ``fine_tuning.suites``: those that fine-tune a copy first.
* ``identity``: cache keys of suites that do not depend on the held-out data.
* ``runner``: task, mode, precision and window of a forward pass.

One package for each kind: ``language_modeling``, ``harness`` (lm-evaluation-harness), ``classification``,
``fine_tuning`` (GLUE, CoNLL-2003, SQuAD), ``interchange``, ``agreement``, ``attribution``.
"""

from stlm_kd.eval import suites as _suites
from stlm_kd.eval.agreement import suite as _agreement_suite  # registers these two suites
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
