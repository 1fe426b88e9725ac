"""Faults that make a number wrong or waste a training: each is reported where it is planted, nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import normalizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from stlm_kd.artifacts.integrity import refuse_changed
from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.artifacts.stage_store import Stages
from stlm_kd.data.labelled.examples import Examples, LabelledSource, draw_fraction, read_examples
from stlm_kd.data.sources.sources import Source, documents
from stlm_kd.eval import SUITES
from stlm_kd.eval.harness.choices import Choice, degenerate_choices
from stlm_kd.models.checkpoints import generation_config
from stlm_kd.models.checkpoints.reloading import check_reloaded
from stlm_kd.models.heads.classifiers import load_classifier
from stlm_kd.models.load import load_language_model, save_model
from stlm_kd.pipeline.builders.overlap import refuse_identical_files
from stlm_kd.pipeline.plan import plan
from stlm_kd.recipe import Recipe, load
from tests.slow.test_engine_resume import EVERY_STEP, PLAN, Rising, Worsening
from tests.support import fault_scores
from tests.support.engine_pico import Memory, PicoStep, pico_fit
from tests.support.fault_table import CASES, Place, case, told
from tests.support.planted import planted
from tests.support.tokenizer_kinds import TEXTS, byte_level, llama

assert fault_scores.CASES is CASES

# Scores


def scored(suite: str, head: float | None, is_planted: bool) -> SuiteResult:
    """A model of which all of the head's rows, or one where the value is not finite, have a value."""
    tokenizer = byte_level()
    model = llama(len(tokenizer))
    if is_planted and head is not None:
        with torch.no_grad():
            rows = slice(None) if np.isfinite(head) else slice(7, 8)
            model.lm_head.weight[rows] = head
    options: dict[str, Any] = {"tasks": ("sample_minimal_pairs",), "limit": 2} if suite == "lm-eval" else {}
    result = SUITES[suite](model, tokenizer, TEXTS[:40], **options)
    assert isinstance(result, SuiteResult)
    return result


for _suite in ("perplexity", "lm-eval"):
    for _what, _head, _words in (
        ("NaN head", float("nan"), "predictions that are not finite"),
        ("infinite head", float("inf"), "predictions that are not finite"),
        ("uniform head", 0.0, "gives every token the same probability"),
    ):
        case(f"{_suite}: {_what}", _words)(
            lambda is_planted, place, suite=_suite, head=_head: scored(suite, head, is_planted)
        )


@case("choices that all tie", "all choices tie")
def _ties(is_planted: bool, place: Place) -> object:
    other = Choice((0, 1), 2, (0,)) if is_planted else Choice((1,), 2, (0,))
    return degenerate_choices([Choice((0, 1), 2, (0,)), other, other])


@case("one choice in all examples", "takes choice 2 in all 300 examples")
def _one_choice(is_planted: bool, place: Place) -> object:
    return degenerate_choices(
        [Choice((1,) if is_planted else (index % 3,), 4, (index % 4,)) for index in range(300)]
    )


def classified(parts: dict[str, float]) -> SuiteResult:
    model, tokenizer = planted(parts)
    texts = tuple((word,) for word in ("good", "bad") * 20)
    labels = np.array([1, 0] * 20)
    examples = Examples(texts, labels, tuple(map(str, range(40))), ("negative", "positive"))
    result = SUITES["classification"](model, tokenizer, examples, context=8)
    assert isinstance(result, SuiteResult)
    return result


@case("one class for all examples", "predicts a single class for all 40 examples")
def _one_class(is_planted: bool, place: Place) -> object:
    return classified({"good": 2.0, "bad": 2.0 if is_planted else -2.0})


@case("a classifier whose logits are NaN", "not finite")
def _nan_class(is_planted: bool, place: Place) -> object:
    return classified({"good": float("nan") if is_planted else 2.0, "bad": -2.0})


# What a checkpoint brings along

WEIGHT = "model.layers.1.mlp.up_proj.weight"


