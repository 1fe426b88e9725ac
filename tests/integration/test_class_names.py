"""Names of classes: a teacher that names them otherwise is refused, matched with a note, or mapped."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.errors import ModelError
from stlm_kd.models.heads.class_names import check_classes, class_order
from stlm_kd.models.heads.classifiers import class_names, load_classifier, rename_classes, set_labels
from stlm_kd.models.load import save_model
from tests.support.classes import BERT, ROBERTA, build, model_folder
from tests.support.road import distilled, stlm_kd, student

GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}
DISTILBERT = {"model_type": "distilbert", "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
THREE = ("low", "middle", "high")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    build(folder)
    return folder


@pytest.fixture
def at_home(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(world)
    yield world


@pytest.mark.parametrize(
    ("own", "labels", "message"),
    [
        (
            ("POS", "NEG"),
            ("negative", "positive"),
            "its classes are POS, NEG, but those of the data are negative",
        ),
        (("entailment", "other"), ("entailment", "neutral"), "expected the same names"),
        (("1 star", "2 stars"), ("1", "2"), "expected the same names"),
        (("positive", "negative"), ("negative", "positive"), "in this order, but those of the data are"),
        (("LABEL_1", "LABEL_0"), ("negative", "positive"), "expected the same names"),
        (("a", "b", "c"), ("a", "b"), r"head is for 3 classes \(a, b, c\), but the data has 2"),
    ],
)
def test_other_classes_are_refused_with_both_lists(
    own: tuple[str, ...], labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ModelError, match=rf"some/model: .*{message}"):
        check_classes("some/model", own, labels)


@pytest.mark.parametrize(
    ("own", "labels"),
    [
        (("negative", "positive"), ("negative", "positive")),
        (("Not_Equivalent", "EQUIVALENT"), ("not equivalent", "equivalent")),
        (("LABEL_0", "LABEL_1"), ("0", "1")),
        (("LABEL_0",), ()),
    ],
)
def test_the_same_classes_pass_without_a_note(
    own: tuple[str, ...], labels: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "stlm_kd"):
        check_classes("same/model", own, labels)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("own", "labels", "taken"),
    [
        (("LABEL_0", "LABEL_1"), ("negative", "positive"), "LABEL_0 = negative, LABEL_1 = positive"),
        (("negative", "positive"), ("0", "1"), "negative = 0, positive = 1"),
    ],
)
def test_numbers_are_taken_for_names_with_a_line_that_says_so(
    own: tuple[str, ...], labels: tuple[str, ...], taken: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "stlm_kd"):
        check_classes("unnamed/model", own, labels)
    (line,) = caplog.messages
    assert line.startswith("unnamed/model: ") and line.endswith(f"taken as: {taken}")


@given(names=st.lists(st.text("abc", min_size=1), min_size=2, max_size=5, unique=True), data=st.data())
def test_an_order_leads_from_each_class_of_the_data_to_the_one_that_is_mapped_to_it(
    names: list[str], data: st.DataObject
) -> None:
    own, labels = (data.draw(st.permutations(names)) for _ in range(2))
    mapped = dict(zip(data.draw(st.permutations(own)), labels, strict=True))
    order = class_order("m", own, labels, mapped)
    assert [mapped[own[place]] for place in order] == [*labels]


@pytest.mark.parametrize(
    "classes",
    [
        {"POS": "positive"},
        {"POS": "positive", "NEG": "positive"},
        {"POS": "positive", "NEGATIVE": "negative"},
    ],
)
def test_a_mapping_that_leaves_a_class_out_is_refused_with_both_lists(classes: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=r"\(POS, NEG\) with a different .* \(negative, positive\)"):
        class_order("m", ("POS", "NEG"), ("negative", "positive"), classes)


@pytest.mark.parametrize("fields", [BERT, ROBERTA, DISTILBERT, GPT2], ids=lambda one: one["model_type"])
def test_a_renamed_classifier_gives_the_same_logits_in_the_other_order(
    fields: dict[str, int | float | str | bool], world: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(world / "own"))
    model_folder(tmp_path / "m", fields, tokenizer, labels=THREE)
    models = [load_classifier(str(tmp_path / "m"), None, tokenizer=tokenizer) for _ in range(2)]
    rename_classes(models[1], (2, 0, 1), ("c", "a", "b"), name="m")
    ids = torch.tensor([[5, 9, 40, 7]])
    before, after = (model(ids).logits for model in models)
    assert torch.allclose(after, before[:, [2, 0, 1]], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(after, before, rtol=0.01)
    assert class_names(models[1].config) == ("c", "a", "b")


@pytest.fixture(scope="module")
def flipped(world: Path) -> Path:
    """The teacher ``bert`` with its classes in the other order, under other names."""
    tokenizer = load_tokenizer(str(world / "own"))
    model = load_classifier(str(world / "bert"), None, tokenizer=tokenizer)
    rename_classes(model, (1, 0), ("positive", "negative"), name="bert")
    set_labels(model.config, ("POS", "NEG"))
    save_model(model, tokenizer, world / "flipped")
    return world / "flipped"


def taught(teacher: str) -> str:
    return f"teachers=[{{name: t, {teacher}}}]"


def test_a_mapped_teacher_teaches_what_the_same_teacher_with_the_datas_names_does(
    at_home: Path, flipped: Path, tmp_path: Path
) -> None:
    mapped = "model: flipped, classes: {POS: positive, NEG: negative}"
    plain = distilled("other-reader", taught("model: bert"), output_dir=tmp_path / "a")
    other = distilled("other-reader", taught(mapped), output_dir=tmp_path / "b")
    ours, theirs = (load_file(student(run) / "model/model.safetensors") for run in (plain, other))
    for name, weight in ours.items():
        assert torch.allclose(weight, theirs[name], rtol=1e-4, atol=1e-6), name
    rows = [json.loads((run / "results.json").read_text())["rows"] for run in (plain, other)]
    assert [row["name"] for row in rows[1]] == ["teacher t", "distilled student"]
    estimates = [found[0]["estimates"] for found in rows]
    accuracies = [[one[label]["mean"] for label in one if "accuracy" in label] for one in estimates]
    assert accuracies[0] == accuracies[1] != []


@pytest.mark.parametrize("more", ["", ", cache: auto", ", adapt: {tokens: 1k}"])
def test_a_teacher_of_other_classes_is_refused_before_anything_is_trained(
    more: str, at_home: Path, flipped: Path, tmp_path: Path
) -> None:
    words = ("distill", "-r", "other-reader.yaml", taught(f"model: flipped{more}"))
    found = stlm_kd(*words, "--output-dir", str(tmp_path))
    assert found.exit_code == 3, found.output
    assert (
        "teachers[0] (t): flipped: its classes are POS, NEG, but those of the data are negative"
        in found.stderr
    )
    assert not [*tmp_path.rglob("metrics.jsonl")]


def test_a_teacher_that_its_recipe_trains_on_other_classes_is_refused_before_it_is_trained(
    at_home: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (at_home / "train.jsonl").read_text().splitlines()]
    renamed = [{**row, "label": {"negative": "bad", "positive": "good"}[row["label"]]} for row in rows]
    (at_home / "bad-good.jsonl").write_text("\n".join(map(json.dumps, renamed)))
    recipe = (at_home / "teacher.yaml").read_text()
    data = "data: {train: bad-good.jsonl, validation: valid.jsonl, labels: [bad, good], context: 32}"
    lines = [data if line.startswith("data:") else line for line in recipe.splitlines()]
    (at_home / "other-teacher.yaml").write_text(
        "\n".join(lines).replace("valid.jsonl", "held-bad-good.jsonl")
    )
    (at_home / "held-bad-good.jsonl").write_text("\n".join(map(json.dumps, renamed[:50])))
    words = ("distill", "-r", "whole.yaml", taught("recipe: other-teacher.yaml"))
    found = stlm_kd(*words, "--output-dir", str(tmp_path))
    assert found.exit_code == 3, found.output
    assert "its classes are bad, good, but those of the data are negative, positive" in found.stderr
    assert not [*tmp_path.rglob("metrics.jsonl")]


def test_agreement_and_eval_refuse_other_classes(at_home: Path, flipped: Path) -> None:
    found = stlm_kd("agreement", "bert", "flipped", "--data", "valid.jsonl")
    assert found.exit_code == 1 and "cannot be compared: their classes are POS, NEG and" in found.stderr
    found = stlm_kd("eval", "flipped", "--suite", "classification", "--data", "valid.jsonl")
    assert found.exit_code == 1 and "is not one of the classes; known: NEG, POS" in found.stderr


def test_eval_says_which_classes_the_numbers_of_the_data_are_taken_for(
    at_home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [json.loads(line) for line in (at_home / "valid.jsonl").read_text().splitlines()[:20]]
    numbered = [{**row, "label": ["negative", "positive"].index(row["label"])} for row in rows]
    (tmp_path / "v.jsonl").write_text("\n".join(map(json.dumps, numbered)))
    words = ("eval", "bert", "--suite", "classification", "--data")
    found = stlm_kd(*words, str(tmp_path / "v.jsonl"))
    assert found.exit_code == 0, found.output
    assert stlm_kd(*words, "valid.jsonl").exit_code == 0
    (line,) = caplog.messages
    assert "v.jsonl:1, column label: a number; numbers here and the classes of bert are matched" in line
    assert line.endswith("taken as: 0 = negative, 1 = positive")
