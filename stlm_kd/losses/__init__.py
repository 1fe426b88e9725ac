"""Losses as pure functions per token; the objective masks, weighs and reduces them.

A new loss is one function decorated with ``LOSSES.register``; its keyword-only arguments become its options
in recipes. Over many outcomes an analytic gradient, decorated with ``SLOPES.register``, saves time and
memory.
"""

from stlm_kd.losses.cross_entropy import cross_entropy
from stlm_kd.losses.divergences import forward_kl, jensen_shannon, reverse_kl, skew_forward_kl
from stlm_kd.losses.gradients import cross_entropy_slope
from stlm_kd.losses.logit_mse import logit_mse
from stlm_kd.losses.sampled import Sparse, SparseMixture, Whole, sparse_forward_kl
from stlm_kd.losses.table import (
    LABELS,
    LOSSES,
    SLOPES,
    SPARSE_LOSSES,
    SPARSE_SLOPES,
    Loss,
    Slope,
    Temperature,
    TemperatureScaling,
)
from stlm_kd.losses.tempered import Softened

__all__ = [
    "LABELS",
    "LOSSES",
    "SLOPES",
    "SPARSE_LOSSES",
    "SPARSE_SLOPES",
    "Loss",
    "Slope",
    "Softened",
    "Sparse",
    "SparseMixture",
    "Temperature",
    "TemperatureScaling",
    "Whole",
    "cross_entropy",
    "cross_entropy_slope",
    "forward_kl",
    "jensen_shannon",
    "logit_mse",
    "reverse_kl",
    "skew_forward_kl",
    "sparse_forward_kl",
]
