"""Masked language models by the command: teachers, adaptation, distillation, scores and what comes of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.models.load import load_language_model, save_model
from stlm_kd.pipeline.stage_keys import model_identity
from tests.support.road import built, distilled, done, stlm_kd, student, weights

BERT = (
    "{model_type: bert, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}"
)
DISTILBERT = "{model_type: distilbert, dim: 16, hidden_dim: 32, n_layers: 1, n_heads: 2}"
STILL = ("train.steps=1", "train.learning_rate=1e-30", "train.weight_decay=0", "train.validate_every=null")
"""A training that leaves the weights as they were."""


@pytest.fixture(scope="module")
def masked(road: Path) -> Path:
    """The run of the recipe ``masked``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(road)
        return (road / distilled("masked", output_dir=Path("runs-masked"))).resolve()


def results(run: Path) -> dict[str, Any]:
    found = json.loads((run / "results.json").read_text())
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def adapted(masked: Path) -> Path:
    """Where that run's adapted teacher is kept."""
    key = json.loads((student(masked) / "stage.json").read_text())["key"]
    (folder,) = (
        folder
        for folder in masked.parent.glob("stages/adapted-*")
        if model_identity(str(folder / "model"), trust_remote_code=False) == key["teachers"]["b"]
    )
    return folder


def kinds(names: set[str]) -> Counter[str]:
    return Counter(Path(name).parts[1].partition("-")[0] for name in names if name.endswith("stage.json"))


def test_the_table_names_the_masked_scores_and_which_way_they_point(masked: Path) -> None:
    rows = {row["name"]: row for row in results(masked)["rows"]}
    assert list(rows) == [
        "teacher b", "teacher b, adapted", "teacher d", "distilled student", "no-teacher",
    ]  # fmt: skip
    table = (masked / "table.txt").read_text()
    for label in ("pseudo_bits_per_byte ↓", "masked_loss ↓", "masked_accuracy ↑"):
        assert label in table
    assert "tokens, and losses per token, of" in table
    assert "windows, drawn at random" in table
    for row in rows.values():
        assert set(row["estimates"]) == {"pseudo_bits_per_byte", "masked_loss", "masked_accuracy"}
        for result in row["suites"]:
            assert [part["suite"] for part in result] == ["pseudo-perplexity", "masked-loss"]
    assert len(rows["distilled student"]["estimates"]["masked_loss"]["values"]) == 2


def test_remarks_compare_with_the_control_and_warn_of_each_weak_teacher_once(masked: Path) -> None:
    found = results(masked)
    bits = {row["name"]: row["estimates"]["pseudo_bits_per_byte"]["mean"] for row in found["rows"]}
    control = bits["no-teacher"]
    weak = [name for name in ("teacher b, adapted", "teacher d") if bits[name] >= control]
    warned = [line for line in found["remarks"] if line.startswith("warning: ")]
    assert [line.partition(" (")[0].removeprefix("warning: ") for line in warned] == weak
    assert found["remarks"][: len(weak)] == warned, "what is worth most stands first"
    assert sum("distilled student - no-teacher" in line for line in found["remarks"]) == 3


def test_the_report_of_an_adaptation_is_in_pseudo_bits(adapted: Path) -> None:
    report = json.loads((adapted / "report.json").read_text())
    assert report["task"] == "mlm"
    assert (report["old_vocabulary"], report["new_vocabulary"]) == (320, 300)
    assert sum(report["tokens_by_origin"].values()) == 300
    assert 0 < report["trained"] < report["initialised"]


def test_an_adapted_bert_keeps_its_body_and_transform_bit_for_bit_and_trains_its_bias(
    adapted: Path, place: Path
) -> None:
    before = load_file(place / "bert" / "model.safetensors")
    after = load_file(adapted / "model" / "model.safetensors")
    new = {name for name in after if after[name].shape != before[name].shape}
    assert new == {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}
    kept = after.keys() - new
    assert {name for name in kept if "transform" in name}
    assert all(torch.equal(after[name], before[name]) for name in kept)
    own, other = load_tokenizer("own-masked"), load_tokenizer("bert")
    shared = [(own.get_vocab()[t], other.get_vocab()[t]) for t in own.get_vocab() if t in other.get_vocab()]
    ours, theirs = (torch.tensor(ids) for ids in zip(*shared, strict=True))
    copied = before["cls.predictions.bias"][theirs]
    assert (after["cls.predictions.bias"][ours] - copied).abs().max() > 1e-4


