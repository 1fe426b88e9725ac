"""Classifiers: padding changes nothing, heads are kept or drawn, layers and vocabularies are exchanged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    pipeline,
)

from stlm_kd.data.labelled.batches import EncodedExamples, example_evaluation_batches
from stlm_kd.data.labelled.encoding import encode_texts
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import MissingResourceError, ModelError
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.forward import inputs_of
from stlm_kd.models.heads.classifiers import (
    check_classifier,
    class_names,
    classifier_from_fields,
    load_classifier,
    set_labels,
)
from stlm_kd.models.load import count_parameters, load_language_model, save_model
from stlm_kd.models.partial_forward import prepare
from stlm_kd.models.students import student_from_layers
from stlm_kd.models.vocabulary import freeze_all_but_embedding, replace_embedding, set_padding
from tests.support.pico import pico_model

TEXTS = ["the cat sat on the mat and the dog sat on the log", "a cat", "the mat " * 5, "the"]
LABELS = ("good", "fair", "bad")
FAMILIES = tuple(family for family in ARCHITECTURES if family != "mobillama")
DECODERS = tuple(family for family in FAMILIES if ARCHITECTURES[family].task == "clm")


@pytest.fixture(scope="module")
def causal() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS * 3, "bpe", 270)


@pytest.fixture(scope="module")
def unpadded() -> PreTrainedTokenizerFast:
    """As GPT-2's: no token is for padding."""
    made = train_tokenizer(TEXTS * 3, "bpe", 270)
    made.pad_token = None
    return made


@pytest.fixture(scope="module")
def masked() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS * 3, "bpe", 272, masked=True)


def made(
    family: str, tokenizer: PreTrainedTokenizerFast, *, labels: tuple[str, ...] = LABELS
) -> PreTrainedModel:
    """A classifier of the family with weights wide enough that mistakes show."""
    return classifier_from_fields(fields(family), tokenizer, labels=labels, context=32, seed=0).eval()


def fields(family: str, layers: int = 2) -> dict[str, str | int | float]:
    has_groups = family in DECODERS and family not in ("gpt2", "gpt_neox", "opt")
    heads = {"num_key_value_heads": 1} if has_groups else {}
    spread = "init_std" if family == "opt" else "initializer_range"
    sizes = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2}
    return {"model_type": family, **sizes, **heads, spread: 0.3}


