"""What the tests share: where the real data lies, and offline mode throughout."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and vocabularies that ``STLM_KD_DATA`` names."""
    folder = os.environ.get("STLM_KD_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("STLM_KD_DATA does not name a folder of real data")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small world of ``tests/road.py``."""
    from tests.road import build

    folder = tmp_path_factory.mktemp("road")
    build(folder)
    return folder


@pytest.fixture
def place(road: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small world as the current folder."""
    monkeypatch.chdir(road)
    return road
