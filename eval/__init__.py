"""Evaluation suites: a model, its tokenizer and held-out text in, scores with standard errors out.

* ``results``: what every suite hands back, and its JSON.
* ``suite_table``: the table of suites; the keyword-only arguments of a suite are its options in recipes.
* ``suites``: those that score a model as it is.
* ``identity``: what decides a suite's scores beside the model, so that they can be kept.
* ``perplexity``: bits per byte and perplexity per token, each token of the text scored once.
* ``wikitext``: a text for it that is always the same.
* ``pseudo_perplexity``: the same for masked language models, each token predicted from both sides.
* ``masked_loss``: the loss that masked language models are trained on, and how many tokens they find.
* ``masked``: text in windows for these two, and what a model says at masked positions.
* ``interchange``, ``exchanges`` (``asked`` for), ``beside``: a student and its teachers after the same
  interventions.
* ``examples``: what a classifier, or a model of numbers, says of labelled examples.
* ``classification``: its scores, with standard errors.
* ``tuned_suites``, ``tunings``: the suites for which copies of a model are fine-tuned, and what they ask for.
* ``glue``: GLUE's tasks, the studies' settings, its scores and their average.
* ``ner``, ``entities``: CoNLL-2003, and how well entities are found.
* ``squad``: SQuAD v1.1, spans and the official metrics.
* ``benchmark_data``: where the examples of such suites lie.
* ``averaging``: several fine-tunings as one result.
* ``statistics``: paired tests, intervals over seeds and examples, corrections for many comparisons.
* ``resampling``: paired bootstraps of metrics that are no means.
* ``predictions``, ``agreement``: how far two classifiers say the same of the same examples.
* ``explaining``: what a classifier makes of the words (``words``) of some examples (``choosing``), by LIME
  (``lime_weights``) or integrated gradients (``gradient_weights``).
* ``agreement_suite``: the suite of these, beside each of a student's teachers.
* ``alike``: how far a teacher and a student make the same of the same words; ``attribution_page`` shows it.
* ``likelihood``: the likelihood of pieces of text as scores with standard errors.
* ``running``: for which task, in which mode and precision, over how many positions a model is run.
* ``harness``: runs lm-eval on a model in memory.
* ``sources``: where lm-eval's tasks get their rows: the Hub, local files, or the generator of sample text.
* ``rows``: the local files, in the layout that lm-eval's own prompts expect.
* ``table``: the scores of several models side by side.
"""

from stlm_kd.eval import agreement_suite as _agreement_suite  # these two are rows of the table
from stlm_kd.eval import suites as _suites
from stlm_kd.eval.suite_table import (
    IDENTITIES,
    NEEDS_TEACHERS,
    NEEDS_TEXT,
    SUITES,
    TASK_OF_SUITE,
    reads_held_out,
)
from stlm_kd.eval.tuned_suites import FINE_TUNED

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
