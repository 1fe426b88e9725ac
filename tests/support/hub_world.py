"""Processes with one cache that use a Hub on the loopback interface."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.hub import Hub
from tests.support.paths import ROOT


class World:
    """A Hub, and processes with one cache that use it."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.hub, self.home = hub, home
        self.requests: list[str] = []
        self.stderr = ""

    def python(self, code: str, *arguments: str, **variables: str) -> Any:
        """Run code that prints JSON."""
        before = len(self.hub.requests)
        environment = self.hub.environment(self.home, HF_HUB_ETAG_TIMEOUT="1", **variables)
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=self.home,
            env=environment | {"PYTHONPATH": str(ROOT), "STLM_KD_CACHE": str(self.home / "own")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stderr
        self.requests, self.stderr = self.hub.requests[before:], ended.stderr
        return json.loads(ended.stdout)
