"""A model with another vocabulary: what changes, what stays, and that plain transformers loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaForMaskedLM,
)

from stlm_kd.adaptation.initialisers import new_rows
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import ModelError
from stlm_kd.models.positions import num_positions
from stlm_kd.models.vocabulary import freeze_body, is_tied, replace_vocabulary, vocabulary_parameters
from tests.support.pico import ALL_FAMILIES, MASKED, pico_model
from tests.support.vocab_pico import REAL, byte_level, real_tokenizer, sentencepiece_bpe, word_piece


def adapt(
    model: PreTrainedModel,
    old: PreTrainedTokenizerFast,
    new: PreTrainedTokenizerFast,
    init: str = "subword-mean",
) -> None:
    rows = new_rows(model, old, new, init, seed=0)
    replace_vocabulary(model, rows.embedding, rows.head, rows.head_bias, tokenizer=new)


def check_reload(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedModel:
    """The model as transformers loads it from a folder, with the same weights and logits."""
    tied = is_tied(model)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kind = AutoModelForMaskedLM if model.config.model_type in MASKED else AutoModelForCausalLM
    loaded, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert is_tied(loaded) == tied == loaded.config.tie_word_embeddings
    again = PreTrainedTokenizerFast.from_pretrained(folder)  # AutoTokenizer rebuilds it for a qwen2 model
    assert again.get_vocab() == tokenizer.get_vocab()
    ids = torch.tensor([again("the other cat sat on the mat")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(input_ids=ids).logits, model(input_ids=ids).logits)
    assert loaded.config.vocab_size == len(tokenizer)
    assert loaded.config.pad_token_id == model.config.pad_token_id
    for config in (loaded.config, loaded.generation_config if loaded.can_generate() else loaded.config):
        assert config.bos_token_id == tokenizer.bos_token_id
        assert config.eos_token_id == tokenizer.eos_token_id
    return loaded


def byte_level_for_masked_models() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the cat sat on the mat and the dog sat on the log"] * 3, "bpe", 266, masked=True)


def vocabularies(family: str) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """An old and a new one; padding has an id of its own, and another one, for masked models."""
    if family in MASKED:
        return word_piece(), byte_level_for_masked_models()
    return sentencepiece_bpe(), byte_level()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_model_with_another_vocabulary_is_reloaded_whole(family: str, tied: bool, tmp_path: Path) -> None:
    old, new = vocabularies(family)
    model = pico_model(family, vocabulary=len(old) + 7, tied=tied)
    adapt(model, old, new)
    assert model.config.pad_token_id == (2 if family in MASKED else None)
    check_reload(model, new, tmp_path)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_masked_model_takes_a_tokenizer_without_padding(family: str, tmp_path: Path) -> None:
    model = pico_model(family, vocabulary=len(word_piece()))
    adapt(model, word_piece(), byte_level())
    assert model.get_input_embeddings().padding_idx is None
    check_reload(model, byte_level(), tmp_path)


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
    loaded = check_reload(model, new, tmp_path)
    assert loaded.get_input_embeddings().weight.shape == (len(new), 8)


EMBEDDINGS = {
    "gpt_neox": "gpt_neox.embed_in.weight",
    "opt": "model.decoder.embed_tokens.weight",
    "gpt2": "transformer.wte.weight",
    "bert": "bert.embeddings.word_embeddings.weight",
    "distilbert": "distilbert.embeddings.word_embeddings.weight",
    "roberta": "roberta.embeddings.word_embeddings.weight",
}
HEADS = {"bert": "cls.predictions.decoder", "distilbert": "vocab_projector", "roberta": "lm_head.decoder"}
OTHER_BIASES = {"bert": "cls.predictions.bias", "roberta": "lm_head.bias"}
"""Where transformers keeps a head's bias a second time."""


