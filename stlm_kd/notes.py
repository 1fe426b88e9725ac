"""Notes to the user: one line on stderr, once, from the main process only.

They use the logger ``stlm_kd``, which applications may configure.
"""

from __future__ import annotations

import logging
import os
from functools import cache

LOGGER = logging.getLogger("stlm_kd")


@cache
def note(message: str) -> None:
    """Log a line on the main process, once per message."""
    if os.environ.get("RANK", "0") == "0":
        LOGGER.warning(message)
