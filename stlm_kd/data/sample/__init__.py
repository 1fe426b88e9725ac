"""A small seeded generator of English-like text and minimal pairs, for trials without a network.

Everything that comes from it is synthetic and is to be called so wherever its numbers appear.

* ``lexicon``: the stems, in eight classes of nouns with the verbs and adjectives that select them.
* ``draw``: random choices that are the same in every version of Python.
* ``grammar``: noun phrases, predicates and clauses, and how they agree.
* ``documents``: paragraphs about a few recurring things, in two disjoint streams.
* ``pairs``: pairs of sentences of which the grammar accepts one.
"""

from stlm_kd.data.sample.documents import SPLITS, sample_documents
from stlm_kd.data.sample.pairs import PHENOMENA, MinimalPair, minimal_pairs

__all__ = ["PHENOMENA", "SPLITS", "MinimalPair", "minimal_pairs", "sample_documents"]
