"""The size of each package: modules, lines, and the median and longest module and function.

``python benchmarks/program/structure.py [ROOT]``
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

TOP = ("cli", "eval", "stlm_kd")
LINKS = ("cli", "eval", "recipes")
"""Links in ``stlm_kd`` to folders at the top."""


def modules(root: Path) -> dict[str, list[Path]]:
    """The modules of each package, but for those that hold nothing."""
    found = defaultdict(list)
    for top in TOP:
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).parts
            if not (parts[0] == "stlm_kd" and parts[1] in LINKS):
                found["/".join(parts[:-1])].append(path)
    return found


def functions(path: Path) -> list[int]:
    """The lines of each function and method."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    ]


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2]
    print("| package | modules | lines | module, median / longest | function, median / longest |")
    print("|---|---|---|---|---|")
    everything: list[Path] = []
    for package, paths in modules(root).items():
        everything += paths
        print(row(package, paths))
    print(row("all", everything))


def row(name: str, paths: list[Path]) -> str:
    """One line of the table; ``__init__`` counts by its lines alone."""
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in paths]
    own = [count for path, count in zip(paths, lines, strict=True) if path.name != "__init__.py"] or [0]
    long = [length for path in paths for length in functions(path)] or [0]
    return (
        f"| `{name}` | {sum(path.name != '__init__.py' for path in paths)} | {sum(lines):,} | "
        f"{median(own):.0f} / {max(own)} | {median(long):.0f} / {max(long)} |"
    )


if __name__ == "__main__":
    main()
