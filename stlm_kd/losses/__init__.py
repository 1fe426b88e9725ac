"""Losses as pure functions per token; the objective masks, weighs and reduces them.

A new loss is one function decorated with ``LOSSES.register``; its keyword-only arguments become its options
in recipes.
"""

from stlm_kd.losses.cross_entropy import cross_entropy
from stlm_kd.losses.divergences import forward_kl, reverse_kl
from stlm_kd.losses.table import LABELS, LOSSES, Loss, Temperature

__all__ = ["LABELS", "LOSSES", "Loss", "Temperature", "cross_entropy", "forward_kl", "reverse_kl"]
