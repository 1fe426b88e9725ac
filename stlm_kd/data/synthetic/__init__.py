"""A small seeded generator of English-like text and minimal pairs, for trials without a network.

Everything that comes from it is synthetic and is to be called so wherever its numbers appear.

* ``lexicon``: the stems, in eight classes of nouns with the verbs and adjectives that select them.
* ``draw``: random choices that are the same in every version of Python.
* ``grammar``: noun phrases, predicates and clauses, and how they agree.
* ``documents``: paragraphs about a few recurring things, in two disjoint streams.
* ``pairs``: pairs of sentences of which the grammar accepts one.
* ``tasks``: sentences with a label: whether the grammar accepts them, whether they praise or blame.
"""

from stlm_kd.data.synthetic.documents import SPLITS, sample_documents
from stlm_kd.data.synthetic.pairs import BENCHMARK, PHENOMENA, MinimalPair, minimal_pairs
from stlm_kd.data.synthetic.tasks import TASKS, sample_rows

VERSION = "67785432975c412888755d48e160713097544654b5e3f2f33ca4638160b67ab5"
"""Part of the key of everything made from generated text: change it when the generator's output changes."""

__all__ = [
    "BENCHMARK",
    "PHENOMENA",
    "SPLITS",
    "TASKS",
    "VERSION",
    "MinimalPair",
    "minimal_pairs",
    "sample_documents",
    "sample_rows",
]
