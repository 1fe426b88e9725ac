"""Damages to files that are found again, drawn by a seed."""

from __future__ import annotations

import json
import os
import random
import stat
from pathlib import Path

KINDS = (
    "truncate", "zero", "flip", "extend", "delete", "empty manifest", "field", "swap",
    "folder", "link", "pipe", "socket",
)  # fmt: skip


def damage(folder: Path, draw: random.Random, kind: str) -> str:
    """Damage one file below a folder, or swap two, and say which; each leaves other bytes or none."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_size and ".locks" not in path.parts
    )
    if kind in ("empty manifest", "field"):
        manifests = {"manifest.json", "stage.json", "checksums.json", "run.json"}
        files = [path for path in files if path.name in manifests or path.suffix == ".sha256"]
    if kind == "field":
        files = [path for path in files if path.suffix == ".json"] or files
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
    elif kind == "field" and file.suffix == ".json":
        values = json.loads(content)
        name = draw.choice([*values])
        values = {**values, name: draw.choice([None, "x", 7, {}, {"../x": "0" * 64}])}
        file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        return f"{kind} {name} of {file.relative_to(folder)}"
    elif kind == "field":
        file.write_text(content.decode()[:-1])
    elif kind == "swap":
        other = draw.choice([path for path in files if path.read_bytes() != content])
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return f"{kind} {file.relative_to(folder)} {other.relative_to(folder)}"
    else:
        put(file, kind, to=draw.choice([path for path in (*files, Path("/dev/zero")) if path != file]))
    return f"{kind} {file.relative_to(folder)}"


def put(file: Path, kind: str, to: Path | None = None) -> None:
    """Put something else in a file's place, or nothing; ``to`` is where a link leads."""
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "link":
        file.symlink_to(to or file)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "socket":
        os.mknod(file, stat.S_IFSOCK | 0o600)
