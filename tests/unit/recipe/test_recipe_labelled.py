"""Recipes whose data is labelled examples: columns, classes, splits, and what classifiers cannot be asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from stlm_kd.data.labelled.examples import LabelledSource
from stlm_kd.errors import DataError
from stlm_kd.pipeline.builders.examples import (
    all_examples,
    class_names_of,
    held_out_examples,
    labelled_sources,
    training_examples,
)
from stlm_kd.pipeline.stage_keys import examples_key
from stlm_kd.recipe import Recipe, load
from stlm_kd.recipe.describe import describe
from tests.support.recipes import faults

BERT = "{model_type: bert, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2}"
RECIPE = f"""
task: classification
student: {{tokenizer: t, architecture: {BERT}}}
data: {{train: train.jsonl, validation: valid.jsonl}}
objectives: [{{loss: labels}}]
train: {{steps: 10}}
eval: [classification]
"""
NUMBERS = RECIPE.replace("classification", "regression")
PAIRS = "data.validation={path: valid.jsonl, text: [one, two]}"
TRAIN = [{"sentence": f"text {i}", "label": i % 3} for i in range(12)]
VALID = [{"sentence": f"held {i}", "label": i % 2} for i in range(4)]


def write(folder: Path, name: str, rows: Sequence[Mapping[str, object]]) -> None:
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe for classes, beside its examples, in the current folder."""
    write(tmp_path, "train.jsonl", TRAIN)
    write(tmp_path, "valid.jsonl", VALID)
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "numbers.yaml").write_text(NUMBERS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return "recipe.yaml"


def recipe(file: str, *overrides: str) -> Recipe:
    return load(file, overrides)


def test_columns_splits_and_sizes_have_their_defaults(file: str) -> None:
    (source,) = labelled_sources(recipe(file).data.train)
    assert (source.text, source.label, source.options) == (("sentence",), "label", {})
    (source,) = labelled_sources(recipe(file, "data.train={sample: sentiment}").data.train)
    assert source == LabelledSource(sample="sentiment", split="train")
    given = "data.train={hub: glue, name: mrpc, text: [sentence1, sentence2], revision: abc, split: test}"
    (source,) = labelled_sources(recipe(file, given, PAIRS).data.train)
    assert (source.name, source.value, source.text) == ("hub", "glue", ("sentence1", "sentence2"))
    assert source.options == {"name": "mrpc", "revision": "abc", "split": "test"}


def test_one_column_may_be_written_without_a_list(file: str) -> None:
    one = recipe(file, "data.train={path: a.tsv, text: body, label: kind}").data.train[0]
    assert (one.text, one.label) == (("body",), "kind")


def test_the_plan_tells_columns_and_classes(file: str) -> None:
    text = describe(
        recipe(
            file, "data.train={path: a.tsv, text: [one, two], label: kind}", "data.labels=[no, yes]", PAIRS
        )
    )
    assert "train on a.tsv (text one and two, label kind)" in text
    assert "classes no, yes" in text
    assert "of at most 512 tokens each" in text


def test_classes_are_those_of_the_training_examples(file: str) -> None:
    assert class_names_of(recipe(file)) == ("0", "1", "2")
    held = held_out_examples(recipe(file))
    assert held is not None and held.label_names == ("0", "1", "2")
    named = recipe(file, "data.labels=[bad, fair, good]")
    assert class_names_of(named) == all_examples(named).label_names == ("bad", "fair", "good")


def test_held_out_examples_of_other_classes_are_refused_by_place(file: str, tmp_path: Path) -> None:
    write(tmp_path, "valid.jsonl", [*VALID, {"sentence": "other", "label": 7}])
    with pytest.raises(DataError, match=r"^data\.validation: valid\.jsonl.*label 7 is not one of"):
        held_out_examples(recipe(file))


def test_labels_that_are_hidden_are_refused_by_place(file: str, tmp_path: Path) -> None:
    write(tmp_path, "valid.jsonl", [{"sentence": "x", "label": -1}] * 3)
    with pytest.raises(DataError, match=r"^data\.validation: .*the label is -1, which marks hidden labels"):
        held_out_examples(recipe(file))
    with pytest.raises(DataError, match=r"^data\.validation: .*the label is -1"):
        held_out_examples(recipe("numbers.yaml"))
    write(tmp_path, "train.jsonl", [{"sentence": "x", "label": -1}] * 3)
    with pytest.raises(DataError, match=r"^data\.train: .*the label is -1"):
        all_examples(recipe(file))


def test_numbers_have_no_classes(file: str) -> None:
    found = all_examples(recipe("numbers.yaml"))
    assert found.is_regression and class_names_of(recipe("numbers.yaml")) == ()
    assert found.labels.tolist() == [i % 3 for i in range(12)]


def test_a_fraction_draws_the_same_share_of_each_class_by_the_seed(file: str) -> None:
    drawn = {seed: training_examples(recipe(file), 0.5, seed=seed) for seed in (1, 2)}
    assert all(one.counts() == {"0": 2, "1": 2, "2": 2} for one in drawn.values())
    assert drawn[1].texts != drawn[2].texts
    assert np.array_equal(training_examples(recipe(file), 0.5, seed=1).labels, drawn[1].labels)
    with pytest.raises(DataError, match=r"data\.fraction: 0\.1 of 12 examples leaves none of the 4 of class"):
        training_examples(recipe(file), 0.1, seed=1)


def test_a_key_of_examples_is_their_content_and_how_they_are_read(file: str, tmp_path: Path) -> None:
    def key(*overrides: str, of: str = file) -> object:
        made = recipe(of, *overrides)
        return examples_key(made.data.train, made)

    before = key()
    assert key("train.steps=11") == before
    assert key("data.labels=[a, b, c]") != before
    assert key(of="numbers.yaml") != before
    assert key("data.train={path: train.jsonl, text: [sentence, label], label: other}", PAIRS) != before
    write(tmp_path, "train.jsonl", TRAIN[:-1])
    assert key() != before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train={path: a.tsv, column: body}", "data.train.column: only for language models"),
        ("data.train={path: a.tsv, documents: line}", "data.train.documents: only for language models"),
        ("data.train={path: a.tsv, domain: news}", "data.train.domain: only for language models"),
        ("data.train={path: a.tsv, weight: 2}", "data.train.weight: only for language models"),
        ("data.train={sample: train}", "data.train.sample: train has no labels; expected one of"),
        ("data.train={path: a.tsv, text: [a, b, c]}", "data.train.text: 3 columns found; expected one"),
        ("data.train={path: a.tsv, text: [a, a]}", "data.train.text: a given twice"),
        ("data.train={path: a.tsv, text: label}", "data.train.label: label is also a text column"),
        ("data.train={sample: sentiment, text: body}", "data.train.text: a sample has the columns"),
        ("data.train={path: a.tsv, text: [a, b]}", "data.validation.text: 1 columns of text, but data.train"),
        ("data.context=3", "data.context: 3 found; expected at least 4"),
        ("engine.vocabulary_loss=dense", "engine.vocabulary_loss: only for language models"),
        ("data.train={path: a.tsv, split: train}", "data.train.split: only for text from the Hub"),
        ("data.train={path: a.tsv, size: 5}", "data.train.size: only for generated text"),
        ("data.train={sample: sentiment, split: test}", "test found; a sample has the splits"),
        ("data.train={sample: sentiment, name: x}", "data.train.name: only for text from the Hub"),
        ("data.labels=[yes]", "data.labels: 1 class found; expected at least two"),
        ("data.labels=[a, b, a]", "data.labels[2]: a given twice"),
        ("data.labels=[a, '']", "data.labels[1]: '' found; expected text that is not empty"),
        ("eval=[perplexity]", "eval[0]: perplexity is for task clm; expected for "),
        ("objectives=[{loss: labels, on: attended}]", "objectives[0].on: attended given, but"),
    ],
)
def test_what_is_no_part_of_labelled_data_is_refused(file: str, override: str, message: str) -> None:
    found = faults(file, override)
    assert message in found[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.train={path: a.txt, text: body}",), "data.train.text: only for classification"),
        (("data.train={path: a.txt, label: kind}",), "data.train.label: only for classification and"),
        (("data.train={sample: sentiment}",), "data.train.sample: sentiment is labelled"),
        (("data.labels=[a, b]",), "data.labels: only for classification, but the task is clm"),
        (("eval=[classification]",), "eval[0]: classification is for task classification"),
    ],
)
def test_language_models_have_no_labelled_data(file: str, overrides: tuple[str, ...], message: str) -> None:
    language = ("task=clm", "student.architecture={model_type: llama}", "eval=[]")
    (found,) = faults(file, *language, *overrides)
    assert found.startswith(message)