def logits(model: PreTrainedModel, start: int = 4) -> Tensor:
    ids = torch.arange(start, start + 16).view(2, 8)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def in_batches(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """The logits of all texts in one padded batch, in their order."""
    texts = encode_texts([(text,) for text in TEXTS], tokenizer, context=32)
    data = EncodedExamples(torch.arange(len(TEXTS)).numpy() % 3, texts)
    (batch,) = example_evaluation_batches(data, micro_batch=9)
    with torch.no_grad():
        found = model(**inputs_of(batch, model)).logits
    return found[batch.example_ids.argsort()]


def one_by_one(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """The logits of each text by itself, without padding or mask."""
    rows = [tokenizer(text, return_tensors="pt", return_token_type_ids=False)["input_ids"] for text in TEXTS]
    with torch.no_grad():
        return torch.cat([model(input_ids=row).logits for row in rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_logits(
    family: str, causal: PreTrainedTokenizerFast, masked: PreTrainedTokenizerFast
) -> None:
    tokenizer = causal if family in DECODERS else masked
    model = made(family, tokenizer)
    expected = one_by_one(model, tokenizer)
    assert torch.allclose(in_batches(model, tokenizer), expected, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    check_classifier(model, context=32, name="student")


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_without_a_padding_token_pools_the_last_token(
    family: str, unpadded: PreTrainedTokenizerFast
) -> None:
    model = made(family, unpadded)
    assert model.config.pad_token_id == unpadded.eos_token_id
    assert torch.allclose(in_batches(model, unpadded), one_by_one(model, unpadded), atol=1e-5)
    for text, expected in zip(TEXTS, one_by_one(model, unpadded), strict=True):
        with torch.no_grad():
            state = model.base_model(torch.tensor([unpadded(text)["input_ids"]])).last_hidden_state[0, -1]
            assert torch.allclose(model.score(state), expected, atol=1e-5)
    check_classifier(model, context=32, name="student")


@pytest.mark.parametrize("family", DECODERS)
def test_an_end_token_that_also_pads_is_trained(
    family: str, unpadded: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_model(made(family, unpadded), unpadded, tmp_path / "model")
    loaded = load_classifier(str(tmp_path / "model"), LABELS, tokenizer=unpadded)
    end = unpadded.eos_token_id
    for model in (made(family, unpadded), loaded, student_from_layers(loaded, "first", place="here")):
        model(input_ids=torch.tensor([[end, 5]])).logits.sum().backward()
        assert model.get_input_embeddings().weight.grad[end].abs().sum() > 0


def test_a_classifier_that_padding_changes_is_refused(causal: PreTrainedTokenizerFast) -> None:
    model = made("gpt2", causal)
    model.config.pad_token_id = 5  # not what the batches are filled with
    texts = encode_texts([(text,) for text in TEXTS], causal, context=32)
    assert texts.padding != 5
    assert not torch.allclose(in_batches(model, causal), one_by_one(model, causal), atol=1e-3)
    blind = made("bert", train_tokenizer(TEXTS * 3, "bpe", 272, masked=True))
    mean = blind.base_model.embeddings.forward

    def sees_all(*args: object, **kwargs: object) -> Tensor:
        states = mean(*args, **kwargs)
        return states + states.mean(1, keepdim=True)

    blind.base_model.embeddings.forward = sees_all
    with pytest.raises(ModelError, match="student: this bert classifier gives different logits for a text"):
        check_classifier(blind, context=32, name="student")


def test_a_context_beyond_the_models_positions_is_refused(masked: PreTrainedTokenizerFast) -> None:
    model = made("roberta", masked)
    longest = model.config.max_position_embeddings - masked.pad_token_id - 1
    check_classifier(model, context=longest, name="teacher")
    with pytest.raises(ModelError, match=f"teacher: it reads at most {longest} tokens, but data.context is"):
        check_classifier(model, context=longest + 1, name="teacher")


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2", "llama"])
def test_a_saved_classifier_is_loaded_by_plain_transformers(
    family: str, causal: PreTrainedTokenizerFast, masked: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer = causal if family in DECODERS else masked
    model = made(family, tokenizer)
    save_model(model, tokenizer, tmp_path / "model")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(logits(plain), logits(model))
    assert plain.config.id2label == dict(enumerate(LABELS))
    assert plain.config.label2id == {"good": 0, "fair": 1, "bad": 2}
    assert plain.config.problem_type == "single_label_classification"
    ours = load_classifier(str(tmp_path / "model"), None, tokenizer=tokenizer)
    assert torch.equal(logits(ours), logits(model))
    assert class_names(ours.config) == LABELS
    if family == "bert":
        filed = AutoTokenizer.from_pretrained(tmp_path / "model")
        told = pipeline("text-classification", model=plain, tokenizer=filed)(TEXTS[0])[0]
        probabilities = one_by_one(model, tokenizer)[0].softmax(0)
        assert told["label"] == LABELS[int(probabilities.argmax())]
        assert told["score"] == pytest.approx(float(probabilities.max()), abs=1e-4)


def test_a_model_for_a_number_has_one_output_and_says_so(
    masked: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = made("bert", masked, labels=())
    assert logits(model).shape == (2, 1)
    assert model.config.problem_type == "regression"
    save_model(model, masked, tmp_path / "model")
    assert load_classifier(str(tmp_path / "model"), (), tokenizer=masked).config.num_labels == 1
    with pytest.raises(ModelError, match=r"head is for a number, but the data has 2 classes \(a, b\)"):
        load_classifier(str(tmp_path / "model"), ("a", "b"), tokenizer=masked)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("is_body", [True, False])
def test_a_body_or_language_model_gets_a_head_that_the_seed_decides(
    family: str,
    is_body: bool,
    causal: PreTrainedTokenizerFast,
    masked: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    tokenizer = causal if family in DECODERS else masked
    model = pico_model(family, vocabulary=len(tokenizer))
    place = str(tmp_path / "model")
    save_model(model.base_model if is_body else model, tokenizer, tmp_path / "model")
    if family == "roberta":  # whose padding the pico model does not share with the tokenizer
        model.config.pad_token_id = tokenizer.pad_token_id
        model.config.save_pretrained(place)
    with pytest.raises(ModelError, match=rf"a {family} model without a classification head .*new_head: true"):
        load_classifier(place, None, tokenizer=tokenizer)
    torch.manual_seed(7)
    before = torch.rand(2)
    torch.manual_seed(7)
    first, same, other = (
        load_classifier(place, LABELS, tokenizer=tokenizer, head_seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(2), before)
    for name, value in model.base_model.state_dict().items():
        assert torch.equal(first.base_model.state_dict()[name], value), name
    assert torch.equal(logits(first), logits(same))
    assert not torch.equal(logits(first), logits(other))
    assert class_names(first.config) == LABELS
    assert not first.training


def test_a_new_head_replaces_one_for_other_classes_alone(
    masked: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    old = made("bert", masked)
    save_model(old, masked, tmp_path / "model")
    place = str(tmp_path / "model")
    with pytest.raises(ModelError, match=r"head is for 3 classes \(good, fair, bad\), but the data has 2"):
        load_classifier(place, ("no", "yes"), tokenizer=masked)
    new = load_classifier(place, ("no", "yes"), tokenizer=masked, head_seed=1)
    assert class_names(new.config) == ("no", "yes")
    assert new.classifier.weight.shape == (2, 16)
    assert torch.equal(new.bert.pooler.dense.weight, old.bert.pooler.dense.weight)
    with pytest.raises(ModelError, match="it has a head for this number of classes already"):
        load_classifier(place, ("a", "b", "c"), tokenizer=masked, head_seed=1)


def test_the_same_classes_in_another_order_are_refused(
    masked: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_model(made("bert", masked), masked, tmp_path / "model")
    place = str(tmp_path / "model")
    with pytest.raises(ModelError, match="its classes are good, fair, bad in this order, but"):
        load_classifier(place, ("bad", "Fair", "good"), tokenizer=masked)
    renamed = load_classifier(place, ("0", "1", "2"), tokenizer=masked)
    assert class_names(renamed.config) == ("0", "1", "2")


def test_a_model_for_several_classes_at_once_is_refused(
    masked: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = made("bert", masked)
    model.config.problem_type = "multi_label_classification"
    save_model(model, masked, tmp_path / "model")
    with pytest.raises(ModelError, match="multi-label classification is not supported"):
        load_classifier(str(tmp_path / "model"), LABELS, tokenizer=masked)


def test_what_a_language_model_may_not_be_a_classifier_may_not_be(
    masked: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save_model(made("bert", masked), masked, folder)
    weights = load_file(folder / "model.safetensors")

    def load() -> None:
        load_classifier(str(folder), LABELS, tokenizer=masked)

    short = {name: value for name, value in weights.items() if "layer.1" not in name}
    save_file(short, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"weights are missing .*does not hold a whole bert model"):
        load()
    wide = {**weights, "bert.embeddings.word_embeddings.weight": torch.zeros(9, 16)}
    save_file(wide, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"another shape than config\.json says"):
        load()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(MissingResourceError, match="only safetensors"):
        load()
    with pytest.raises(MissingResourceError, match=r"without config\.json"):
        load_classifier(str(tmp_path), LABELS, tokenizer=masked)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "brand-new", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('the code ran')")
    with pytest.raises(ModelError, match="--trust-remote-code"):
        load()


def test_a_family_without_classifiers_is_refused(causal: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save_model(pico_model("mobillama", vocabulary=len(causal)), causal, tmp_path / "model")
    with pytest.raises(ModelError, match="no classifier of family mobillama"):
        load_classifier(str(tmp_path / "model"), LABELS, tokenizer=causal, head_seed=0)
    with pytest.raises(ModelError, match=r"student\.architecture: .*mobillama"):
        made("mobillama", causal)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_of_some_layers_is_the_teacher_run_through_these_alone(
    family: str, causal: PreTrainedTokenizerFast, masked: PreTrainedTokenizerFast
) -> None:
    tokenizer = causal if family in DECODERS else masked
    teacher = classifier_from_fields(fields(family, 4), tokenizer, labels=LABELS, context=32, seed=0).eval()
    whole = student_from_layers(teacher, range(4), place="here")
    assert torch.equal(logits(whole), logits(teacher))
    student = student_from_layers(teacher, [1, 3], place="here")
    blocks = teacher.base_model.get_submodule(ARCHITECTURES[family].blocks)
    for index in (2, 0):
        del blocks[index]
    for place, block in enumerate(blocks):
        for name in ("attn", "self_attn", "attention"):
            if hasattr(getattr(block, name, None), "layer_idx"):
                getattr(block, name).layer_idx = place
    teacher.config.num_hidden_layers = 2
    assert torch.allclose(logits(student), logits(teacher), atol=1e-6)
    assert class_names(student.config) == LABELS


def test_a_distilbert_of_berts_layers_has_its_body_and_head(masked: PreTrainedTokenizerFast) -> None:
    given = {**fields("bert", 4), "classifier_dropout": 0.3}
    teacher = classifier_from_fields(given, masked, labels=LABELS, context=32, seed=0).eval()
    assert isinstance(teacher, BertForSequenceClassification)
    student = student_from_layers(teacher, [0, 2], place="here", model_type="distilbert")
    assert torch.equal(student.pre_classifier.weight, teacher.bert.pooler.dense.weight)
    assert torch.equal(student.pre_classifier.bias, teacher.bert.pooler.dense.bias)
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)
    assert class_names(student.config) == LABELS
    assert student.config.problem_type == "single_label_classification"
    assert student.config.seq_classif_dropout == 0.3
    assert student.config.dropout == teacher.config.hidden_dropout_prob
    ids = torch.arange(4, 20).view(2, 8)
    with torch.no_grad():
        run = prepare(teacher, {"input_ids": ids})
        hidden, _ = run.run(start=0, stop=1)
        hidden, _ = run.run(hidden, start=2, stop=3)
        assert torch.allclose(student.base_model(ids).last_hidden_state, hidden, atol=1e-5)
        activation = torch.relu(torch.nn.functional.linear(hidden[:, 0], teacher.bert.pooler.dense.weight))
        expected = torch.nn.functional.linear(activation, teacher.classifier.weight)
    assert torch.allclose(logits(student), expected, atol=1e-5)  # biases begin at 0


def test_dropout_is_what_the_configuration_says(masked: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    given = {**fields("bert"), "classifier_dropout": 0.4, "hidden_dropout_prob": 0.2}
    model = classifier_from_fields(given, masked, labels=LABELS, context=32, seed=0)
    save_model(model, masked, tmp_path / "model")
    loaded = load_classifier(str(tmp_path / "model"), LABELS, tokenizer=masked)
    assert loaded.dropout.p == 0.4
    assert loaded.bert.encoder.layer[0].output.dropout.p == 0.2


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_a_classifier_reads_the_same_texts_by_another_vocabulary(
    family: str, causal: PreTrainedTokenizerFast, masked: PreTrainedTokenizerFast
) -> None:
    """A tokenizer with the same tokens at other ids: with the rows moved alike, the logits stay."""
    tokenizer = causal if family in DECODERS else masked
    model = made(family, tokenizer)
    expected = in_batches(model, tokenizer)
    other, order = reordered(tokenizer)
    rows = model.get_input_embeddings().weight.detach()[order]
    old = {id(value): value.detach().clone() for value in model.parameters()}
    replace_embedding(model, rows, tokenizer=other)
    assert torch.allclose(in_batches(model, other), expected, atol=1e-5)
    check_classifier(model, context=32, name="teacher")
    assert model.config.vocab_size == len(other)
    assert model.config.pad_token_id == other.pad_token_id
    freeze_all_but_embedding(model)
    assert count_parameters(model, trainable_only=True) == rows.numel()
    embedding = model.get_input_embeddings().weight
    assert all(value.requires_grad == (value is embedding) for value in model.parameters())
    kept = [value for value in model.parameters() if id(value) in old]
    assert all(torch.equal(value, old[id(value)]) for value in kept)
    changed = 2 if family == "roberta" else 1  # its positions move with its padding
    assert len(kept) == len(list(model.parameters())) - changed


def reordered(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedTokenizerFast, Tensor]:
    """The tokenizer with ids moved by seven, special ones too; and for each new id the old one."""
    size = len(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = {token: (place + 7) % size for token, place in vocabulary.items()}
    for token in state["added_tokens"]:
        token["id"] = (token["id"] + 7) % size
    if state["post_processor"] and "special_tokens" in state["post_processor"]:
        for token in state["post_processor"]["special_tokens"].values():
            token["ids"] = [(place + 7) % size for place in token["ids"]]
    from tokenizers import Tokenizer

    roles = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), clean_up_tokenization_spaces=False, **roles
    )
    return made, (torch.arange(size) - 7) % size


def test_a_language_models_embedding_is_not_replaced_alone(causal: PreTrainedTokenizerFast) -> None:
    model = pico_model("llama", vocabulary=len(causal))
    with pytest.raises(AssertionError, match="head changes with its embedding"):
        replace_embedding(model, torch.zeros(len(causal), 16), tokenizer=causal)


def test_positions_counted_from_another_padding_token_are_refused(masked: PreTrainedTokenizerFast) -> None:
    model = pico_model("roberta", vocabulary=len(masked))
    assert model.config.pad_token_id != masked.pad_token_id
    with pytest.raises(ModelError, match="this roberta model counts positions from"):
        set_padding(model, masked)


def test_setting_labels_leaves_no_others(masked: PreTrainedTokenizerFast) -> None:
    config = made("bert", masked).config
    set_labels(config, ("no", "yes"))
    assert config.num_labels == 2
    assert config.label2id == {"no": 0, "yes": 1}


def test_a_classifiers_folder_is_no_language_model(masked: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save_model(made("bert", masked), masked, tmp_path / "model")
    with pytest.raises(ModelError, match="a bert body without a head"):
        load_language_model(str(tmp_path / "model"), "mlm")
    body = AutoModel.from_pretrained(tmp_path / "model")
    assert torch.equal(body.pooler.dense.weight, made("bert", masked).bert.pooler.dense.weight)
