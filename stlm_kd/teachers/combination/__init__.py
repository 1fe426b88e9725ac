"""Combination of several teachers: a weight for each at every token, and the mixture Σ w p of probabilities.

A new combiner is one function decorated with ``register_combiner``, which declares the features it needs; its
keyword-only arguments become its options in recipes. Temperature, chunking, cached targets and teacher
dropout are handled elsewhere.
"""

from stlm_kd.teachers.combination.features import Domains, Need, WeightingFeatures, weighting_features
from stlm_kd.teachers.combination.mixture import TeacherMixture, mixture
from stlm_kd.teachers.combination.sampling import active_teachers, routing_draws
from stlm_kd.teachers.combination.weighting import COMBINERS, register_combiner

__all__ = [
    "COMBINERS",
    "Domains",
    "Need",
    "TeacherMixture",
    "WeightingFeatures",
    "active_teachers",
    "mixture",
    "register_combiner",
    "routing_draws",
    "weighting_features",
]
