"""Interchange interventions: exchange hidden states between base and source inputs and rerun the model."""

from stlm_kd.interventions.draw import SourceInputs, SourcePool
from stlm_kd.interventions.plan import Plan, Positions
from stlm_kd.interventions.planning import draw_plan, layer_at
from stlm_kd.interventions.sources import SOURCES, exchanges_tokens
from stlm_kd.interventions.word_tokens import WordTokens

__all__ = [
    "SOURCES",
    "Plan",
    "Positions",
    "SourceInputs",
    "SourcePool",
    "WordTokens",
    "draw_plan",
    "exchanges_tokens",
    "layer_at",
]
