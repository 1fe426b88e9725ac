"""What a cache of a teacher's outputs is found by: all of its key, and nothing that changes no output."""

from __future__ import annotations

from pathlib import Path

import pytest

from stlm_kd.artifacts.stage_store import Key
from stlm_kd.pipeline.context import RecipeSetup, RunContext
from stlm_kd.pipeline.stage_keys import cache_key
from stlm_kd.pipeline.stages.teacher_cache import CacheJob
from stlm_kd.recipe import load

TEXT = """
task: clm
student: {tokenizer: some/tokenizer, preset: stlm-nano}
teachers: [{name: a, model: some/model, cache: {preset: small}}]
data: {train: a.txt, context: 64}
objectives: [{loss: forward_kl}]
train: {steps: 10}
"""
MASKED = TEXT.replace("clm", "mlm").replace("preset: stlm-nano", "architecture: {model_type: bert}")
CLASSES = """
task: classification
student: {tokenizer: some/tokenizer, architecture: {model_type: bert}}
teachers: [{name: a, model: some/model, cache: {}}]
data: {train: a.jsonl, context: 24, fraction: 0.5}
objectives: [{loss: forward_kl}]
train: {steps: 10}
"""
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "task": (TEXT, ("task=mlm", "student={tokenizer: some/tokenizer, architecture: {model_type: bert}}")),
    "text": (TEXT, ("data.train=b.txt",)),
    "context": (TEXT, ("data.context=32",)),
    "masked_share": (MASKED, ("data.masked_share=0.3",)),
    "variants": (MASKED, ("teachers[0].cache.variants=2",)),
    "temperature": (TEXT, ("objectives[0].temperature=2",)),
    "positions": (TEXT, ("objectives[0].on=attended",)),
    "top": (TEXT, ("teachers[0].cache.top=3",)),
    "draws": (TEXT, ("teachers[0].cache.draws=3",)),
    "states": (TEXT, ("teachers[0].cache.states=[last]",)),
    "precision": (TEXT, ("train.precision=bf16",)),
    "weights": (TEXT, ("teachers[0].precision=bf16",)),
}
"""By part of the key, a recipe and a change of it that changes what a cache holds."""


def key_of(text: str, *overrides: str, model: str = "m", tokenizer: str = "t", seed: int = 1) -> Key:
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    recipe = load("recipe.yaml", overrides)
    setup = RecipeSetup(recipe, tokenizer, RunContext(Path("runs")))  # type: ignore[arg-type]  # only identified
    return cache_key(CacheJob.of(setup, recipe.teachers[0], model, seed))


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder with the data, where models and tokenizers are identified by name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stlm_kd.pipeline.stage_keys.model_identity", lambda name, **_: name)
    monkeypatch.setattr("stlm_kd.pipeline.stage_keys.tokenizer_identity", lambda name: name)
    for name in ("a.txt", "b.txt"):
        Path(name).write_text(f"Text of {name}.\n", encoding="utf-8")
    rows = [f'{{"text": "text {i}", "label": "{i % 2}"}}' for i in range(8)]
    Path("a.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_key_follows_its_field(part: str) -> None:
    text, overrides = PARTS[part]
    assert key_of(text)[part] != key_of(text, *overrides)[part]


def test_every_part_of_the_key_is_looked_at() -> None:
    assert key_of(TEXT).keys() == {*PARTS, "teacher", "tokenizer", "seed"}
    assert key_of(TEXT, model="other")["teacher"] != key_of(TEXT)["teacher"]
    assert key_of(TEXT, tokenizer="other")["tokenizer"] != key_of(TEXT)["tokenizer"]


def test_the_seed_counts_where_it_draws_the_examples() -> None:
    assert key_of(CLASSES, seed=2)["seed"] != key_of(CLASSES)["seed"]
    assert key_of(CLASSES, "data.fraction=1", seed=2) == key_of(CLASSES, "data.fraction=1")
    assert key_of(TEXT, seed=2) == key_of(TEXT)


@pytest.mark.parametrize(
    "change",
    [
        "train.learning_rate=0.1",
        "train.effective_batch=6",
        "train.steps=7",
        "seeds=[4]",
        "data.validation=b.txt",
    ],
)
def test_what_changes_no_output_leaves_the_key(change: str) -> None:
    assert key_of(TEXT, change) == key_of(TEXT)
