"""A small seeded generator of English-like text and minimal pairs, for offline tests.

All its output is synthetic; reports of results on it must say so.
"""

from stlm_kd.data.synthetic.documents import SPLITS, sample_documents
from stlm_kd.data.synthetic.pairs import BENCHMARK, PHENOMENA, MinimalPair, minimal_pairs
from stlm_kd.data.synthetic.tasks import TASKS, sample_rows

VERSION = "67785432975c412888755d48e160713097544654b5e3f2f33ca4638160b67ab5"
"""Part of the key of everything built from generated text; change it when the generator's output changes."""

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
