"""Known vulnerabilities of the versions in ``requirements.lock``, by pip-audit; part of ``make audit``.

Exit code 1: there are some. 2: the service did not answer for all of them, which is no pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"


def report(answer: str, told: str) -> tuple[int, list[str]]:
    """The exit code and the lines for what pip-audit wrote as JSON, and beside it."""
    try:
        rows: list[dict[str, Any]] = json.loads(answer)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (told.strip().splitlines() or ["no output"])[-1]
        return 2, [f"not audited: pip-audit gave no answer ({last}); repeat it where pypi.org can be reached"]
    lines = [
        f"{row['name']} {row['version']}: {one['id']}; fixed in {', '.join(one['fix_versions']) or 'none'}"
        for row in rows
        for one in row.get("vulns", ())
    ]
    unknown = [row["skip_reason"] for row in rows if "skip_reason" in row]
    if unknown or not rows:
        reason = unknown[0] if unknown else "no versions found"
        lines.append(
            f"{len(unknown)} of {len(rows)} versions not audited ({reason}); repeat it where pypi.org can be "
            "reached"
        )
        return (1 if len(lines) > 1 else 2), lines
    return (1, lines) if lines else (0, [f"{len(rows)} versions: no known vulnerability"])


def main() -> int:
    """Look up the locked versions in PyPI's advisory database, and print the result."""
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--no-deps", "--disable-pip"),
            *("--format", "json", "--progress-spinner", "off"),
        ],
        capture_output=True,
        text=True,
    )
    code, lines = report(ended.stdout, ended.stderr)
    print("\n".join(lines), file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
