"""A model of the Hub's cache is known by its revision."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.pico import pico_model

NAME = "somebody/some-model"


def cached(cache: Path, commit: str) -> None:
    """A model in the layout of the Hub's cache, at this revision."""
    folder = cache / "models--somebody--some-model"
    pico_model("llama").save_pretrained(folder / "snapshots" / commit)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit, encoding="utf-8")


def identity(cache: Path) -> str:
    code = f"from stlm_kd.pipeline.stage_keys import model_identity; print(model_identity({NAME!r}))"
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.strip()


def test_a_new_revision_of_a_model_is_another_model(tmp_path: Path) -> None:
    cached(tmp_path, "a" * 40)
    assert identity(tmp_path) == f"{NAME}@{'a' * 40}"
    cached(tmp_path, "b" * 40)
    assert identity(tmp_path) == f"{NAME}@{'b' * 40}"
