"""Evaluation suites: score a model with its tokenizer on held-out data, with standard errors.

``suite`` is their registry, ``runner`` runs a forward pass; one package for each kind: ``language_modeling``,
``harness`` (lm-evaluation-harness), ``classification``, ``fine_tuning`` (GLUE, CoNLL-2003, SQuAD),
``interchange``, ``agreement``, ``attribution``.
"""

from stlm_kd.eval.suite import SUITES, Suite, register_suite

__all__ = ["SUITES", "Suite", "register_suite"]