@pytest.mark.parametrize("which", ["student", "no-teacher", "adapted"])
def test_models_load_with_transformers_alone_and_say_the_same(
    masked: Path, adapted: Path, which: str
) -> None:
    folder = (adapted if which == "adapted" else student(masked, which)) / "model"
    model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert len(tokenizer) == model.config.vocab_size == 300
    ids = tokenizer(f"The dog {tokenizer.mask_token} a cat.", return_tensors="pt")
    assert tokenizer.mask_token_id in ids["input_ids"]
    ours = load_language_model(str(folder), "mlm")
    with torch.no_grad():
        logits, expected = model(**ids).logits, ours(**ids).logits
    assert logits.shape[-1] == 300
    assert torch.equal(logits, expected)


def test_seeds_share_the_adapted_teacher_and_masks_differ(masked: Path) -> None:
    keys = [json.loads((student(masked, seed=seed) / "stage.json").read_text())["key"] for seed in (1, 2)]
    assert keys[0]["teachers"] == keys[1]["teachers"]
    assert keys[0]["masked_share"] == 0.15
    assert weights(masked, seed=1) != weights(masked, seed=2)


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("eval=[masked-loss]", {}),
        ("tracking=[tensorboard]", {}),
        ("eval[1].share=0.3", {"eval": 4}),
        ("objectives[1].temperature=3", {"model": 1, "eval": 2}),
        ("student.init_from.layers=last", {"model": 1, "eval": 2}),
        ("teachers[0].adapt.init=mean", {"adapted": 1, "model": 1, "eval": 4}),
        ("data.masked_share=0.3", {"adapted": 1, "model": 1, "eval": 4}),
        ("data.context=32", {"adapted": 1, "model": 1, "eval": 8}),  # the window of every row
    ],
)
def test_a_changed_word_rebuilds_only_what_depends_on_it(
    masked: Path, place: Path, change: str, expected: dict[str, int]
) -> None:
    before = built(masked.parent)
    distilled("masked", change, "seeds=[1]", "controls=[]", output_dir=Path("runs-masked"))
    after = built(masked.parent)
    assert {name: after[name] for name in before} == before
    assert kinds(set(after) - set(before)) == expected


def test_the_same_training_twice_gives_the_same_weights(place: Path, tmp_path: Path) -> None:
    runs = [distilled("filling", output_dir=tmp_path / name) for name in ("one", "two")]
    assert weights(runs[0]) == weights(runs[1])
    assert weights(distilled("filling", "data.masked_share=0.4", output_dir=tmp_path)) != weights(runs[0])


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_a_student_of_each_family_learns_from_fields(place: Path, tmp_path: Path, family: str) -> None:
    fields = DISTILBERT if family == "distilbert" else BERT.replace("bert", family)
    run = distilled("filling", f"student.architecture={fields}", "train.steps=12", output_dir=tmp_path)
    lines = [json.loads(line) for line in (student(run) / "metrics.jsonl").read_text().splitlines()]
    held = [line["losses"]["labels"] for line in lines if line["kind"] == "validation"]
    assert held[-1] < held[0]
    config = AutoModelForMaskedLM.from_pretrained(student(run) / "model").config
    assert (config.model_type, config.vocab_size) == (family, 300)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("every-other", [0, 2]),
        ("first", [0, 1]),
        ("last", [2, 3]),
        ("spread", [0, 3]),
        ("[1, 2, 3]", [1, 2, 3]),
    ],
)
def test_a_student_begins_as_the_chosen_layers_of_its_teacher(
    place: Path, tmp_path: Path, layers: str, expected: list[int]
) -> None:
    body = f"student={{tokenizer: bert, init_from: {{teacher: b, layers: {layers}}}}}"
    teachers = "teachers=[{name: b, model: bert}]"
    run = distilled(
        "masked", body, teachers, *STILL, "seeds=[1]", "controls=[]", "eval=[]", output_dir=tmp_path
    )
    ours, theirs = (
        load_file(folder / "model.safetensors") for folder in (student(run) / "model", place / "bert")
    )
    assert blocks(ours) == set(range(len(expected)))
    for name, value in ours.items():
        assert_same(value, theirs[of_teacher(name, expected)])


def assert_same(a: Tensor, b: Tensor) -> None:
    """But for what one still step changes."""
    assert torch.allclose(a, b, rtol=0, atol=1e-25)


def blocks(tensors: dict[str, Tensor]) -> set[int]:
    return {int(name.split(".")[3]) for name in tensors if name.startswith("bert.encoder.layer.")}


def of_teacher(name: str, layers: list[int]) -> str:
    parts = name.split(".")
    if name.startswith("bert.encoder.layer."):
        parts[3] = str(layers[int(parts[3])])
    return ".".join(parts)