def checkpoint(place: Place, change: Callable[[dict[str, torch.Tensor]], None] | None) -> Path:
    """A saved model, of which the weights may be changed."""
    tokenizer = byte_level()
    save_model(llama(len(tokenizer)), tokenizer, place.folder / "m")
    path = place.folder / "m" / "model.safetensors"
    if change is not None:
        weights = load_file(path)
        change(weights)
        path.unlink()
        save_file(weights, path, {"format": "pt"})
    return place.folder / "m"


def loaded(place: Place, is_planted: bool, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    load_language_model(str(checkpoint(place, change if is_planted else None)), "clm")


@case("a weight that is NaN", f"tensor {WEIGHT} has 1 values")
def _nan_weight(is_planted: bool, place: Place) -> object:
    return loaded(place, is_planted, lambda weights: weights[WEIGHT].__setitem__((3, 4), float("nan")))


@case("a weight that is infinite", f"tensor {WEIGHT} has 1 values")
def _infinite_weight(is_planted: bool, place: Place) -> object:
    return loaded(place, is_planted, lambda weights: weights[WEIGHT].__setitem__((3, 4), float("inf")))


@case("weights of integer type", f"tensor {WEIGHT} is of type")
def _integers(is_planted: bool, place: Place) -> object:
    return loaded(place, is_planted, lambda weights: weights.update({WEIGHT: weights[WEIGHT].int()}))


@case("a weight that is missing", "1 weights are missing")
def _missing_weight(is_planted: bool, place: Place) -> object:
    return loaded(place, is_planted, lambda weights: weights.__delitem__(WEIGHT))


@case("a weight of another shape", "of another shape than config.json says")
def _other_shape(is_planted: bool, place: Place) -> object:
    return loaded(place, is_planted, lambda weights: weights.update({WEIGHT: weights[WEIGHT][:5].clone()}))


@case("pickled weights", "only safetensors weights are read")
def _pickled(is_planted: bool, place: Place) -> object:
    folder = checkpoint(place, None)
    if is_planted:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    load_language_model(str(folder), "clm")
    return None


@case("generation settings that cannot be saved", "dropped temperature 0.5")
def _generation(is_planted: bool, place: Place) -> object:
    notes: list[str] = []
    place.patch.setattr(generation_config, "note", notes.append)
    folder = checkpoint(place, None)
    settings = {"do_sample": not is_planted, "temperature": 0.5}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    load_language_model(str(folder), "clm")
    return "".join(notes)


@case("classes in another order", "its classes are")
def _swapped(is_planted: bool, place: Place) -> object:
    names = ("negative", "positive")
    tokenizer = byte_level()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        id2label=dict(enumerate(reversed(names) if is_planted else names)),
        pad_token_id=0,
    )
    save_model(BertForSequenceClassification(config), tokenizer, place.folder / "c")
    load_classifier(str(place.folder / "c"), names, tokenizer=tokenizer)
    return None


# What is saved


class FoldsCaseOnceSaved(PreTrainedTokenizerFast):
    """Its files are not what it is in memory."""

    def save_pretrained(self, *args: Any, **options: Any) -> Any:
        own = self.backend_tokenizer.normalizer
        self.backend_tokenizer.normalizer = normalizers.Lowercase()
        try:
            return super().save_pretrained(*args, **options)
        finally:
            self.backend_tokenizer.normalizer = own


@case("a tokenizer that is not the same once loaded", "its tokenizer gives")
def _lossy(is_planted: bool, place: Place) -> object:
    tokenizer = byte_level()
    if is_planted:
        tokenizer.__class__ = FoldsCaseOnceSaved
    model = llama(len(tokenizer))
    save_model(model, tokenizer, place.folder / "m")
    check_reloaded(model, tokenizer, place.folder / "m", trust_remote_code=False)
    return None


@case("a model that is not the same once loaded", "it gives logits that differ")
def _not_saved(is_planted: bool, place: Place) -> object:
    tokenizer = byte_level()
    model = llama(len(tokenizer))
    save_model(model, tokenizer, place.folder / "m")
    if is_planted:
        with torch.no_grad():
            model.model.norm.weight[0] += 0.1
    check_reloaded(model, tokenizer, place.folder / "m", trust_remote_code=False)
    return None


@case("a finished model that was changed", "changed since this model was completed")
def _changed_stage(is_planted: bool, place: Place) -> object:
    stages = Stages(place.folder)
    made = stages.make("model", {"a": 1}, lambda folder: (folder / "report.json").write_text("{}") and None)
    if is_planted:
        (made / "report.json").write_text("{ }")
    refuse_changed(made)
    return None


