"""Where the repository and the recorded values lie."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN_FOLDER = ROOT / "tests" / "golden"


def installed_copy(folder: Path) -> Path:
    """A copy of the package for ``PYTHONPATH``; outside the repository, no lock calls its code dirty."""
    shutil.copytree(ROOT / "stlm_kd", folder / "stlm_kd")
    return folder
