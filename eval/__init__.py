"""Evaluation suites: a model, its tokenizer and held-out text in, scores with standard errors out.

* ``results``: what every suite hands back, and its JSON.
* ``suites``: the table of suites; the keyword-only arguments of a suite are its options in recipes.
* ``identity``: what decides a suite's scores beside the model, so that they can be kept.
* ``perplexity``: bits per byte and perplexity per token, each token of the text scored once.
* ``harness``: runs lm-eval on a model in memory.
* ``sources``: where lm-eval's tasks get their rows: the Hub, local files, or the generator of sample text.
* ``rows``: the local files, in the layout that lm-eval's own prompts expect.
* ``table``: the scores of several models side by side.
"""

from stlm_kd.eval.suites import IDENTITIES, SUITES

__all__ = ["IDENTITIES", "SUITES"]
