"""The old place of ``stlm_kd.data.token_store``, for one release."""

from stlm_kd.data.text.store_builder import build_store
from stlm_kd.data.token_store import TokenStore

__all__ = ["TokenStore", "build_store"]
