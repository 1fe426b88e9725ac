"""What lm-eval gets of a model: log-probabilities against slow forwards, starts of prompts, broken models."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.data.tokenizers import document_ends
from stlm_kd.errors import MissingResourceError, ModelError
from stlm_kd.eval import SUITES
from stlm_kd.eval.harness.adapter import DocumentLM
from stlm_kd.eval.harness.task_rows import quiet
from stlm_kd.eval.language_modeling.perplexity import perplexity
from tests.support.tokenizer_kinds import KINDS, TEXTS, byte_level, end_in_template, llama, word_piece

MADE = {name: make() for name, make in KINDS.items()}
MODELS = {name: llama(len(tokenizer)) for name, tokenizer in MADE.items()}
words = st.lists(st.sampled_from(["the", "cat", "sat", "on", "mats", "!", "é", "B"]), min_size=1, max_size=6)


def request(*args: object) -> Any:
    return SimpleNamespace(args=args)


def adapter(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, precision: str = "fp32"
) -> DocumentLM:
    return DocumentLM(model, tokenizer, batch_size=3, precision=precision)


def slow(model: LlamaForCausalLM, ids: list[int], scored: int) -> float:
    """The log-probability of the last ids, in float64, one row."""
    wide = type(model)(model.config).double().eval()
    wide.load_state_dict({key: value.double() for key, value in model.state_dict().items()})
    with torch.no_grad():
        logits_TV = wide(torch.tensor([ids[:-1]])).logits[0]
    log_TV = logits_TV.log_softmax(-1)
    first = len(ids) - scored
    return float(sum(log_TV[place - 1, ids[place]] for place in range(first, len(ids))))


@pytest.mark.parametrize("kind", KINDS)
@given(pairs=st.lists(st.tuples(st.one_of(st.just([]), words), words), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_a_log_likelihood_is_that_of_a_document_that_begins_so(
    kind: str, pairs: list[tuple[list[str], list[str]]]
) -> None:
    tokenizer, model = MADE[kind], MODELS[kind]
    texts = [(" ".join(context), (" " if context else "") + " ".join(rest)) for context, rest in pairs]
    found = adapter(model, tokenizer).loglikelihood([request(*pair) for pair in texts])
    start, _ = document_ends(tokenizer)
    for (context, rest), (value, _) in zip(texts, found, strict=True):
        before, whole = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, context + rest)
        )
        assert value == pytest.approx(slow(model, [start, *whole], len(whole) - len(before)), rel=1e-4)


def nats_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str) -> float:
    nats = perplexity(model, tokenizer, [text]).report["nats"]
    assert isinstance(nats, float)
    return nats


@pytest.mark.parametrize("kind", KINDS)
def test_lm_eval_and_perplexity_agree_on_a_document(kind: str) -> None:
    tokenizer, model = MADE[kind], MODELS[kind]
    text = TEXTS[5]
    nats = nats_of(model, tokenizer, text)
    ((value, _),) = adapter(model, tokenizer).loglikelihood([request("", text)])
    (rolling,) = adapter(model, tokenizer).loglikelihood_rolling([request(text)])
    assert value == pytest.approx(-nats, rel=1e-6) == rolling


def test_answers_of_one_token_are_told_apart_where_a_template_ends_documents() -> None:
    tokenizer = end_in_template()
    model = llama(len(tokenizer))
    asked = [request("the cat", answer) for answer in (" sat", " ran", " on", " and")]
    values = [value for value, _ in adapter(model, tokenizer).loglikelihood(asked)]
    assert len(set(values)) == 4
    plain = [value for value, _ in adapter(model, byte_level()).loglikelihood(asked)]
    assert values == plain


def test_a_prompt_that_is_too_long_loses_its_beginning_and_a_long_answer_is_read_in_windows() -> None:
    tokenizer = byte_level()
    model = llama(len(tokenizer), positions=16)
    text = " ".join(TEXTS[:3])
    before, whole = (
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, text + " good")
    )
    scored = len(whole) - len(before)
    assert scored == 1
    ((value, _),) = adapter(model, tokenizer).loglikelihood([request(text, " good")])
    assert value == pytest.approx(slow(model, whole[-17:], scored), rel=1e-4)
    ((long, _),) = adapter(model, tokenizer).loglikelihood([request("", text)])
    assert long == pytest.approx(-nats_of(model, tokenizer, text), rel=1e-6)


def test_an_answer_without_a_token_is_refused_by_name() -> None:
    tokenizer = word_piece()
    with pytest.raises(ModelError, match=r"this llama model has no token for the answer ' \\n'"):
        adapter(llama(len(tokenizer)), tokenizer).loglikelihood([request("the cat", " \n")])


def test_log_likelihoods_under_bf16_are_no_multiples_of_its_steps() -> None:
    tokenizer = byte_level()
    asked = [request("", text) for text in TEXTS[:20]]
    values = [value for value, _ in adapter(MODELS["byte-level"], tokenizer, "bf16").loglikelihood(asked)]
    exact = [value for value, _ in adapter(MODELS["byte-level"], tokenizer).loglikelihood(asked)]
    assert values == pytest.approx(exact, rel=0.05) and values != exact
    rounded = torch.tensor(values).bfloat16().float().tolist()
    assert sum(a == b for a, b in zip(values, rounded, strict=True)) <= 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("suite", ["lm-eval", "perplexity"])
def test_a_model_with_weights_that_are_not_finite_is_refused_by_name(suite: str, bad: float) -> None:
    tokenizer = byte_level()
    model = llama(len(tokenizer))
    model.config.name_or_path = model.name_or_path = "broken-student"
    with torch.no_grad():
        model.lm_head.weight[7] = bad
    options: dict[str, object] = (
        {"tasks": ("sample_minimal_pairs",), "limit": 2} if suite == "lm-eval" else {}
    )
    with pytest.raises(ModelError, match=rf"{suite}: broken-student gives predictions that are not finite"):
        SUITES[suite](model, tokenizer, TEXTS, **options)


@pytest.mark.parametrize("suite", ["lm-eval", "perplexity"])
def test_a_uniform_model_is_said_to_be_degenerate_and_an_honest_one_is_not(suite: str) -> None:
    tokenizer = byte_level()
    honest, uniform = llama(len(tokenizer)), llama(len(tokenizer))
    torch.nn.init.zeros_(uniform.lm_head.weight)
    options: dict[str, object] = (
        {"tasks": ("sample_minimal_pairs",), "limit": 2} if suite == "lm-eval" else {}
    )
    for model, expected in (
        (honest, {None}),
        (uniform, {"degenerate: gives every token the same probability"}),
    ):
        result = SUITES[suite](model, tokenizer, TEXTS, **options)
        assert {score.degenerate for score in result.scores} == expected


def test_a_text_of_a_single_kind_of_token_does_not_tell_whether_a_model_is_uniform() -> None:
    tokenizer = byte_level()
    honest, uniform = llama(len(tokenizer)), llama(len(tokenizer))
    torch.nn.init.zeros_(uniform.lm_head.weight)
    for model, texts in ((honest, ["a"]), (uniform, ["a", "a"])):
        assert {score.degenerate for score in perplexity(model, tokenizer, texts).scores} == {None}
    wrapped = adapter(uniform, tokenizer)
    for texts, expected in ((["a"], False), (["a", "b"], True), (["a"], True)):
        wrapped.loglikelihood([request("", text) for text in texts])
        assert wrapped.predicts_uniformly is expected


def test_generation_reads_prompts_from_the_start_token_or_refuses_the_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = end_in_template()
    wrapped = adapter(llama(len(tokenizer)), tokenizer)
    ids_BT, mask_BT = wrapped.tok_batch_encode(["the cat", "a"])
    assert ids_BT[0].tolist() == [0, *tokenizer("the cat", add_special_tokens=False)["input_ids"]]
    assert (ids_BT * mask_BT).tolist()[1][-2:] == [0, *tokenizer("a", add_special_tokens=False)["input_ids"]]
    asked = [request("the cat", {"until": ["."], "max_gen_toks": 4})]
    assert len(wrapped.generate_until(asked, disable_tqdm=True)) == 1
    monkeypatch.setattr(HFLM, "generate_until", lambda self, requests, disable_tqdm: ["text"])
    with pytest.raises(MissingResourceError, match="generation no longer encodes prompts"):
        wrapped.generate_until(asked)


def test_lines_stay_whole_while_bars_are_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        print("still scoring", file=sys.stderr)
        for _ in tqdm(range(3), file=sys.stderr):
            pass
        print("done", file=sys.stderr)
    assert capfd.readouterr().err == "still scoring\ndone\n"
