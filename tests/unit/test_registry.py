"""What cannot be registered is refused at once, by the names of its module and of its registry."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import stlm_kd
from stlm_kd.adaptation.initialisers import INITIALISERS
from stlm_kd.data.sources.sources import DATA_SOURCES
from stlm_kd.errors import ExtensionError, MissingResourceError, StlmKdError
from stlm_kd.eval import SUITES
from stlm_kd.extensions import import_modules
from stlm_kd.interventions import SOURCES
from stlm_kd.losses import LOSSES, MAP_LOSSES, STATE_LOSSES
from stlm_kd.teachers.combination import COMBINERS
from tests.support.registries import unchanged_registries

KINDS = {
    "loss": ("@stlm_kd.register_loss({!r})", 2, "forward_kl"),
    "loss of hidden states": ("@stlm_kd.register_loss({!r}, compares='hidden states')", 2, "hint"),
    "loss of attention maps": ("@stlm_kd.register_loss({!r}, compares='attention maps')", 2, "attention_mse"),
    "counterfactual source": ("@stlm_kd.register_source({!r})", 1, "mixup"),
    "way to combine teachers": ("@stlm_kd.register_combiner({!r})", 1, "mean"),
    "initialiser of a vocabulary": ("@stlm_kd.register_initialiser({!r})", 3, "overlap"),
    "suite": ("@stlm_kd.register_suite({!r}, tasks=['clm'])", 3, "perplexity"),
}
"""By kind, its decorator, how many arguments its functions take, and a name that is taken."""
NAMES = ("first", "second", "third")
TABLES: dict[str, Any] = dict(
    zip(KINDS, (LOSSES, STATE_LOSSES, MAP_LOSSES, SOURCES, COMBINERS, INITIALISERS, SUITES), strict=True)
)


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Imports modules of these texts, as ``--import`` does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delenv("STLM_KD_IMPORT", raising=False)
    monkeypatch.setenv("STLM_KD_IMPORT", "")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of the same size and second: stale

    def load(**texts: str) -> None:
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(f"import stlm_kd\n{text}\n", encoding="utf-8")
        import_modules(list(texts))

    with unchanged_registries():
        yield load
    for name in ("mine", "yours"):
        sys.modules.pop(name, None)


def function(kind: str, name: str = "new", options: str = "", *, arguments: int | None = None) -> str:
    decorator, positional, _ = KINDS[kind]
    names = NAMES[: positional if arguments is None else arguments]
    parameters = ", ".join([*names, *(["*", options] if options else [])])
    return f"{decorator.format(name)}\ndef new({parameters}): ...\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_one_is_registered(kind: str, imported: Callable[..., None]) -> None:
    imported(mine=function(kind))
    assert "new" in TABLES[kind] and TABLES[kind].options("new") == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_taken_name_is_refused_by_both_modules(kind: str, imported: Callable[..., None]) -> None:
    with pytest.raises(ExtensionError) as refused:
        imported(mine=function(kind, KINDS[kind][2]))
    said = str(refused.value)
    assert said.startswith(f"--import mine: mine: {kind} {KINDS[kind][2]}: stlm_kd.")
    assert said.endswith("registers this name already; use another name")
    with pytest.raises(
        ExtensionError, match=f"^--import yours: yours: {kind} twice: mine registers this name"
    ):
        imported(mine=function(kind, "twice").replace("def new", "def own"), yours=function(kind, "twice"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"arguments": 0},
            r"0 positional arguments found in new\(\); expected {positional}, and options",
        ),
        ({"options": "a, **others"}, r"\*\*others found in new\(.*; expected each argument by its name"),
        ({"options": "size"}, "the option size has no type; annotate it, such as size: float = 1.0"),
        ({"options": "size: 'Nowhere' = 1"}, r"the type of an option cannot be found \(NameError: .*Nowhere"),
    ],
)
def test_a_wrong_signature_is_refused(
    kind: str, changes: dict[str, Any], expected: str, imported: Callable[..., None]
) -> None:
    with pytest.raises(ExtensionError) as refused:
        imported(mine=function(kind, **changes))
    said = str(refused.value)
    assert said.startswith(f"--import mine: mine: {kind} new: ") and "\n" not in said
    assert refused.value.exit_code == 3
    assert re.search(expected.format(positional=KINDS[kind][1]), said)


def test_too_many_and_variable_arguments_are_refused() -> None:
    with unchanged_registries():
        register = stlm_kd.register_loss("new")
        with pytest.raises(ExtensionError, match=r"3 positional arguments found in .*; expected 2, and"):
            register(lambda a, b, c: a)
        with pytest.raises(ExtensionError, match=r"\*all found in <lambda>\(\*all\); expected each argument"):
            register(lambda *all: all[0])
        with pytest.raises(ExtensionError, match="option size found; recipes give it no options"):

            @stlm_kd.register_initialiser("new")
            def new(old: object, mapping: object, context: object, /, *, size: int = 1) -> object: ...


def test_a_suite_with_teachers_takes_four_arguments_and_one_that_fine_tunes_none() -> None:
    with unchanged_registries():
        stlm_kd.register_suite("four", tasks=["clm"], teachers="outputs")(lambda a, b, c, d: None)
        stlm_kd.register_suite("none", tasks=["clm"], fine_tunes=True)(lambda: None)
        with pytest.raises(ExtensionError, match="suite five: 0 positional arguments found"):
            stlm_kd.register_suite("five", tasks=["clm"], teachers="outputs")(lambda: None)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import nothing_of_this_name", MissingResourceError),
        ("def broken(:", MissingResourceError),
        ("1 / 0", MissingResourceError),
        ("stlm_kd.register_family('llama', task='clm', blocks='layers')", ExtensionError),
        ("stlm_kd.register_family('mine', task='causal', blocks='layers')", ExtensionError),
        ("stlm_kd.register_family('mine', task='clm', blocks='layers', positions='one')", ExtensionError),
    ],
)
def test_an_import_that_fails_is_one_line(
    text: str, error: type[StlmKdError], imported: Callable[..., None]
) -> None:
    with pytest.raises(error, match=r"^--import mine: ") as refused:
        imported(mine=text)
    assert "\n" not in str(refused.value)


WRONG: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "loss": ("return first", (torch.ones(3, 2), torch.ones(3, 2)), r"shape \(3, 2\) found; .* \(3,\)"),
    "loss of hidden states": (
        "return 1.0",
        (torch.ones(3, 2), torch.ones(3, 2)),
        "float found; expected one",
    ),
    "loss of attention maps": (
        "return first.detach().sum(-1)",
        (torch.ones(3, 2, requires_grad=True), torch.ones(3, 2)),
        "no gradient",
    ),
    "counterfactual source": ("return first", (1,), "int found; expected two values"),
    "way to combine teachers": (
        "return first.blank + 1",
        (SimpleNamespace(blank=torch.zeros(4, 2)),),
        "sums up to 2",
    ),
    "initialiser of a vocabulary": (
        "return first",
        (torch.ones(3, 2), [0] * 4, None),
        r"\(3, 2\) found; .* \(4, 2\)",
    ),
    "suite": ("return 0.5", (None, None, []), "float found; expected a SuiteResult"),
}
"""By kind, a wrong body, arguments, and what is said of the result."""


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_result_names_the_function(kind: str, imported: Callable[..., None]) -> None:
    body, arguments, words = WRONG[kind]
    imported(mine=function(kind).replace("...", body))
    with pytest.raises(ExtensionError, match=f"mine: {kind} new: .*{words}"):
        TABLES[kind]["new"](*arguments)


@pytest.mark.parametrize("kind", WRONG)
def test_an_error_of_the_function_has_its_name_and_line(kind: str, imported: Callable[..., None]) -> None:
    imported(mine=function(kind).replace("...", "raise ValueError('why')"))
    with pytest.raises(ExtensionError, match=f"mine: {kind} new, line 3: ValueError: why"):
        TABLES[kind]["new"](*WRONG[kind][1])


def test_items_of_a_data_source_are_texts(imported: Callable[..., None]) -> None:
    head = "@stlm_kd.register_data_source('numbers', identity=lambda value: [value])"
    imported(mine=f"{head}\ndef new(first: int, /):\n    yield 'one'\n    yield 2")
    items = DATA_SOURCES["numbers"](3)
    assert next(items) == "one"
    with pytest.raises(ExtensionError, match="mine: data source numbers: item 2: int found, expected str"):
        next(items)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("@stlm_kd.register_loss('a b')\ndef new(first, second): ...", "'a b' found as the name of a loss"),
        ("@stlm_kd.register_loss\ndef new(first, second): ...", "mine: <function new .* found as the name"),
        ("@stlm_kd.register_loss('new', compares='x')\ndef new(first, second): ...", "compares='x' found"),
        ("@stlm_kd.register_loss('new')\ndef new(a, b, *, weight: float = 1.0): ...", "weight is a key that"),
        ("@stlm_kd.register_suite('new')\ndef new(a, b, c): ...", "mine: suite new: missing 1 .* 'tasks'"),
        ("@stlm_kd.register_suite('new', tasks='clm')\ndef new(a, b, c): ...", "tasks='clm' found; expected"),
        (
            "@stlm_kd.register_combiner('new', needs=['x'])\ndef new(a): ...",
            "new: needs 'x'; expected some of",
        ),
        (
            "@stlm_kd.register_data_source('domain', identity=str)\ndef new(a: str): ...",
            "mine: data source domain: domain is a key that recipes have already",
        ),
        (
            "def rows(a: str, columns, optional, /, *, limit: int = 3): ...\n"
            "@stlm_kd.register_data_source('new', identity=str, rows=rows)\ndef new(a: str, /): ...",
            "mine: data source new: limit is a key that recipes have already; rename it",
        ),
        *[
            (
                "@stlm_kd.register_data_source('new', identity=str)\n"
                f"def new(a: str, /, *, {key}: int = 3): ...",
                f"mine: data source new: {key} is a key that recipes have already; rename it",
            )
            for key in ("limit", "shuffle", "subsample", "share", "chat", "min_characters", "deduplicate")
        ],
    ],
)
def test_a_wrong_registration_is_refused(text: str, words: str, imported: Callable[..., None]) -> None:
    with pytest.raises(ExtensionError, match=words):
        imported(mine=text)