def vocabulary_names(family: str) -> set[str]:
    """All names in the state dict of what belongs to the vocabulary."""
    head = HEADS.get(family, "lm_head")
    names = {EMBEDDINGS.get(family, "model.embed_tokens.weight"), f"{head}.weight"}
    if family in MASKED:
        names |= {f"{head}.bias", OTHER_BIASES.get(family, f"{head}.bias")}
    return names


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_only_embedding_and_head_change_and_only_they_learn(family: str, tied: bool) -> None:
    """Not the transform before a masked model's head; RoBERTa's positions are moved, but do not learn."""
    old, new = vocabularies(family)
    model = pico_model(family, vocabulary=len(old), tied=tied)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapt(model, old, new)
    freeze_body(model)
    names = vocabulary_names(family)
    after = model.state_dict(keep_vars=True)
    moved = {"roberta.embeddings.position_embeddings.weight"} if family == "roberta" else set()
    same = {n for n, v in after.items() if v.shape == before[n].shape and torch.equal(v, before[n])}
    assert same == set(before) - names - moved
    trained = {id(after[name]) for name, p in after.items() if p.requires_grad}
    assert trained == {id(p) for p in vocabulary_parameters(model)}
    assert len(trained) == (1 if tied else 2) + (family in MASKED)
    assert {name for name, p in after.items() if id(p) in trained} == names - (
        {OTHER_BIASES[family]} if family in OTHER_BIASES and not tied else set()
    )
    ids = torch.tensor([[5, 6, 7, 8]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert {id(p) for p in model.parameters() if p.grad is not None} == trained
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vocabulary_parameters(model))
    assert [p.shape[0] for p in vocabulary_parameters(model)] == [len(new)] * len(trained)


@pytest.mark.parametrize("family", list(OTHER_BIASES))
def test_the_two_names_of_a_heads_bias_stay_one_parameter(family: str, tmp_path: Path) -> None:
    old, new = vocabularies(family)
    model = pico_model(family, vocabulary=len(old))
    adapt(model, old, new)
    model.save_pretrained(tmp_path)
    for each in (model, AutoModelForMaskedLM.from_pretrained(tmp_path)):
        bias = each.get_output_embeddings().bias
        assert each.get_parameter(OTHER_BIASES[family]) is bias
        assert bias.shape == (len(new),)
        assert sum(p is bias for p in each.parameters()) == 1


@pytest.mark.parametrize("family", MASKED)
def test_a_masked_models_bias_goes_with_its_tokens(family: str) -> None:
    old, new = vocabularies(family)
    model = pico_model(family, vocabulary=len(old))
    bias = model.get_output_embeddings().bias.detach().clone()
    adapt(model, old, new)
    found = model.get_output_embeddings().bias
    pairs = {"[CLS]": "<|start|>", "[SEP]": "<|end|>", "[PAD]": "<|pad|>", "[MASK]": "<|mask|>", "##t": "t"}
    for old_token, new_token in pairs.items():
        old_id, new_id = old.convert_tokens_to_ids(old_token), new.convert_tokens_to_ids(new_token)
        assert found[new_id] == bias[old_id], new_token


def word_level(ids: dict[str, int]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.mark.parametrize(("old_padding", "new_padding"), [(1, 0), (1, 6), (6, 1), (0, 3), (2, 2)])
def test_texts_keep_their_positions_when_the_padding_id_moves(
    old_padding: int, new_padding: int, tmp_path: Path
) -> None:
    """The same tokens under other ids: every logit is found again under its token's new id."""
    words = ["[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "mat"]
    old, new = (
        word_level({token: i for i, token in enumerate([*words[:p], "[PAD]", *words[p:]])})
        for p in (old_padding, new_padding)
    )
    torch.manual_seed(0)
    config = pico_model("roberta").config
    config.vocab_size, config.pad_token_id = 8, old_padding
    config.max_position_embeddings = 12 + old_padding + 1
    model = RobertaForMaskedLM._from_config(config, attn_implementation="sdpa").eval()
    texts = ["the cat sat the mat cat cat sat the the mat the", "the mat"]

    def say(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Tensor:
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        given = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        order = [tokenizer.convert_tokens_to_ids(word) for word in [*words, "[PAD]"]]
        with torch.no_grad():
            return model(**given).logits[given["attention_mask"].bool()][:, order]

    expected = say(model, old)
    ids = [old.convert_tokens_to_ids(new.convert_ids_to_tokens(i)) for i in range(8)]
    weight, bias = model.get_input_embeddings().weight[ids], model.get_output_embeddings().bias[ids]
    replace_vocabulary(model, weight, None, bias, tokenizer=new)
    assert torch.allclose(say(model, new), expected, atol=1e-6)
    assert num_positions(model.config) == 12
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(say(loaded.eval(), new), say(model, new))
    assert loaded.roberta.embeddings.position_embeddings.padding_idx == new_padding
    assert model.roberta.embeddings.position_embeddings.padding_idx == new_padding
    assert torch.equal(
        loaded.roberta.embeddings.position_embeddings.weight,
        model.roberta.embeddings.position_embeddings.weight,
    )


def test_positions_that_count_from_padding_need_a_padding_token() -> None:
    model = pico_model("roberta", vocabulary=len(word_piece()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        ModelError, match="roberta counts positions from its padding token, but the tokenizer has no"
    ):
        adapt(model, word_piece(), byte_level())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_padding_that_is_an_end_token_too_is_learnt(tmp_path: Path) -> None:
    new = byte_level_for_masked_models()
    new.pad_token = new.sep_token
    model = pico_model("bert", vocabulary=len(word_piece()))
    adapt(model, word_piece(), new)
    model.save_pretrained(tmp_path)
    for each in (model, AutoModelForMaskedLM.from_pretrained(tmp_path)):
        assert each.config.pad_token_id is None
        embedding = each.get_input_embeddings()
        assert embedding.padding_idx is None
        each.bert(input_ids=torch.tensor([[new.sep_token_id, 9]])).last_hidden_state.square().sum().backward()
        assert embedding.weight.grad[new.sep_token_id].abs().sum() > 0


def test_a_padding_token_that_is_nothing_else_is_not_learnt_before_or_after_a_reload(tmp_path: Path) -> None:
    model = pico_model("bert", vocabulary=len(word_piece()))
    adapt(model, word_piece(), byte_level_for_masked_models())
    model.save_pretrained(tmp_path)
    for each in (model, AutoModelForMaskedLM.from_pretrained(tmp_path)):
        embedding = each.get_input_embeddings()
        each.bert(input_ids=torch.tensor([[2, 9]])).last_hidden_state.square().sum().backward()
        assert embedding.weight.grad[2].abs().sum() == 0


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
