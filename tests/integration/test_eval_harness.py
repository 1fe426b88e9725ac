"""lm-eval on a model in memory: its scores against sums of log-probabilities, and that it leaves no trace."""

import copy
import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.data.synthetic import PHENOMENA, minimal_pairs
from stlm_kd.eval import SUITES

LIMIT = 6


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, after eos."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate(["<eos>", *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", model_max_length=128)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def result(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> SuiteResult:
    return SUITES["lm-eval"](model, tokenizer, [], tasks=("sample_minimal_pairs",), limit=LIMIT)


def log_probability(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str) -> float:
    """Summed over the tokens of the text, read after the end-of-text token, one sentence at a time."""
    ids = torch.tensor([[0, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        logits_TV = model(ids[:, :-1]).logits[0]
    return float(logits_TV.log_softmax(-1)[torch.arange(len(ids[0]) - 1), ids[0, 1:]].sum())


def test_a_task_is_known_by_the_texts_that_it_asks_about(result: SuiteResult) -> None:
    own = result.report["requests"]
    assert isinstance(own, dict) and len(set(own.values())) == len(own) == 1 + len(PHENOMENA)
    pairs = minimal_pairs(LIMIT, phenomena=("anaphor_agreement",))
    asked = [json.dumps([["", pair.good], ["", pair.bad]]) for pair in pairs]
    by_hand = hashlib.sha256(json.dumps([[*enumerate(asked)]]).encode()).hexdigest()
    assert own["sample_anaphor_agreement"] == by_hand


def test_a_pair_is_right_where_the_good_sentence_is_the_likelier(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, result: SuiteResult
) -> None:
    right: dict[tuple[str, str], float] = {}
    for phenomenon in PHENOMENA:
        for index, pair in enumerate(minimal_pairs(LIMIT, phenomena=(phenomenon,))):
            good, bad = (log_probability(model, tokenizer, text) for text in (pair.good, pair.bad))
            right[f"sample_{phenomenon}", str(index)] = float(good > bad)
    assert {(row.task, row.id): row.value for row in result.examples} == right
    mean = sum(right.values()) / len(right)
    assert 0 < mean < 1
    assert result.score("sample_minimal_pairs", "acc").value == pytest.approx(mean)


def test_scores_have_their_errors_choices_and_chance(result: SuiteResult) -> None:
    whole = result.score("sample_minimal_pairs", "acc")
    assert (whole.choices, whole.chance, whole.examples, whole.part_of) == (
        2,
        0.5,
        LIMIT * len(PHENOMENA),
        None,
    )
    assert whole.stderr is not None and 0 < whole.stderr < 0.2
    part = result.score("sample_anaphor_agreement", "acc")
    assert (part.part_of, part.examples) == ("sample_minimal_pairs", LIMIT)
    values = [row.value for row in result.examples if row.task == part.task]
    assert part.stderr == pytest.approx(np.std(values, ddof=1) / LIMIT**0.5)


def test_the_report_is_in_the_layout_of_lm_eval_and_says_where_the_rows_are_from(result: SuiteResult) -> None:
    report = json.loads(json.dumps(result.report))
    assert {"results", "groups", "configs", "versions", "n-shot", "n-samples", "config"} <= report.keys()
    assert report["results"]["sample_minimal_pairs"]["acc,none"] == result.scores[0].value
    assert report["n-samples"]["sample_anaphor_agreement"] == {"original": 200, "effective": LIMIT}
    assert report["sources"] == {"sample_minimal_pairs": "generated"}
    assert any("synthetic" in note for note in result.notes)
    assert any(f"first {LIMIT} examples" in note for note in result.notes)


def test_a_second_run_says_the_same_and_leaves_no_trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    result: SuiteResult,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model.train()
    own = copy.deepcopy(tokenizer)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    again = SUITES["lm-eval"](model, own, [], tasks=("sample_minimal_pairs",), limit=LIMIT)
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert model.training
    assert (own.pad_token, own.model_max_length, len(own)) == (None, 128, len(tokenizer))
    assert after == before
    assert capsys.readouterr() == ("", "")
    assert (again.scores, again.examples, again.report) == (result.scores, result.examples, result.report)


def test_bf16_runs_and_hardly_differs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, result: SuiteResult
) -> None:
    rounded = SUITES["lm-eval"](
        model, tokenizer, [], tasks=("sample_minimal_pairs",), limit=LIMIT, precision="bf16"
    )
    values = [[row.value for row in one.examples] for one in (result, rounded)]
    assert sum(a != b for a, b in zip(*values, strict=True)) <= 6


def test_the_five_tasks_run_on_a_real_model(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    from stlm_kd.data.tokenizers import load_tokenizer

    monkeypatch.setenv("STLM_KD_DATA", str(shared_data))
    place = str(shared_data / "models" / "stories260K")
    stories, tokenizer = AutoModelForCausalLM.from_pretrained(place), load_tokenizer(place)
    result = SUITES["lm-eval"](stories, tokenizer, [], tasks=("stlm",), limit=2, source="local")
    asked_for = [score.task for score in result.scores if score.part_of is None]
    assert list(dict.fromkeys(asked_for)) == ["blimp", "hellaswag", "arc_easy", "winogrande", "mmlu"]
    assert result.score("blimp", "acc").examples == 67 * 2
    assert result.score("mmlu", "acc").examples == 57 * 2
    assert result.score("blimp_anaphor_gender_agreement", "acc").part_of == "blimp"
    assert result.score("mmlu_anatomy", "acc").part_of == "mmlu_stem"
    for task, chance in (("blimp", 0.5), ("hellaswag", 0.25), ("winogrande", 0.5), ("mmlu", 0.25)):
        assert result.score(task, "acc").chance == pytest.approx(chance)
    assert result.report["sources"] == dict.fromkeys(asked_for, "local")
