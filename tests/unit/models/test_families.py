"""Every family in its true architecture, small, under real vocabularies: from adapting to distilling."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from stlm_kd.adaptation.initialisers import new_rows
from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.errors import ModelError
from stlm_kd.models.capabilities import check_forward
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.forward import last_hidden, model_inputs
from stlm_kd.models.load import load_config, load_language_model, model_class, save_model
from stlm_kd.models.partial_forward import finish, prepare
from stlm_kd.models.positions import num_positions
from stlm_kd.models.students import student_from_fields, student_from_layers
from stlm_kd.models.vocabulary import is_tied, replace_vocabulary
from stlm_kd.teachers.live import LiveTeacher
from tests.support.pico import ALL_FAMILIES, CAUSAL, MASKED, packed_batch, pico_model
from tests.support.vocab_pico import real_tokenizer

SMALL = {
    "hidden_size": 16, "n_embd": 16, "dim": 16, "intermediate_size": 32, "hidden_dim": 32,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64,
    "max_window_layers": 2, "original_max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
"""What is made smaller, by every family's name for it."""

CONFIGURATIONS = {
    "gpt2": "gpt2-large",
    "llama": "mobillama-repo-8layer",
    "mobillama": "mobillama-repo-8layer",
    "qwen2": "qwen2-0.5b",
    "phi3": "phi-3-mini-4k",
    "bert": "bert-base-uncased",
    "distilbert": "distilbert-base-uncased",
    "roberta": "bert-base-cased",
}

PAIRS = [
    ("gpt2", "gpt2", "llama-2"),
    ("llama", "llama-2", "qwen2"),
    ("mobillama", "llama-2", "bert-base-cased"),
    ("qwen2", "qwen2", "phi-3-mini"),
    ("phi3", "phi-3-mini", "gpt2"),
    ("bert", "bert-base-uncased", "bert-base-cased"),
    ("bert", "bert-base-uncased", "gpt2"),
    ("distilbert", "bert-base-uncased", "llama-2"),
    ("roberta", "bert-base-cased", "bert-base-uncased"),
]
"""Family, its own vocabulary, the student's."""


def small_model(data: Path, family: str) -> PreTrainedModel:
    """The published configuration and vocabulary, but narrow, shallow, without dropout, and spread wide."""
    text = (data / "configs" / CONFIGURATIONS[family] / "config.json").read_text(encoding="utf-8")
    published = json.loads(text)
    dropped = ("model_type", "architectures", "transformers_version", "torch_dtype")
    fields = {name: SMALL.get(name, value) for name, value in published.items() if name not in dropped}
    fields |= {name: 0.0 for name in fields if "drop" in name}
    fields["num_key_value_heads"] = 4 if family == "mobillama" else 2
    config = CONFIG_MAPPING[family](**{n: v for n, v in fields.items() if n in known_fields(family)})
    torch.manual_seed(0)
    model = model_class(ARCHITECTURES[family].task).from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def known_fields(family: str) -> set[str]:
    known = CONFIG_MAPPING[family]()
    return set(known.to_dict()) | set(known.attribute_map) | {"rope_theta"}


def adapted(
    model: PreTrainedModel, old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast
) -> PreTrainedModel:
    rows = new_rows(model, old, new, "subword-mean", seed=0)
    replace_vocabulary(model, rows.embedding, rows.head, rows.head_bias, tokenizer=new)
    return model


def encoded(tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """A long and a short text, padded on the right by any id."""
    texts = ["Once upon a time, there was a little girl named Lily.", "The 2nd cat sat."]
    rows = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id or 0)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits(model: PreTrainedModel, given: dict[str, Tensor]) -> Tensor:
    return model(**given).logits[given["attention_mask"].bool()]


