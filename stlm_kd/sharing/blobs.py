"""Downloaded files, compared with the hashes that the Hub names them by.

The Hub's client keeps a file with a changed byte for good, and any program may have written to its cache.
"""

from __future__ import annotations

import re
from pathlib import Path

from stlm_kd.artifacts.hashing import Algorithm, known_hash
from stlm_kd.errors import MissingResourceError
from stlm_kd.sharing.hub import RepoFile
from stlm_kd.sharing.names import HubName


def check(name: HubName, path: str, file: Path, expected: RepoFile | None = None) -> None:
    """Check a file of the Hub's cache; it is read once, and not again while it is unchanged.

    Args:
        name: The repository at its commit, for the message.
        path: The file's path in the repository.
        file: The file in the cache.
        expected: Its hash; if unknown, it is the name of the blob that the cache's link points to.

    Raises:
        MissingResourceError: The file is not what it should be, or cannot be read.
    """
    named = (expected.algorithm, expected.hash) if expected and expected.hash else _named_by(file)
    if named is None:
        return
    algorithm, digest = named
    real = file.resolve()
    try:
        found = known_hash(real, algorithm)
    except OSError as error:
        raise MissingResourceError(f"{real}: cannot be read ({error.strerror}); fetch it again") from error
    if found != digest:
        raise MissingResourceError(
            f"{name}: {path} is not the file that was published: {algorithm} {found} found, {digest} "
            f"expected; delete {real} and run the command again, which fetches it"
        )


def _named_by(file: Path) -> tuple[Algorithm, str] | None:
    """The hash in the name of the blob that a file of the cache links to; None for a copy without a link."""
    if not file.is_symlink():
        return None
    digest = Path(file.readlink()).name
    if re.fullmatch("[0-9a-f]{64}", digest):
        return "sha256", digest
    return ("git", digest) if re.fullmatch("[0-9a-f]{40}", digest) else None
