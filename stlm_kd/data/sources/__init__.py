"""Where text and rows come from: files, the Hub, the built-in generator."""

from stlm_kd.data.sources.sources import Source, documents, fingerprint

__all__ = ["Source", "documents", "fingerprint"]
