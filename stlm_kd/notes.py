"""Notes to the user from any layer: one line on stderr, once, from the main process alone.

They go through the logger ``stlm_kd``, which a program that uses the package may configure as it likes.
"""

from __future__ import annotations

import logging
import os
from functools import cache

LOGGER = logging.getLogger("stlm_kd")


@cache
def note(message: str) -> None:
    """Write a line, unless this process has written the same before or is not the main process."""
    if os.environ.get("RANK", "0") == "0":
        LOGGER.warning(message)
