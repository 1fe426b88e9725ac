"""Notes to the user: once, on the main process, by the logger ``stlm_kd``; and text fit to be shown."""

from __future__ import annotations

import logging
import os
from functools import cache

LOGGER = logging.getLogger("stlm_kd")


@cache
def note(message: str) -> None:
    """Log a line on the main process, once per message, with all that does not print escaped."""
    if os.environ.get("RANK", "0") == "0":
        LOGGER.warning(printable(message, most=None, keep="\n"))


def printable(text: object, *, most: int | None = 400, keep: str = "") -> str:
    """Text from elsewhere for a terminal or a file: control, invisible and bidirectional characters escaped.

    Args:
        text: Anything with a text.
        most: Maximum number of characters, beyond which it is shortened; None for any.
        keep: Characters that stay, such as the ends of lines.

    >>> printable("a\\x1b[2J\\u202e±")
    'a\\\\x1b[2J\\\\u202e±'
    """
    found = "".join(sign if sign.isprintable() or sign in keep else ascii(sign)[1:-1] for sign in str(text))
    return found if most is None or len(found) <= most else f"{found[: most - 3]}..."
