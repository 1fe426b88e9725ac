"""Interchange interventions: exchange hidden states between base and source inputs and rerun the model."""

from stlm_kd.interventions import sources
from stlm_kd.interventions.draw import SourceInputs, SourcePool, draw_plan, layer_at
from stlm_kd.interventions.plan import Plan, Positions
from stlm_kd.interventions.source import SOURCES, SourceData, register_source
from stlm_kd.interventions.word_tokens import WordTokens

__all__ = [
    "SOURCES",
    "Plan",
    "Positions",
    "SourceData",
    "SourceInputs",
    "SourcePool",
    "WordTokens",
    "draw_plan",
    "layer_at",
    "register_source",
    "sources",
]
