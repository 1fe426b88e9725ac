"""What the tests share: a marker for each folder, where the real data lie, and offline mode throughout."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more of the machine than of the code.
settings.register_profile("stlm-kd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("stlm-kd")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "STLM_KD_CACHE" not in os.environ:
    os.environ["STLM_KD_CACHE"] = tempfile.mkdtemp(prefix="stlm-kd-cache-")
    atexit.register(shutil.rmtree, os.environ["STLM_KD_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its folder: ``unit``, ``integration`` or ``slow``."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(item.path.relative_to(here).parts[0])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and vocabularies that ``STLM_KD_DATA`` names."""
    folder = os.environ.get("STLM_KD_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("STLM_KD_DATA does not name a folder of real data")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small world of ``tests/support/road.py``."""
    from tests.support.road import build

    folder = tmp_path_factory.mktemp("road")
    build(folder)
    return folder


@pytest.fixture
def place(road: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small world as the current folder."""
    monkeypatch.chdir(road)
    return road


@pytest.fixture(autouse=True)
def no_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names on the Hub are resolved anew in each test, as in each command."""
    from stlm_kd.sharing import pins

    for name in ("_active", "_of_process"):
        monkeypatch.setattr(pins, name, None)
