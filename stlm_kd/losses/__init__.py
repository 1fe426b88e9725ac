"""Losses as pure functions per token; the objective masks, weights and reduces them.

A new loss is one function decorated with ``LOSSES.register``; its keyword-only arguments become its options
in recipes. For large vocabularies an analytic gradient, decorated with ``GRADIENTS.register``, saves time and
memory.
"""

from stlm_kd.losses.cross_entropy import cross_entropy
from stlm_kd.losses.divergences import forward_kl, jensen_shannon, reverse_kl, skew_forward_kl
from stlm_kd.losses.gradients import cross_entropy_slope
from stlm_kd.losses.logit_mse import logit_mse
from stlm_kd.losses.sampled import FullDistribution, TargetMixture, TopKTail, sparse_forward_kl
from stlm_kd.losses.table import (
    GRADIENTS,
    LABELS,
    LOSSES,
    SPARSE_LOSSES,
    SPARSE_SLOPES,
    Loss,
    LossGradient,
    Temperature,
    TemperatureScaling,
)
from stlm_kd.losses.tempered import TemperedLogits

__all__ = [
    "GRADIENTS",
    "LABELS",
    "LOSSES",
    "SPARSE_LOSSES",
    "SPARSE_SLOPES",
    "FullDistribution",
    "Loss",
    "LossGradient",
    "TargetMixture",
    "Temperature",
    "TemperatureScaling",
    "TemperedLogits",
    "TopKTail",
    "cross_entropy",
    "cross_entropy_slope",
    "forward_kl",
    "jensen_shannon",
    "logit_mse",
    "reverse_kl",
    "skew_forward_kl",
    "sparse_forward_kl",
]
