"""Several teachers become one: a weight for each at every token, and the mixture Σ w p of probabilities.

A new way is one function decorated with ``COMBINERS.weighing``, which says what it looks at; its keyword-only
arguments become its options in recipes. Softening, chunks, cached targets and teachers that are left out are
not its business.
"""

from stlm_kd.teachers.combination.domains import Domains
from stlm_kd.teachers.combination.features import Evidence, Need, of_said
from stlm_kd.teachers.combination.gate import GATE, Gate, gate_losses
from stlm_kd.teachers.combination.mixture import Mixing, mixture
from stlm_kd.teachers.combination.sampling import drawn_for, mixed_teachers
from stlm_kd.teachers.combination.weighting import COMBINERS

__all__ = [
    "COMBINERS",
    "GATE",
    "Domains",
    "Evidence",
    "Gate",
    "Mixing",
    "Need",
    "drawn_for",
    "gate_losses",
    "mixed_teachers",
    "mixture",
    "of_said",
]
