"""Losses as pure functions per token; the objective masks, weights and reduces them.

A new loss is one function decorated with ``register_loss``; its keyword-only arguments become its options in
recipes. For large vocabularies an analytic gradient, decorated with ``GRADIENTS.register``, saves time and
memory.

>>> import torch
>>> forward_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -torch.inf]]))  # log 2 nats at the only token
tensor([0.6931])
"""

from stlm_kd.losses import attention, hidden
from stlm_kd.losses.cross_entropy import cross_entropy
from stlm_kd.losses.divergences import forward_kl, jensen_shannon, reverse_kl, skew_forward_kl
from stlm_kd.losses.gradients import cross_entropy_slope
from stlm_kd.losses.logit_mse import logit_mse
from stlm_kd.losses.sampled import FullDistribution, TargetMixture, TopKTail, sparse_forward_kl
from stlm_kd.losses.table import (
    GRADIENTS,
    LABELS,
    LOSSES,
    MAP_LOSSES,
    SPARSE_LOSSES,
    SPARSE_SLOPES,
    STATE_LOSSES,
    Loss,
    LossGradient,
    Temperature,
    TemperatureScaling,
    register_loss,
)
from stlm_kd.losses.tempered import TemperedLogits

__all__ = [
    "GRADIENTS",
    "LABELS",
    "LOSSES",
    "MAP_LOSSES",
    "SPARSE_LOSSES",
    "SPARSE_SLOPES",
    "STATE_LOSSES",
    "FullDistribution",
    "Loss",
    "LossGradient",
    "TargetMixture",
    "Temperature",
    "TemperatureScaling",
    "TemperedLogits",
    "TopKTail",
    "attention",
    "cross_entropy",
    "cross_entropy_slope",
    "forward_kl",
    "hidden",
    "jensen_shannon",
    "logit_mse",
    "register_loss",
    "reverse_kl",
    "skew_forward_kl",
    "sparse_forward_kl",
]
