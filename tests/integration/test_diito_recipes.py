"""Losses with interventions in recipes: the resulting terms, and the messages for invalid ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, LlamaConfig, PretrainedConfig, StableLmConfig
from typer.testing import CliRunner

from stlm_kd.cli.main import app
from stlm_kd.data.synthetic import sample_documents
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import MissingResourceError
from stlm_kd.interventions import SOURCES, WordTokens, wordnet
from stlm_kd.interventions.wordnet import check_relation
from stlm_kd.pipeline.builders.interchange import check_sources
from stlm_kd.pipeline.builders.objective import feature_faults, projections_of, terms_of
from stlm_kd.recipe import Recipe, load, recipe_hash, resolved_yaml
from stlm_kd.recipe.schema.interchange import Interchange
from stlm_kd.schedules import Ramp
from tests.support.recipes import faults

GOOD = """
task: clm
student: {tokenizer: t, preset: stlm-nano}
teachers: [{name: a, model: m}, {name: b, model: n}]
data: {train: a.txt}
objectives: [{loss: labels}, {loss: diito, teacher: a}]
train: {steps: 10}
"""


@pytest.fixture
def good(tmp_path: Path) -> str:
    file = tmp_path / "good.yaml"
    file.write_text(GOOD, encoding="utf-8")
    return str(file)


def llama(layers: int, width: int = 16) -> PretrainedConfig:
    return LlamaConfig(num_hidden_layers=layers, hidden_size=width, num_attention_heads=2)


def recipe_of(file: str, *overrides: str) -> Recipe:
    return load(file, overrides)


def test_an_objective_becomes_a_term_with_an_intervention(good: str) -> None:
    recipe = recipe_of(good, "objectives[1].alignment=full", "objectives[1].temperature=3")
    _, term = terms_of(recipe, llama(2), {"a": llama(4), "b": llama(4)})
    assert (term.name, term.loss, term.weight, term.on) == ("diito@a", "forward_kl", 0.25, "attended")
    assert term.options == {"temperature": 3.0} and term.teacher == "a"
    intervention = term.intervention
    assert intervention is not None
    assert intervention.layers == {"a": {0: (0, 1), 1: (2, 3)}}
    assert (intervention.fraction, intervention.positions) == (0.3, "consecutive")
    assert (intervention.source, intervention.source_site) == ("other-example", "block-output")


def test_the_temperature_may_change_over_the_training(good: str) -> None:
    recipe = recipe_of(good, "objectives[1].temperature={schedule: linear, values: [4, 1]}")
    _, term = terms_of(recipe, llama(2), {"a": llama(4), "b": llama(4)})
    assert term.options["temperature"] == Ramp("linear", 4, 1)


def test_a_causal_cosine_is_a_term_of_the_same_intervention_projected_where_widths_differ(good: str) -> None:
    recipe = recipe_of(good, "objectives[1].causal_cosine_weight=0.5")
    teachers = {"a": llama(4, width=32), "b": llama(4)}
    terms = terms_of(recipe, llama(2), teachers)
    assert [term.name for term in terms] == ["labels", "diito@a", "diito@a.causal_cosine"]
    assert terms[2].intervention == terms[1].intervention
    assert (terms[2].loss, terms[2].weight, terms[2].teacher) == ("cosine", 0.5, "a")
    made = projections_of(recipe, terms, llama(2), teachers, seed=0)
    (weight, bias) = (p.shape for p in made.of("diito@a.causal_cosine").parameters())
    assert (tuple(weight), tuple(bias)) == ((32, 16), (32,))
    same = projections_of(recipe, terms, llama(2), {"a": llama(4), "b": llama(4)}, seed=0)
    assert not list(same.parameters())


def test_alignments_are_those_of_each_teacher(good: str) -> None:
    recipe = recipe_of(
        good, "objectives[1].teacher=combined", "objectives[1].alignment={a: full, b: {1: [0, 2]}}"
    )
    terms = terms_of(recipe, llama(2), {"a": llama(4), "b": llama(3)})
    assert terms[1].intervention is not None
    assert terms[1].intervention.layers == {"a": {0: (0, 1), 1: (2, 3)}, "b": {1: (0, 2)}}
    assert terms[1].intervention.student_layers == [1]


def test_the_last_layer_may_be_left_out(good: str) -> None:
    recipe = recipe_of(good, "objectives[1].exclude_last=true")
    terms = terms_of(recipe, llama(3), {"a": llama(6), "b": llama(6)})
    assert terms[1].intervention is not None
    assert terms[1].intervention.layers == {"a": {0: (0, 1), 1: (2, 3)}}


def test_what_is_resolved_reads_the_same_again(good: str, tmp_path: Path) -> None:
    recipe = recipe_of(good, "objectives[1].source=mixup", "objectives[1].alignment={0: [0, 1]}")
    again = tmp_path / "again.yaml"
    again.write_text(resolved_yaml(recipe), encoding="utf-8")
    assert load(str(again)) == recipe


def test_every_option_of_a_source_is_a_field() -> None:
    keys = {SOURCES[name].keys[option] for name in SOURCES for option in SOURCES.options(name)}
    assert keys == {"pairing", "mixup_map", "mixup_noise"} and keys <= Interchange.model_fields.keys()


def test_options_under_a_source_are_the_same_recipe_as_beside_it(good: str) -> None:
    under = recipe_of(good, "objectives[1].source={name: mixup, map: residual, noise: matched}")
    beside = recipe_of(
        good,
        "objectives[1].source=mixup",
        "objectives[1].mixup_map=residual",
        "objectives[1].mixup_noise=matched",
    )
    assert recipe_hash(under) == recipe_hash(beside) != recipe_hash(recipe_of(good))
    _, term = terms_of(under, llama(2), {"a": llama(4), "b": llama(4)})
    assert term.intervention is not None
    assert term.intervention.options == {"map": "residual", "noise": "matched"}


FAULTS: dict[str, tuple[list[str], str]] = {
    "a name of an alignment": (
        ["objectives[1].alignment=centre"],
        "objectives[1].alignment: 'centre' found; expected one of full, middle, late, first, last, "
        "or layers such as {0: [0, 1], 1: [2, 3]}",
    ),
    "a source": (
        ["objectives[1].source=mixupp"],
        "objectives[1].source: 'mixupp' is not a known counterfactual source (did you mean mixup?)",
    ),
    "a layer of the student": (
        ["objectives[1].alignment={9: 0}"],
        "objectives[1].alignment: layer 9 given, but the student has 2; use layers 0 to 1",
    ),
    "masked positions": (
        ["objectives[1].positions=masked"],
        "objectives[1].positions: masked given, but task clm masks no tokens; use consecutive or random",
    ),
    "a value of an option under a source": (
        ["objectives[1].source={name: mixup, map: other}"],
        "objectives[1].source.map: 'other' found; expected one of same, residual",
    ),
    "an option that is given twice": (
        ["objectives[1].source={name: mixup, map: same}", "objectives[1].mixup_map=residual"],
        "objectives[1]: mixup_map is given twice: here and under source; expected it once",
    ),
    "an option of another source": (
        ["objectives[1].mixup_map=residual"],
        "objectives[1].mixup_map: not an option of the source other-example, which takes pairing",
    ),
    "an option of a source without any": (
        ["objectives[1].source=synonym", "objectives[1].pairing=batch"],
        "objectives[1].pairing: not an option of the source synonym, which takes no options",
    ),
    "the only layer left out": (
        ["objectives[1].alignment=middle", "objectives[1].exclude_last=true"],
        "objectives[1].exclude_last: true, but the student's last layer is the only one that is aligned; "
        "align another",
    ),
    "the last layer left out of any student": (
        [
            "student={tokenizer: t, model: m}",
            "objectives[1].alignment=last",
            "objectives[1].exclude_last=true",
        ],
        "objectives[1].exclude_last: true, but the student's last layer is the only one that is aligned; "
        "align another",
    ),
    "late of a small student": (
        ["objectives[1].alignment=late"],
        "objectives[1].alignment: late means the two layers below the last, but the student has 2 layers; "
        "use a student of at least 3, or full, middle or last",
    ),
    "a site without a source": (
        ["objectives[1].source=mixup", "objectives[1].source_site=block-input"],
        "objectives[1].source_site: given, but the source mixup does not use it",
    ),
    "layers without states": (
        ["objectives[1].source=input-tokens", "objectives[1].alignment=late"],
        "objectives[1].alignment: given, but the source input-tokens does not use it",
    ),
    "a cosine of several teachers": (
        ["objectives[1].teacher=combined", "objectives[1].causal_cosine_weight=1"],
        "objectives[1].teacher: not given, but hidden states cannot be combined; name one of a, b",
    ),
    "an alignment of no teacher": (
        ["objectives[1].alignment={a: full, c: full}"],
        "objectives[1].alignment: c is not a teacher of this loss; known: a",
    ),
    "a teacher without an alignment": (
        ["objectives[1].teacher=combined", "objectives[1].alignment={a: full}"],
        "objectives[1].alignment: none given for teacher b",
    ),
    "a share above one": (
        ["objectives[1].fraction=1.5"],
        "objectives[1].fraction: 1.5 found; expected at most 1",
    ),
    "no token": (["objectives[1].max_tokens=0"], "objectives[1].max_tokens: 0 found; expected at least 1"),
}


@pytest.mark.parametrize("what", sorted(FAULTS))
def test_faults_are_said_in_one_line_each(what: str, good: str) -> None:
    overrides, expected = FAULTS[what]
    found = faults(good, *overrides)
    assert expected in found or any(line.startswith(expected) for line in found), found


def test_numbers_are_no_distributions(tmp_path: Path) -> None:
    file = tmp_path / "numbers.yaml"
    file.write_text(
        """