@pytest.mark.parametrize(("family", "own", "student"), PAIRS)
def test_a_true_architecture_is_adapted_saved_reloaded_and_distilled(
    family: str, own: str, student: str, shared_data: Path, tmp_path: Path
) -> None:
    old, new = real_tokenizer(shared_data, own), real_tokenizer(shared_data, student)
    model = small_model(shared_data, family)
    tied = is_tied(model)
    adapted(model, old, new)
    save_model(model, new, tmp_path / "model")
    auto = AutoModelForMaskedLM if family in MASKED else AutoModelForCausalLM
    plain, info = auto.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    assert is_tied(plain) == tied
    given = encoded(new)
    expected = logits(model, given)
    assert torch.equal(logits(plain.eval(), given), expected)
    loaded = load_language_model(str(tmp_path / "model"), ARCHITECTURES[family].task)
    assert torch.equal(logits(loaded, given), expected)
    check_forward(loaded, context=32, name="teacher")
    prepared = prepare(loaded, given)
    hidden, _ = prepared.run(stop=1)
    last, _ = prepared.run(hidden, start=1)
    assert torch.equal(finish(loaded, last, given).logits[given["attention_mask"].bool()], expected)
    distil_one_step(loaded, len(new))


def distil_one_step(
    teacher: PreTrainedModel, vocabulary: int, student: PreTrainedModel | None = None
) -> None:
    """Into a student, or one of its first layer; loss and gradients against whole logits, plain formulas."""
    student = student or student_from_layers(teacher, "first", place="here")
    other = deepcopy(student)
    batch = packed_batch([[5, 7], [9]], length=12, vocabulary=vocabulary)
    step = DistillationStep(
        student.train(),
        [Term("kl", "forward_kl", teacher="only", options={"temperature": 2.0})],
        teachers={"only": LiveTeacher(teacher, vocabulary)},
    )
    counted = {name: float(count) for name, count in step.count(batch).items()}
    step(batch, counted).loss.backward()
    found = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}

    expected = whole_loss(other.train(), teacher, batch)
    expected.backward()
    wanted = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert all(float((found[n] - wanted[n]).abs().max()) < 1e-4 * largest for n in wanted)

    torch.optim.SGD(student.parameters(), lr=1e-3 / largest).step()
    with torch.no_grad():
        assert whole_loss(student, teacher, batch) < expected


def whole_loss(student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch) -> Tensor:
    counted = batch.labels != IGNORED
    with torch.no_grad():
        target = (teacher(**model_inputs(batch, teacher)).logits[counted] / 2).log_softmax(-1)
    said = (student(**model_inputs(batch, student)).logits[counted] / 2).log_softmax(-1)
    return 4 * functional.kl_div(said, target, log_target=True, reduction="batchmean")