def test_numbers_have_no_names(file: str) -> None:
    assert faults("numbers.yaml", "data.labels=[a, b]") == [
        "data.labels: only for classification, but the task is regression"
    ]


TAUGHT = "teachers=[{name: a, model: m}]"


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "jensen_shannon", "skew_forward_kl"])
def test_a_regression_has_no_distributions_to_compare(file: str, loss: str) -> None:
    (found,) = faults("numbers.yaml", TAUGHT, f"objectives=[{{loss: labels}}, {{loss: {loss}}}]")
    assert found == (
        f"objectives[1].loss: {loss} compares distributions, and a regression has none; use logit_mse"
    )


def test_a_regressions_only_output_is_not_centred_away(file: str) -> None:
    (found,) = faults("numbers.yaml", TAUGHT, "objectives=[{loss: logit_mse, centred: true}]")
    assert found.startswith("objectives[0].centred: true, but a regression has one output")
    assert load("numbers.yaml", (TAUGHT, "objectives=[{loss: logit_mse, centred: false}]")).objectives


@pytest.mark.parametrize(
    ("combine", "message"),
    [
        ("{how: learned}", "combine.how: learned reads the input of a vocabulary head, and a class"),
        (
            "{how: domains, weights: {default: {a: 1, b: 2}}}",
            "the examples of a classification have no domain",
        ),
    ],
)
def test_ways_to_combine_that_no_classifier_has_are_refused(file: str, combine: str, message: str) -> None:
    teachers = "teachers=[{name: a, model: m}, {name: b, model: n}]"
    found = faults(file, teachers, "objectives=[{loss: forward_kl}]", f"combine={combine}")
    assert len(found) == 1
    assert message in found[0]


