"""Damages to files that are found again, drawn by a seed."""

from __future__ import annotations

import os
import random
from pathlib import Path

KINDS = (
    "truncate", "zero", "flip", "extend", "delete", "empty manifest", "swap", "folder", "link", "pipe"
)  # fmt: skip


def damage(folder: Path, draw: random.Random, kind: str) -> str:
    """Damage one file below a folder, or swap two, and say which; each leaves other bytes or none."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_size and ".locks" not in path.parts
    )
    if kind == "empty manifest":
        manifests = {"manifest.json", "stage.json", "checksums.json", "run.json"}
        files = [path for path in files if path.name in manifests or path.suffix == ".sha256"]
    file = draw.choice(files)
    content = file.read_bytes()
    place = draw.randrange(len(content))
    if kind == "truncate":
        file.write_bytes(content[:place])
    elif kind == "zero":
        file.write_bytes(bytes(len(content)) if any(content) else b"\x01" * len(content))
    elif kind == "flip":
        file.write_bytes(
            content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
        )
    elif kind == "extend":
        file.write_bytes(content + bytes([draw.randrange(256)]) * 8)
    elif kind == "empty manifest":
        file.write_text(draw.choice(["", "{}", "[]", "null", '{"files": {}}']))
    elif kind == "swap":
        other = draw.choice([path for path in files if path.read_bytes() != content])
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return f"{kind} {file.relative_to(folder)} {other.relative_to(folder)}"
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()
        elif kind == "link":
            file.symlink_to(draw.choice([path for path in (*files, Path("/dev/zero")) if path != file]))
        elif kind == "pipe":
            os.mkfifo(file)
    return f"{kind} {file.relative_to(folder)}"