# Data


def table(place: Place, name: str, text: str | bytes) -> Examples:
    path = place.folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_examples(LabelledSource(path=str(path)))


ROWS = "sentence,label\na,0\nb,1\n"


@case("a column named twice", "column sentence is named twice")
def _twice(is_planted: bool, place: Place) -> object:
    table(place, "a.csv", "sentence,label,sentence\na,0,c\nb,1,d\n" if is_planted else ROWS)
    return None


@case("an uneven row", "3 values found")
def _uneven(is_planted: bool, place: Place) -> object:
    table(place, "a.csv", ROWS + ("c,1,x\n" if is_planted else "c,1\n"))
    return None


@case("hidden labels", "which marks hidden labels of test sets")
def _hidden(is_planted: bool, place: Place) -> object:
    table(place, "a.csv", ROWS + ("c,-1\n" if is_planted else "c,1\n"))
    return None


@case("a label that is missing", "no label")
def _no_label(is_planted: bool, place: Place) -> object:
    table(place, "a.csv", ROWS + ("c,\n" if is_planted else "c,1\n"))
    return None


@case("text that is not UTF-8", "a.csv:4: not UTF-8")
def _latin(is_planted: bool, place: Place) -> object:
    table(place, "a.csv", ROWS.encode() + ("é,1\n".encode("latin-1" if is_planted else "utf-8")))
    return None


@case("a share that leaves a class empty", "leaves none of the 2 of class b")
def _share(is_planted: bool, place: Place) -> object:
    texts = tuple((str(i),) for i in range(102))
    labels = np.array([0] * 100 + [1] * 2)
    examples = Examples(texts, labels, tuple(map(str, range(102))), ("a", "b"))
    draw_fraction(examples, 0.1 if is_planted else 0.5, seed=0)
    return None


@case("a text without a word", "no text in it")
def _no_text(is_planted: bool, place: Place) -> object:
    (place.folder / "a.txt").write_text(" \n\n" if is_planted else "words\n")
    list(documents(Source(path=str(place.folder / "a.txt"))))
    return None


# Training


class NoNumber(PicoStep):
    """Its validation loss is NaN from the beginning."""

    def forward(self, batch: object, denominators: object) -> object:
        output = super().forward(batch, denominators)  # type: ignore[arg-type]
        if not self.training:
            output.sums["labels"] = output.sums["labels"] * float("nan")
        return output


class BecomesNaN(PicoStep):
    """Its training loss is NaN in its fourth step."""

    def forward(self, batch: object, denominators: object) -> object:
        output = super().forward(batch, denominators)  # type: ignore[arg-type]
        return replace(output, loss=output.loss * float("nan")) if self.forwards > 3 else output


@case("a training that only does harm", "kept step 0")
def _stale_best(is_planted: bool, place: Place) -> object:
    memory = Memory()
    pico_fit(Worsening() if is_planted else Rising(), place.folder, EVERY_STEP, tracker=memory)
    return "".join(memory.notes)


@case("a model without a finite loss", "validation before the first step: labels nan")
def _nan_at_once(is_planted: bool, place: Place) -> object:
    pico_fit(NoNumber() if is_planted else PicoStep(), place.folder, EVERY_STEP)
    return None


@case("a loss that becomes NaN", "not finite")
def _nan_later(is_planted: bool, place: Place) -> object:
    pico_fit(BecomesNaN() if is_planted else PicoStep(), place.folder, PLAN)
    return None


@case("a damaged checkpoint", "is damaged")
def _damaged(is_planted: bool, place: Place) -> object:
    pico_fit(PicoStep(), place.folder, PLAN)
    if is_planted:
        newest = max((place.folder / "checkpoints").glob("step-*"))
        (newest / "state.json").write_text("{}")
    memory = Memory()
    pico_fit(PicoStep(), place.folder, PLAN, tracker=memory)
    return "".join(memory.notes)


