"""Where text and labelled examples come from: files, the Hub, the built-in generator, and users' sources."""

from stlm_kd.data.sources.files import file_facts
from stlm_kd.data.sources.sources import Source, documents, fingerprint, register_data_source
from stlm_kd.sharing.names import expanded

__all__ = ["Source", "documents", "expanded", "file_facts", "fingerprint", "register_data_source"]