def test_numbers_of_several_teachers_are_not_combined(file: str) -> None:
    two = "teachers=[{name: a, model: m}, {name: b, model: n}]"
    mse = "objectives=[{loss: logit_mse, centred: false}]"
    (found,) = faults("numbers.yaml", two, mse)
    assert found.startswith("objectives[0].teacher: not given, but there is no distribution over numbers")
    assert load("numbers.yaml", (two, mse, "objectives[0].teacher=b")).objectives
    assert load(file, (two, "objectives=[{loss: forward_kl}]")).objectives


@pytest.mark.parametrize("task", ["recipe.yaml", "numbers.yaml"])
def test_an_example_has_no_label_at_any_position(file: str, task: str) -> None:
    for loss in ("hint", "attention_mse"):
        (found,) = faults(task, TAUGHT, f"objectives=[{{loss: {loss}, on: labels}}]")
        assert found.startswith("objectives[0].on: labels given, but positions have no label in ")
    (found,) = faults(task, TAUGHT, "objectives=[{loss: logit_mse, centred: false, on: attended}]")
    assert found.startswith(f"objectives[0].on: attended given, but {recipe(task).task} counts labelled")


def test_numbers_in_the_validation_examples_are_matched_with_a_line_unless_the_recipe_orders_the_classes(
    file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    named = [{**row, "label": ("bad", "good")[i % 2]} for i, row in enumerate(TRAIN)]
    write(tmp_path, "train.jsonl", named)
    held = held_out_examples(recipe(file, "data.labels=[good, bad]"))
    assert held is not None and held.label_names == ("good", "bad") and not caplog.messages
    held = held_out_examples(recipe(file))
    assert held is not None and held.label_names == ("bad", "good")
    (line,) = caplog.messages
    assert line.startswith("valid.jsonl:1, column label: a number; ")
    assert line.endswith("classes of data.train are matched by their numbers; taken as: 0 = bad, 1 = good")