@case("the checkpoint of another training", "it was made by another recipe or version")
def _foreign(is_planted: bool, place: Place) -> object:
    pico_fit(PicoStep(), place.folder, PLAN)
    pico_fit(PicoStep(), place.folder, PLAN, fingerprint="other" if is_planted else "pico")
    return None


# Recipes

RECIPE = """
task: clm
student: {tokenizer: {train: bpe, size: 300}, preset: stlm-nano}
data: {train: a.txt, validation: v.txt}
objectives: [{loss: labels}]
train: {steps: 2}
"""


def checked(place: Place, *changes: str) -> None:
    place.patch.chdir(place.folder)
    place.patch.delenv("STLM_KD_DATA", raising=False)
    Path("a.txt").write_text("some text")
    Path("v.txt").write_text("other text")
    Path("mine.yaml").write_text(RECIPE)
    plan("mine.yaml", changes, name="mine.yaml").require()


@case("a variable that is not set", "$STLM_KD_DATA not set")
def _variable(is_planted: bool, place: Place) -> object:
    return checked(place, "data.train=$STLM_KD_DATA/a.txt" if is_planted else "data.train=a.txt")


@case("a file that is not there", "b.txt: no such file or folder")
def _no_file(is_planted: bool, place: Place) -> object:
    return checked(place, "data.train=b.txt" if is_planted else "data.train=a.txt")


@case("a benchmark without rows", "blimp: nyu-mll/blimp is neither reachable")
def _no_rows(is_planted: bool, place: Place) -> object:
    task = "blimp" if is_planted else "sample_minimal_pairs"
    return checked(place, f"eval=[{{suite: lm-eval, tasks: [{task}]}}]")


@case("a key that is misspelt", "did you mean steps?")
def _misspelt(is_planted: bool, place: Place) -> object:
    return checked(place, "train.stpes=3" if is_planted else "train.steps=3")


@case("the best is to be kept and nothing tells which it is", "validation")
def _no_validation(is_planted: bool, place: Place) -> object:
    changes = ("train.keep=best", "train.validate_every=1")
    return checked(place, *changes, "data={train: a.txt}" if is_planted else "data.context=64")


@case("validation data that are trained on", "is data.train[0] too")
def _overlap(is_planted: bool, place: Place) -> object:
    return checked(place, "data.validation=a.txt" if is_planted else "data.validation=v.txt")


@case("a training file under another name", "same content as the training file")
def _same_content(is_planted: bool, place: Place) -> object:
    checked(place)
    if is_planted:
        Path("v.txt").write_text(Path("a.txt").read_text())
    refuse_identical_files(load("mine.yaml"))
    return None


def taught(validation: str, copied: bool = False) -> Recipe:
    """A recipe whose teacher's teacher is trained on t.txt."""
    Path("t.txt").write_text("text of a teacher")
    Path("copy.txt").write_text("text of a teacher" if copied else "text of nobody...")
    Path("inner.yaml").write_text(RECIPE.replace("a.txt", "t.txt"))
    Path("outer.yaml").write_text(RECIPE + "teachers: [{name: deep, recipe: inner.yaml}]\n")
    changes = ("teachers=[{name: near, recipe: outer.yaml}]", f"data.validation={validation}")
    return load("mine.yaml", changes)


@case("validation data of a teacher's training", "t.txt is data.train[0] of the recipe of teacher deep")
def _of_teacher(is_planted: bool, place: Place) -> object:
    checked(place)
    taught("t.txt" if is_planted else "v.txt")
    return None


@case("a teacher's file under another name", "same content as the training file t.txt of teacher deep")
def _copy_of_teacher(is_planted: bool, place: Place) -> object:
    checked(place)
    return refuse_identical_files(taught("copy.txt", is_planted))


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", list(CASES))
def test_a_planted_fault_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, work = CASES[name]
    assert words in told(work, True, Place(tmp_path, monkeypatch))


@pytest.mark.parametrize("name", list(CASES))
def test_nothing_is_told_of_its_honest_twin(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, work = CASES[name]
    assert told(work, False, Place(tmp_path, monkeypatch)) == ""


def test_a_single_sentence_does_not_tell_whether_a_model_is_degenerate() -> None:
    assert {score.degenerate for score in fault_scores.entities({}, fault_scores.PASSAGES[:1]).scores} == {
        None
    }
