"""Interchange interventions: what is exchanged between two texts within a model, and what it says then."""

from stlm_kd.interventions.draw import Pool, Supplies
from stlm_kd.interventions.plan import Places, Plan
from stlm_kd.interventions.planning import draw_plan, layer_at
from stlm_kd.interventions.sources import SOURCES, exchanges_tokens
from stlm_kd.interventions.word_tokens import Lexicon

__all__ = [
    "SOURCES",
    "Lexicon",
    "Places",
    "Plan",
    "Pool",
    "Supplies",
    "draw_plan",
    "exchanges_tokens",
    "layer_at",
]
