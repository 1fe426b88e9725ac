"""A model with another vocabulary: what changes, what stays, and that plain transformers loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.adaptation import new_rows
from stlm_kd.errors import ModelError
from stlm_kd.models.vocabulary import freeze_body, is_tied, replace_vocabulary, vocabulary_parameters
from tests.pico import FAMILIES, pico_model
from tests.vocab_pico import REAL, byte_level, real_tokenizer, sentencepiece_bpe, word_piece


def adapt(
    model: PreTrainedModel,
    old: PreTrainedTokenizerFast,
    new: PreTrainedTokenizerFast,
    init: str = "subword-mean",
) -> None:
    rows = new_rows(model, old, new, init, seed=0)
    replace_vocabulary(model, rows.embedding, rows.head, rows.head_bias, tokenizer=new)


def check_reload(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    tied = is_tied(model)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert is_tied(loaded) == tied == loaded.config.tie_word_embeddings
    again = PreTrainedTokenizerFast.from_pretrained(folder)  # AutoTokenizer rebuilds it for a qwen2 model
    assert again.get_vocab() == tokenizer.get_vocab()
    ids = torch.tensor([again("the other cat sat on the mat")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(input_ids=ids).logits, model(input_ids=ids).logits)
    assert loaded.config.vocab_size == len(tokenizer)
    for config in (loaded.config, loaded.generation_config):
        assert config.bos_token_id == tokenizer.bos_token_id
        assert config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_another_vocabulary_is_reloaded_whole(family: str, tied: bool, tmp_path: Path) -> None:
    old, new = sentencepiece_bpe(), byte_level()
    model = pico_model(family, vocabulary=len(old) + 7, tied=tied)
    adapt(model, old, new)
    check_reload(model, new, tmp_path)


@pytest.mark.parametrize(
    ("family", "tied", "teacher", "student"),
    [
        ("gpt2", True, "gpt2", "llama-2"),
        ("gpt2", False, "gpt2", "bert-base-cased"),
        ("llama", True, "llama-2", "gpt2"),
        ("llama", False, "llama-2", "bert-base-uncased"),
        ("qwen2", True, "qwen2", "phi-3-mini"),
        ("qwen2", False, "qwen2", "stories260K"),
    ],
)
def test_a_model_with_another_real_vocabulary_is_reloaded_whole(
    family: str, tied: bool, teacher: str, student: str, shared_data: Path, tmp_path: Path
) -> None:
    old, new = real_tokenizer(shared_data, teacher), real_tokenizer(shared_data, student)
    model = pico_model(family, vocabulary=len(old) + 3, width=8, layers=1, tied=tied)
    adapt(model, old, new)
    check_reload(model, new, tmp_path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_embedding_and_head_change_and_only_they_learn(family: str, tied: bool) -> None:
    old, new = byte_level(), word_piece()
    model = pico_model(family, vocabulary=len(old), tied=tied)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapt(model, old, new)
    freeze_body(model)
    vocabulary = {
        "transformer.wte.weight" if family == "gpt2" else "model.embed_tokens.weight",
        "lm_head.weight",
    }
    assert {name for name, p in model.named_parameters() if p.requires_grad} == (
        vocabulary - {"lm_head.weight"} if tied else vocabulary
    )
    same = {name for name, v in model.state_dict().items() if torch.equal(v, before[name])}
    assert same == set(before) - vocabulary
    assert [p.shape[0] for p in vocabulary_parameters(model)] == [len(new)] * (1 if tied else 2)
    ids = torch.tensor([[5, 6, 7, 8]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} <= vocabulary
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vocabulary_parameters(model))


def test_padding_has_an_id_of_its_own_in_the_configuration_or_none() -> None:
    old, new = byte_level(), word_piece()
    model = pico_model(vocabulary=len(old))
    adapt(model, old, new)
    assert (model.config.pad_token_id, model.generation_config.pad_token_id) == (0, 0)
    new.pad_token = new.sep_token = new.eos_token = "[SEP]"
    model = pico_model(vocabulary=len(old))
    adapt(model, old, new)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (None, 3)
    assert model.generation_config.pad_token_id == 3


def test_generation_goes_on_in_the_new_vocabulary() -> None:
    old, new = byte_level(), sentencepiece_bpe()
    model = pico_model(vocabulary=len(old))
    model.generation_config.suppress_tokens = [1, 2]
    model.generation_config.forced_eos_token_id = 300
    adapt(model, old, new)
    assert model.generation_config.suppress_tokens is None
    assert model.generation_config.forced_eos_token_id is None
    ids = torch.tensor([new("the cat")["input_ids"]])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert written.max() < len(new)


def test_a_scaled_embedding_is_refused() -> None:
    class Scaled(nn.Embedding):
        pass

    tokenizer = byte_level()
    model = pico_model(vocabulary=len(tokenizer))
    model.set_input_embeddings(Scaled(len(tokenizer), 16))
    with pytest.raises(ModelError, match="found Scaled and Linear; expected Embedding and Linear"):
        new_rows(model, tokenizer, tokenizer, "mean", seed=0)


def test_a_real_model_reads_a_story_best_after_subword_mean(shared_data: Path) -> None:
    """Nats of a story in the style that stories260K was trained on, in GPT-2's tokens, right after each."""
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    teacher = shared_data / REAL["stories260K"]
    old, new = real_tokenizer(shared_data, "stories260K"), real_tokenizer(shared_data, "gpt2")
    ids = torch.tensor([[new.eos_token_id, *new(story)["input_ids"]]])

    def nats(init: str) -> float:
        model = AutoModelForCausalLM.from_pretrained(teacher).eval()
        adapt(model, old, new, init)
        with torch.no_grad():
            log_probs = model(input_ids=ids[:, :-1]).logits[0].log_softmax(-1)
        return -float(log_probs.gather(1, ids[0, 1:, None]).sum())

    assert nats("subword-mean") < nats("mean") < nats("random")
