"""Where the repository and the recorded values lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN_FOLDER = ROOT / "tests" / "golden"