def test_a_distilbert_student_of_an_adapted_bert(masked: Path, place: Path) -> None:
    changes = ("student.init_from.model_type=distilbert", "seeds=[1]", "controls=[]", "eval=[]")
    run = distilled("masked", *changes, output_dir=Path("runs-masked"))
    config = json.loads((student(run) / "model" / "config.json").read_text())
    assert (config["model_type"], config["n_layers"], config["vocab_size"]) == ("distilbert", 2, 300)


@pytest.fixture
def body(place: Path, tmp_path: Path) -> Path:
    """A BERT without its head, as ``BertModel`` saves itself."""
    bert = BertForMaskedLM.from_pretrained(place / "bert").bert
    save_model(bert, load_tokenizer("bert"), tmp_path / "body")
    return tmp_path / "body"


def test_a_headless_body_gets_a_new_head_and_no_report_of_transformers(
    body: Path, place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change = f"student={{tokenizer: bert, model: {body}, new_head: true}}"
    run = distilled("filling", change, *STILL, "seeds=[1, 2]", output_dir=tmp_path)
    assert "LOAD REPORT" not in capfd.readouterr().err
    one, two = (load_file(student(run, seed=seed) / "model" / "model.safetensors") for seed in (1, 2))
    original = load_file(body / "model.safetensors")
    for name, value in original.items():
        if not name.startswith("pooler."):
            assert_same(one[f"bert.{name}"], value)
            assert_same(two[f"bert.{name}"], value)
    head = "cls.predictions.transform.dense.weight"
    assert not torch.equal(one[head], two[head])


def test_adapt_teacher_takes_the_task_from_the_model(place: Path, tmp_path: Path) -> None:
    words = ["adapt-teacher", "bert", "--tokenizer", "own-masked", "--data", "train.txt"]
    words += ["--validation", "valid.txt", "teachers[0].adapt.tokens=2k", "data.context=64"]
    words += ["teachers[0].adapt.effective_batch=8"]
    result = stlm_kd(*words, "--output-dir", str(tmp_path))
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    assert "pseudo-bits per byte on the same held-out data" in result.stdout
    assert re.search(r"pseudo-bits per byte [\d.]+ with its own vocabulary", result.stderr)
    (file,) = tmp_path.glob("*/results.json")
    assert json.loads(file.read_text())["adaptations"]["bert"]["task"] == "mlm"


def test_a_run_is_scored_on_its_own_text_again(masked: Path, place: Path) -> None:
    asked = ["--suite", "{suite: pseudo-perplexity, tokens: 200}", "--suite", "masked-loss"]
    again = done("eval", str(masked), *asked)[str(masked)]
    recorded = results(masked)["rows"][3]["suites"][0]
    assert [part["scores"] for part in again] == [part["scores"] for part in recorded]


def test_a_masked_model_does_not_continue_a_prompt(masked: Path, place: Path) -> None:
    result = stlm_kd("generate", str(masked), "--prompt", "The dog")
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert "bert is a masked language model" in line and "--suite masked-loss" in line


def test_the_command_ends_with_what_to_try(masked: Path, place: Path) -> None:
    result = stlm_kd("distill", "-r", "masked.yaml", "--output-dir", "runs-masked")
    assert result.exit_code == 0
    words = result.stdout.splitlines()[-1].removeprefix("Try it: stlm-kd ").split()
    assert words == ["eval", f"runs-masked/{masked.name}", "--suite", "masked-loss"]
    assert stlm_kd(*words).exit_code == 0


def test_a_dry_run_says_what_is_masked(place: Path, tmp_path: Path) -> None:
    told = stlm_kd("distill", "-r", "masked.yaml", "--dry-run").stdout
    assert "mask 15% of the tokens\n" in told
    changed = stlm_kd("distill", "-r", "masked.yaml", "data.masked_share=0.3", "--dry-run").stdout
    assert "mask 30% of the tokens\n" in changed
    assert "mask " not in stlm_kd("distill", "-r", "plain.yaml", "--dry-run").stdout


def test_a_tokenizer_is_trained_for_its_task(place: Path, tmp_path: Path) -> None:
    change = f"student={{tokenizer: {{train: bpe, size: 300}}, architecture: {BERT}}}"
    run = distilled("filling", change, output_dir=tmp_path)
    trained = AutoTokenizer.from_pretrained(student(run) / "model")
    assert trained.mask_token is not None
    assert trained.get_vocab() == load_tokenizer("own-masked").get_vocab()
