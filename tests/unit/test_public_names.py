"""The names that ``import stlm_kd`` offers: at run time, for type checkers and in ``__all__``."""

from __future__ import annotations

import ast
import doctest
import inspect
import re

import pytest

import stlm_kd
from tests.support.paths import ROOT
from tests.support.registries import unchanged_registries

IN_DOCS = set(re.findall(r"stlm_kd\.(\w+)", (ROOT / "docs" / "python.md").read_text(encoding="utf-8")))
"""The commands and what they return: docs/python.md shows them, and a test runs it."""
RETURNED = {
    "CacheSummary",
    "Comparison",
    "Estimate",
    "Finding",
    "Recipe",
    "RecipeVocabularies",
    "Run",
    "StageSummary",
    "SuiteResult",
    "VocabularyComparison",
    "VocabularyCurve",
}
OF_ANOTHER = {"Temperature": "register_loss"}
"""Names that are no object with a docstring of their own, and whose docstring shows them."""


def names_for_type_checkers() -> set[str]:
    tree = ast.parse((ROOT / "stlm_kd" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def test_the_names_are_the_same_everywhere() -> None:
    assert sorted(stlm_kd.__all__) == stlm_kd.__all__
    assert set(stlm_kd.__all__) == names_for_type_checkers()
    assert set(stlm_kd.__all__) <= set(dir(stlm_kd))
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        stlm_kd.distil  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", sorted(set(stlm_kd.__all__) - IN_DOCS - RETURNED))
def test_each_part_has_an_example_that_is_right(name: str) -> None:
    text = inspect.getdoc(getattr(stlm_kd, OF_ANOTHER.get(name, name))) or ""
    module = inspect.getmodule(getattr(stlm_kd, OF_ANOTHER.get(name, name)))
    example = doctest.DocTestParser().get_doctest(text, dict(vars(module)), name, None, 0)
    assert example.examples
    with unchanged_registries():
        assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("name", stlm_kd.__all__)
def test_each_name_is_there_and_explained(name: str) -> None:
    found = getattr(stlm_kd, name)
    assert inspect.getdoc(found)
    if inspect.isfunction(found):
        documented = inspect.getdoc(found) or ""
        for parameter in inspect.signature(found).parameters:
            assert f"    {parameter}: " in documented, parameter
