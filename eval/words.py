"""The old place of ``stlm_kd.eval.attribution.words``, for one release."""

from stlm_kd.eval.attribution.words import words_of

__all__ = ["words_of"]
