"""Suites are for what a model does: of tokens, of classes, of numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, GPT2Config

from stlm_kd.errors import ModelError, UsageError
from stlm_kd.pipeline.scoring.evaluate import evaluate

BERT = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL = {**BERT, "intermediate_size": 8, "max_position_embeddings": 16}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, a model of numbers and a language model."""
    folder = tmp_path_factory.mktemp("models")
    for name, labels in (("classes", 2), ("numbers", 1)):
        config = BertConfig(**SMALL, num_labels=labels)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / name)
    config = GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "tokens")
    return folder


@pytest.mark.parametrize(
    ("model", "suite", "advice"),
    [
        ("classes", "masked-loss", "a bert classifier, which masked-loss does not score; use classification"),
        ("classes", "perplexity", "use classification"),
        ("classes", "lm-eval", "use classification"),
        ("classes", "regression", "use classification"),
        ("numbers", "classification", "a bert regression model, .* use regression"),
        (
            "tokens",
            "classification",
            "a gpt2 language model, which does no classification.* use perplexity",
        ),
        ("tokens", "regression", "trained for task: regression"),
    ],
)
def test_a_suite_that_is_not_for_a_model_is_refused_before_anything_is_read(
    model: str, suite: str, advice: str, models: Path
) -> None:
    with pytest.raises(ModelError, match=advice):
        evaluate(
            [str(models / model)],
            suites=[{"suite": suite}],
            data=["nowhere.txt"],
            text=None,
            label=None,
            trust_remote_code=False,
        )


@pytest.mark.parametrize(
    ("model", "suite", "given", "message"),
    [
        ("tokens", "glue", {"data": ["nowhere.txt"]}, "--data: nothing of glue reads held-out data"),
        ("tokens", "perplexity", {"data": ["nowhere.txt"], "text": ["a"]}, "--text: nothing of perplexity"),
        ("tokens", "lm-eval", {"label": "a"}, "--label: nothing of lm-eval reads labelled examples"),
        ("classes", "classification", {"teachers": ["t"]}, "--teacher: nothing of classification compares"),
    ],
)
def test_what_no_suite_would_read_is_refused(
    model: str, suite: str, given: dict[str, object], message: str, models: Path
) -> None:
    arguments: dict[str, object] = {"data": [], "text": None, "label": None, **given}
    with pytest.raises(UsageError, match=message):
        evaluate(
            [str(models / model)],
            suites=[{"suite": suite}],
            trust_remote_code=False,
            **arguments,
        )  # type: ignore[arg-type]
