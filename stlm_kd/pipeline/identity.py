"""What identifies a model."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from stlm_kd.artifacts.hashing import file_hash
from stlm_kd.artifacts.stage_store import STAGE, WEIGHTS
from stlm_kd.data.sources.files import expanded
from stlm_kd.errors import MissingResourceError
from stlm_kd.models.load import load_config


def _commit(name: str) -> str:
    """The revision of a Hub model's configuration in the cache, by whose name its folder is called."""
    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        raise MissingResourceError(
            f"{name}: config.json is not in the Hub's cache, so its revision is not known"
        )
    return Path(config).parent.name


def model_identity(name: str, *, trust_remote_code: bool = False) -> str:
    """What a model is: a hash of a folder's configuration, weights and tokenizer, or Hub id and commit.

    Code that the folder brings counts where it is trusted, and so run.
    """
    folder = expanded(name)
    if not folder.is_dir():
        load_config(name, trust_remote_code=trust_remote_code)  # so that it is in the cache
        return f"{name}@{_commit(name)}"
    read = {WEIGHTS, ".json", ".model", ".txt"} | ({".py"} if trust_remote_code else set())
    files = sorted(path for path in folder.iterdir() if path.suffix in read)
    text = "\n".join(f"{path.name} {file_hash(path)}" for path in files if path.name != STAGE)
    return hashlib.sha256(text.encode()).hexdigest()
