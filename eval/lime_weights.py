"""The old place of ``stlm_kd.eval.attribution.lime``, for one release."""

from stlm_kd.eval.attribution.lime import lime_weights

__all__ = ["lime_weights"]
