"""The examples in docstrings run with the tests, those behind the links too."""

from __future__ import annotations

import re

import pytest

from tests.support.paths import ROOT


def test_every_module_with_an_example_is_collected(request: pytest.FixtureRequest) -> None:
    if ROOT / "stlm_kd" not in {ROOT / name for name in request.config.args}:
        pytest.skip("only a run of everything collects them")
    collected = {
        item.path.resolve() for item in request.session.items if isinstance(item, pytest.DoctestItem)
    }
    with_example = {
        path.resolve()
        for top in ("stlm_kd", "cli", "eval", "recipes")
        for path in (ROOT / top).rglob("*.py")
        if re.search(r"^ *>>> ", path.read_text(), re.MULTILINE)
    }
    assert len(with_example) > 40
    by_name = {path for path in with_example if "= registering(" in path.read_text()}
    """Examples of decorators that are made by a function: ``tests/unit/test_public_names.py`` runs them."""
    assert collected | by_name == with_example
