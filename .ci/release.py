"""Build the wheel of a tagged commit: the same commit always gives the same bytes.

``python .ci/release.py [--allow-dirty]``, or ``make release``. The wheel is built from what is committed,
unpacked elsewhere, so untracked files, permissions and the day do not change it. Another release of
setuptools or Python may: compare wheels built by the same Python and the versions of ``requirements.lock``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLAIN = ("-c", "tar.umask=0022", "-c", "core.autocrlf=false")
"""Settings of git that would change permissions or line ends."""


def git(*words: str) -> bytes:
    """The output of git in this checkout."""
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, stdout=subprocess.PIPE).stdout


def faults() -> list[str]:
    """Why the commit cannot be released: changes beside it, or no tag of its version."""
    changed = git("status", "--porcelain").decode().splitlines()
    tags = git("tag", "--points-at", "HEAD").decode().split()
    found = re.search(r'^version = "(.+)"$', git("show", "HEAD:pyproject.toml").decode(), re.MULTILINE)
    assert found is not None, "pyproject.toml states the version"
    wanted = f"v{found[1]}"
    told = [f"not committed: {', '.join(line[3:] for line in changed[:5])}"] if changed else []
    if wanted not in tags:
        told.append(f"{' '.join(tags) or 'no tag'} found at the commit; expected {wanted}: git tag {wanted}")
    return told


def build(target: Path) -> Path:
    """Build the wheel of HEAD into a folder."""
    target.mkdir(parents=True, exist_ok=True)
    date = git("log", "-1", "--format=%ct").decode().strip()
    program = f"from setuptools import build_meta; print(build_meta.build_wheel({str(target)!r}))"
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(git(*PLAIN, "archive", "HEAD"))) as archive:
            archive.extractall(folder, filter="data")  # sets permissions to those of the commit
        built = subprocess.run(
            [sys.executable, "-c", program],
            cwd=folder,
            env={**os.environ, "SOURCE_DATE_EPOCH": date, "PYTHONPATH": ""},
            umask=0o022,
            check=True,
            capture_output=True,
            text=True,
        )
    return target / built.stdout.splitlines()[-1]


def main() -> None:
    """Build, or say why not; write SHA256SUMS beside the wheel and print both."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--allow-dirty", action="store_true", help="build any commit, to rehearse a release")
    options.add_argument("--output", type=Path, default=ROOT / "dist", help="the folder of the wheel")
    given = options.parse_args()
    found = faults()
    if found and not given.allow_dirty:
        remedy = "to rehearse a release of what is committed: make release ALLOW_DIRTY=1"
        sys.exit("\n".join(["no release:", *found, remedy]))
    for one in found:
        print(f"rehearsal: {one}", file=sys.stderr)
    wheel = build(given.output)
    line = f"{hashlib.sha256(wheel.read_bytes()).hexdigest()}  {wheel.name}\n"
    (given.output / "SHA256SUMS").write_text(line)
    print(wheel, line.split()[0], sep="\n")


if __name__ == "__main__":
    main()
