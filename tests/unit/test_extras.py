"""Optional packages: a command that needs one that is not installed names the extra that has it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib.metadata import metadata

import pytest

from stlm_kd.errors import MissingResourceError
from stlm_kd.eval import SUITES
from stlm_kd.eval.attribution.words import _segmenter, words_of
from stlm_kd.interventions.wordnet import require_wordnet
from stlm_kd.publishing.signing import sign_recipe
from stlm_kd.tracking.experiment import require_wandb

NEEDS: dict[str, tuple[str, Callable[[], object]]] = {
    "captum": (
        "attributions",
        lambda: SUITES["agreement"].check({"attributions": ("lime", "integrated-gradients")}),
    ),
    "budoux": ("attributions", lambda: words_of(["ดี"])),
    "nltk": ("wordnet", require_wordnet),
    "wandb": ("wandb", require_wandb),
    "model_signing": ("signing", lambda: sign_recipe(".", "key")),
}


@pytest.mark.parametrize("package", NEEDS)
def test_the_extra_of_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extra, use = NEEDS[package]
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    _segmenter.cache_clear()
    with pytest.raises(MissingResourceError, match=re.escape(f"pip install 'stlm-kd[{extra}]'")):
        use()
    assert extra in (metadata("stlm-kd").get_all("Provides-Extra") or ())


def test_lime_and_entities_need_no_further_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("captum", "lime", "seqeval"):
        monkeypatch.setitem(sys.modules, package, None)
    SUITES["agreement"].check({"attributions": ("lime",)})
    assert list(SUITES["ner"].requirements({})) == []
