"""The old place of ``stlm_kd.data.token_store``, for one release."""

from stlm_kd.data.token_store import TokenStore, build_store

__all__ = ["TokenStore", "build_store"]