def published_names(family: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the first checkpoints of the family name their tensors, with what language models leave unused."""
    if family == "gpt2":
        without_head = {n: t for n, t in tensors.items() if n != "lm_head.weight"}
        mask = torch.ones(1, 1, 64, 64).tril()
        bodies = {name.removeprefix("transformer."): tensor for name, tensor in without_head.items()}
        return {**bodies, "h.0.attn.bias": mask, "h.1.attn.bias": mask.clone()}
    own = {n: t for n, t in tensors.items() if ".decoder." not in n}
    if family == "roberta":
        return {**own, "roberta.embeddings.position_ids": torch.arange(66)[None]}
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new_name, old_name in old.items():
        own = {name.replace(new_name, old_name): tensor for name, tensor in own.items()}
    unused = {
        "bert.pooler.dense.weight": torch.ones(16, 16),
        "cls.seq_relationship.weight": torch.ones(2, 16),
    }
    return {**own, **unused}


@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta"])
def test_checkpoints_with_the_names_of_the_first_ones_are_loaded_whole(family: str, tmp_path: Path) -> None:
    model = pico_model(family).eval()
    model.config.save_pretrained(tmp_path)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = published_names(family, tensors)
    assert not set(weights) >= set(tensors)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_language_model(str(tmp_path), ARCHITECTURES[family].task)
    given = {"input_ids": torch.arange(3, 11)[None], "attention_mask": torch.ones(1, 8, dtype=torch.int64)}
    assert torch.equal(logits(loaded, given), logits(model, given))
    assert is_tied(loaded)


@pytest.fixture(scope="module")
def causal_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the cat sat on the mat and the dog sat on the log"] * 3, "bpe", 262)


@pytest.fixture(scope="module")
def masked_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the cat sat on the mat and the dog sat on the log"] * 3, "bpe", 266, masked=True)


@pytest.fixture
def tokenizer(
    family: str, causal_tokenizer: PreTrainedTokenizerFast, masked_tokenizer: PreTrainedTokenizerFast
) -> PreTrainedTokenizerFast:
    return masked_tokenizer if family in MASKED else causal_tokenizer


GENERIC = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
"""Names that every family understands, by its own or by transformers' alias."""


def key_heads(family: str) -> dict[str, int]:
    return {"num_key_value_heads": 1} if "num_key_value_heads" in known_fields(family) else {}


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family_is_built_from_the_same_field_names(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    task = ARCHITECTURES[family].task
    fields = {"model_type": family, **GENERIC, **key_heads(family)}
    model = student_from_fields(fields, tokenizer, task=task, context=24, seed=0)
    assert model.config.model_type == family
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (16, 1)
    assert num_positions(model.config) == 24
    assert model.config.pad_token_id == tokenizer.pad_token_id
    batch = packed_batch([[10, 14], [24]], length=24, vocabulary=len(tokenizer))
    assert last_hidden(model, batch).shape == (2, 24, 16)
    check_forward(model, context=24, name="student")


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_student_that_says_how_many_positions_it_has_gets_the_datas_at_least(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    own_name = {"gpt2": "n_positions"}.get(family, "max_position_embeddings")
    for asked in (8, 99):
        model = student_from_fields(
            {"model_type": family, **GENERIC, own_name: asked, **key_heads(family)},
            tokenizer, task=ARCHITECTURES[family].task, context=24, seed=0,
        )  # fmt: skip
        rows = model.config.max_position_embeddings
        assert rows == max(asked, 24 + (tokenizer.pad_token_id + 1 if family == "roberta" else 0))


@pytest.mark.parametrize("family", CAUSAL + MASKED)
def test_a_student_without_a_padding_token_trains_all_rows(
    family: str, causal_tokenizer: PreTrainedTokenizerFast
) -> None:
    gpt2_like = PreTrainedTokenizerFast(
        tokenizer_object=causal_tokenizer.backend_tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    build = {"task": ARCHITECTURES[family].task, "context": 24, "seed": 0}
    fields = {"model_type": family, **GENERIC, **key_heads(family)}
    if family == "roberta":
        with pytest.raises(
            ModelError, match=r"student\.architecture: roberta counts positions from its padding"
        ):
            student_from_fields(fields, gpt2_like, **build)
        return
    model = student_from_fields(fields, gpt2_like, **build)
    assert model.get_input_embeddings().padding_idx is None
    assert model.config.pad_token_id is None


def test_key_heads_that_do_not_divide_the_heads_are_refused(
    causal_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Qwen2 has 32 of them by default."""
    with pytest.raises(ModelError, match=r"num_attention_heads \(2\).* num_key_value_heads \(32\)"):
        student_from_fields(
            {"model_type": "qwen2", **GENERIC}, causal_tokenizer, task="clm", context=8, seed=0
        )


def test_a_field_that_is_given_by_both_of_its_names_is_refused(
    causal_tokenizer: PreTrainedTokenizerFast,
) -> None:
    fields = {"model_type": "gpt2", "n_layer": 2, "num_hidden_layers": 3}
    with pytest.raises(ModelError, match="num_hidden_layers: given twice, also by another name; use n_layer"):
        student_from_fields(fields, causal_tokenizer, task="clm", context=8, seed=0)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_saved_family_is_loaded_for_its_task_and_refused_for_the_other(
    family: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_model(pico_model(family, vocabulary=len(tokenizer)), tokenizer, tmp_path / "model")
    assert load_config(str(tmp_path / "model")).model_type == family
    task = ARCHITECTURES[family].task
    assert load_language_model(str(tmp_path / "model"), None).config.model_type == family
    other = "mlm" if task == "clm" else "clm"
    with pytest.raises(ModelError, match=f"but the task is {other}"):
        load_language_model(str(tmp_path / "model"), other)