task: regression
student: {tokenizer: t, preset: stlm-nano}
teachers: [{name: a, model: m}]
data: {train: {path: a.jsonl, text: one, label: two}}
objectives: [{loss: diito}]
train: {steps: 10}
""",
        encoding="utf-8",
    )
    assert any(
        "diito compares distributions, and a regression has none" in line for line in faults(str(file))
    )


@pytest.mark.parametrize(
    ("overrides", "student", "teacher", "expected"),
    [
        (
            ["objectives[1].alignment={0: 7}"], llama(2), llama(4),
            "objectives[1].alignment: teacher layers 7 given, but the teacher has 4",
        ),
        (
            ["objectives[1].alignment=late"], llama(2), llama(4),
            "objectives[1].alignment: late means the two layers below the last, but the student has 2 layers",
        ),
        (
            ["objectives[1].alignment=middle", "objectives[1].exclude_last=true"], llama(2), llama(4),
            "objectives[1].alignment: exclude_last leaves no layer of the student",
        ),
        (
            [], llama(2), StableLmConfig(num_hidden_layers=4),
            "objectives[1].loss: diito does not support these models: teacher a is a stablelm; supported:",
        ),
        (
            [], StableLmConfig(num_hidden_layers=2), BertConfig(num_hidden_layers=4),
            "objectives[1].loss: diito does not support these models: the student is a stablelm",
        ),
    ],
)  # fmt: skip
def test_models_that_do_not_fit_are_named(
    overrides: list[str], student: Any, teacher: Any, expected: str, good: str
) -> None:
    recipe = recipe_of(good, "student={tokenizer: t, model: m}", *overrides)
    (found,) = feature_faults(recipe, student, {"a": teacher, "b": llama(4)})
    assert str(found).startswith(expected)


def test_teachers_that_share_no_layer_of_the_student_are_refused(good: str) -> None:
    recipe = recipe_of(good, "objectives[1].teacher=combined", "objectives[1].alignment={a: first, b: last}")
    (found,) = feature_faults(recipe, llama(2), {"a": llama(4), "b": llama(4)})
    assert str(found) == (
        "objectives[1].alignment: no layer of the student is aligned with every teacher: a with 0; b with 1"
    )


def test_wordnet_that_is_not_there_is_said_with_what_to_do(
    good: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr("nltk.corpus.wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    wordnet.thesaurus.cache_clear()
    tokenizer = train_tokenizer(list(sample_documents("train", size=20_000, seed=1)), size=300)
    recipe = recipe_of(good, "objectives[1].source=synonym")
    with pytest.raises(
        MissingResourceError, match=r"set NLTK_DATA to a folder that has corpora/wordnet\.zip"
    ):
        check_sources(recipe, tokenizer)
    checked = CliRunner().invoke(app, ["recipe", "validate", good, "objectives[1].source=synonym"])
    assert (checked.exit_code, "source synonym: WordNet is not installed; run" in checked.stderr) == (5, True)


def test_nltk_that_is_not_installed_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nltk.corpus", None)
    wordnet.thesaurus.cache_clear()
    with pytest.raises(MissingResourceError, match=r"pip install 'stlm-kd\[wordnet\]'"):
        check_relation(WordTokens(np.arange(3), {0: "dog"}), "synonym")
