"""Notes to the user: one line on stderr, once, on the main process, by the logger ``stlm_kd``."""

from __future__ import annotations

import logging
import os
from functools import cache

from stlm_kd.errors import printable

LOGGER = logging.getLogger("stlm_kd")


@cache
def note(message: str) -> None:
    """Log a line on the main process, once per message."""
    if os.environ.get("RANK", "0") == "0":
        LOGGER.warning(printable(message))
