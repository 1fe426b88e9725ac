"""All families: each does as its own whole model, or is refused by name; planted changes are found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.models.gpt2.modeling_gpt2 import GPT2Model
from transformers.models.llama.modeling_llama import LlamaModel

from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.errors import ModelError
from stlm_kd.interventions.spec import Intervention
from stlm_kd.models import attention_maps, capabilities
from stlm_kd.models.capabilities import check_forward, require_paths
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.load import load_language_model, save_model
from stlm_kd.models.partial_forward import call
from tests.support.interchange_case import MAPS, SOURCES, assert_same, case_of
from tests.support.pico import ALL_FAMILIES, CAUSAL, packed_batch, pico_model
from tests.support.road import stlm_kd
from tests.unit.models.test_families import distil_one_step

OTHERS = ("stablelm", "phi", "gemma2")
"""Families that have no row: responses alone are distilled."""

SIZES = {
    "vocab_size": 61, "hidden_size": 16, "intermediate_size": 32, "ffn_dim": 32, "word_embed_proj_dim": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "max_position_embeddings": 64, "initializer_range": 0.2, "init_std": 0.2, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_tried_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "_works", set())


def built(family: str, **changes: object) -> PreTrainedModel:
    """A pico model of a family with or without a row."""
    if family in ARCHITECTURES and not changes:
        return pico_model(family).eval()
    known = CONFIG_MAPPING[family]()
    names = set(known.to_dict()) | set(known.attribute_map)
    torch.manual_seed(0)
    fields = {name: value for name, value in {**SIZES, **changes}.items() if name in names}
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**fields)).eval()


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_family_with_a_row_gives_all_and_is_left_as_it_was(family: str) -> None:
    model = built(family).train()
    configs = [getattr(module, "config", None) for module in model.modules()]
    check_forward(model, context=24, name="teacher")
    require_paths(model, {"blocks", "maps"}, name="teacher")
    assert model.training and model.config._attn_implementation == "sdpa"
    after = [getattr(module, "config", None) for module in model.modules()]
    assert all(one is other for one, other in zip(configs, after, strict=True))
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_was_tried_is_not_tried_again_for_another_model_of_its_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []
    failure = capabilities._failure

    def counted(model: PreTrainedModel, trial: capabilities._Trial) -> str | None:
        tried.append(f"{model.config.model_type} {model.config._attn_implementation}")
        return failure(model, trial)

    monkeypatch.setattr(capabilities, "_failure", counted)
    for model in (
        pico_model("llama"),
        pico_model("llama", width=32),
        pico_model("qwen2"),
        pico_model("llama", attention="eager"),
    ):
        require_paths(model, {"blocks"}, name="teacher")
    assert tried == ["llama sdpa", "qwen2 sdpa", "llama eager"]


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("path", ["blocks", "maps"])
def test_a_family_without_a_row_is_refused_where_its_inside_is_needed(family: str, path: str) -> None:
    said = (
        f"^novels: .* in this {family} model with transformers {re.escape(transformers.__version__)} "
        f"\\(ModelError: {family}: the blocks of this family are unknown.*; remove losses on .*, "
        "use another model, or install"
    )
    with pytest.raises(ModelError, match=said):
        require_paths(built(family), {path}, name="novels")  # type: ignore[arg-type]  # one of both


@pytest.mark.parametrize("family", ["stablelm", "phi"])
def test_responses_of_a_family_without_a_row_are_distilled(family: str) -> None:
    """A step into another model's student has the loss and gradient of whole logits."""
    model = built(family)
    check_forward(model, context=24, name="teacher")
    packed = packed_batch([[5, 7], [9]], length=12)
    for row, documents in enumerate(packed.document_ids):
        for number in set(documents.tolist()) - {0}:
            here = documents == number
            found = capabilities._projected(model, capabilities.last_hidden(model, packed))[row, here]
            alone = model(input_ids=packed.input_ids[row, here][None]).logits[0]
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=2e-5)
    distil_one_step(model, 61, student=pico_model("llama", layers=1))


@pytest.mark.parametrize("family", ["mistral", "qwen3", "roberta"])
@pytest.mark.parametrize("source", ["batch", "mixup-residual"])
def test_an_intervention_step_is_six_whole_runs(family: str, source: str) -> None:
    """The other families with a row: ``tests/unit/interventions/test_interventions_passes.py``."""
    name, options = SOURCES[source]
    intervention = Intervention("diito", {"t": MAPS[0]}, source=name, options=options)
    assert_same(case_of(family, family, "packed", intervention))


def test_a_cap_that_no_logit_reaches_yet_is_refused() -> None:
    small = built("gemma2", initializer_range=0.02)
    assert float(small(input_ids=torch.arange(8)[None]).logits.detach().abs().max()) < 1
    with pytest.raises(ModelError, match=r"^student: this gemma2 model's logits are not its head applied"):
        check_forward(small, context=16, name="student")
    check_forward(built("gemma2", final_logit_softcapping=None), context=16, name="student")


def refusal(model: PreTrainedModel) -> str | None:
    """The message that refuses losses on the model's hidden states and attention maps; None if they work."""
    try:
        require_paths(model, {"blocks", "maps"}, name="teacher")
    except ModelError as error:
        return str(error)
    return None


@pytest.mark.parametrize("family", CAUSAL)
def test_bf16_is_no_reason_to_refuse(family: str) -> None:
    model = built(family).bfloat16()
    check_forward(model, context=64, name="teacher")
    assert refusal(model) is None


def without_blocks(self: nn.Module, real: Callable[..., object], **given: object) -> object:
    """A body that runs blocks which it remembers, not those in its list."""
    listed, self.layers = self.layers, nn.ModuleList(self.remembered)
    try:
        return real(self, **given)
    finally:
        self.layers = listed


def test_a_body_that_no_longer_runs_the_blocks_of_its_list_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = built("llama")
    model.model.remembered = list(model.model.layers)
    require_paths(model, {"blocks"}, name="novels")
    capabilities._works.clear()
    monkeypatch.setattr(LlamaModel, "forward", wrapped(LlamaModel.forward, without_blocks))
    said = "^novels: hidden states cannot be read and exchanged in this llama model .*without its first block"
    with pytest.raises(ModelError, match=said):
        require_paths(model, {"blocks"}, name="novels")


def wrapped(real: Callable[..., object], change: Callable[..., object]) -> Callable[..., object]:
    """Another forward with the signature of the real one."""
    import functools

    @functools.wraps(real)
    def forward(self: nn.Module, input_ids: Tensor | None = None, **given: object) -> object:
        return change(self, real, input_ids=input_ids, **given)

    return forward


def test_a_state_that_is_changed_between_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = capabilities.prepare(built("llama"), {"input_ids": torch.arange(8)[None]}).run.__func__

    def noisy(self: object, *given: object, **named: object) -> object:
        hidden, kept = run(self, *given, **named)
        return hidden + 0.1 * hidden.roll(1, -1), kept

    monkeypatch.setattr("stlm_kd.models.partial_forward.PartialForward.run", noisy)
    with pytest.raises(ModelError, match=r"\(its logits differ between a run in parts and a whole run\)"):
        require_paths(built("llama"), {"blocks"}, name="novels")


def test_a_head_that_does_not_read_the_given_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "finish", lambda model, hidden, inputs: call(model, inputs))
    with pytest.raises(ModelError, match="its logits do not depend on the state after its last block"):
        require_paths(built("llama"), {"blocks"}, name="novels")


def test_attention_that_is_not_looked_up_or_computes_other_maps_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(attention_maps, "install_maps", lambda model, layers: None)
        with pytest.raises(ModelError, match="layer 0 does not use the registered attention function"):
            require_paths(built("llama"), {"maps"}, name="novels")

    def doubled(module: nn.Module, query: Tensor, *given: Tensor, **named: object) -> tuple[Tensor, Tensor]:
        return attention_maps.attention_with_maps(module, 2 * query, *given, **named)  # type: ignore[arg-type]

    try:
        AttentionInterface.register(attention_maps.NAME, doubled)
        with pytest.raises(ModelError, match=r"attention maps .*\(those of layer 0 differ from eager"):
            require_paths(built("llama"), {"maps"}, name="novels")
    finally:
        AttentionInterface.register(attention_maps.NAME, attention_maps.attention_with_maps)
    require_paths(built("llama"), {"maps"}, name="novels")


def without_positions(self: nn.Module, real: Callable[..., object], **given: object) -> object:
    return real(self, **{**given, "position_ids": None})


def test_positions_that_are_dropped_on_the_way_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("gpt2")
    check_forward(model, context=16, name="novels")
    monkeypatch.setattr(GPT2Model, "forward", wrapped(GPT2Model.forward, without_positions))
    with pytest.raises(ModelError, match="or continues its position ids"):
        check_forward(model, context=16, name="novels")


def test_an_input_that_a_forward_does_not_name_is_refused_and_not_dropped() -> None:
    class Renamed(nn.Module):
        def forward(self, input_ids: Tensor, **ignored: object) -> dict[str, Tensor]:
            raise AssertionError("it ran")

    model = built("llama")
    model.base_model.forward = Renamed().forward
    said = f"LlamaModel: with transformers {re.escape(transformers.__version__)} its forward has no position"
    with pytest.raises(ModelError, match=said):
        call(model.base_model, {"input_ids": torch.zeros(1, 2), "position_ids": torch.zeros(1, 2)})


def test_a_configuration_without_the_name_of_its_attention_is_refused() -> None:
    class Renamed(transformers.PretrainedConfig):
        def __getattribute__(self, name: str) -> object:
            if name == "_attn_implementation":
                raise AttributeError(name)
            return super().__getattribute__(name)

    model = built("llama")
    module = attention_maps.attention_module(model, 0)
    module.config = Renamed()
    with pytest.raises(ModelError, match="does not look its function up by the configuration's _attn"):
        attention_maps.install_maps(model, [0])


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2", "llama"])
def test_a_classifier_is_tried_too(family: str) -> None:
    config = pico_model(family).config
    config.pad_token_id = 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    assert refusal(model) is None


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("asked", ["kernels-community/flash-attn", "flash_attention_2", "eager"])
def test_attention_that_a_configuration_asks_for_is_not_followed(
    field: str, asked: str, tmp_path: Path
) -> None:
    pico_model("llama", tied=False).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: asked}))
    assert load_language_model(str(tmp_path), "clm").config._attn_implementation == "sdpa"


def test_an_index_that_names_pickled_weights_is_refused_by_name(tmp_path: Path) -> None:
    model = pico_model("llama", tied=False)
    model.config.save_pretrained(tmp_path)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(weights, tmp_path / "model-1.safetensors", metadata={"format": "pt"})
    torch.save(weights, tmp_path / "pytorch_model.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-1.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    load_language_model(str(tmp_path), "clm")
    index["weight_map"][sorted(weights)[0]] = "pytorch_model.bin"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    said = r"model\.safetensors\.index\.json: names pytorch_model\.bin; only safetensors weights are read"
    with pytest.raises(ModelError, match=said):
        load_language_model(str(tmp_path), "clm")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"weight_map": {"x": "part.safetensors"}}, id="no metadata"),
        pytest.param({"metadata": 3, "weight_map": {"x": "part.safetensors"}}, id="metadata are a number"),
        pytest.param({"metadata": {}, "weight_map": {}}, id="no weights"),
        pytest.param({"metadata": {}, "weight_map": ["part.safetensors"]}, id="a list"),
        pytest.param({"metadata": {}, "weight_map": {"x": 1}}, id="no name of a file"),
        pytest.param([], id="no mapping"),
    ],
)
def test_a_bad_index_is_blamed_itself_and_not_the_configuration(tmp_path: Path, content: object) -> None:
    pico_model("llama", tied=False).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "part.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError) as caught:
        load_language_model(str(tmp_path), "clm")
    assert str(caught.value).startswith(f"{index}: not an index of weights")
    assert "config.json" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "adapter_config.json",
            {"base_model_name_or_path": "a/b"},
            "an adapter's settings found",
        ),
        (
            "config.json",
            {"transformers_weights": "other.safetensors"},
            "transformers_weights 'other.safetensors'",
        ),
        (
            "model.safetensors.index.json",
            {"weight_map": {"x": "../x.safetensors"}},
            "not a file of that folder",
        ),
        ("model.safetensors.index.json", {"weight_map": {"x": "x.bin"}}, "names x.bin; only safetensors"),
    ],
)
def test_other_weights_than_the_folders_own_safetensors_are_refused(
    tmp_path: Path, name: str, content: dict[str, object], message: str
) -> None:
    pico_model("llama", tied=False).save_pretrained(tmp_path)
    load_language_model(str(tmp_path), "clm")
    file = tmp_path / name
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, **content}))
    with pytest.raises(ModelError, match=message):
        load_language_model(str(tmp_path), "clm")


@pytest.fixture(scope="module")
def teachers(road: Path) -> Callable[[str], Path]:
    """A saved teacher of a family under the students' tokenizer."""
    own = load_tokenizer(str(road / "own"))

    def teacher(family: str) -> Path:
        folder = road / f"capable-{family}"
        if not folder.exists():
            model = (
                pico_model(family, vocabulary=len(own))
                if family in ARCHITECTURES
                else built(family, vocab_size=len(own))
            )
            save_model(model, own, folder)
        return folder

    return teacher


distil = partial(stlm_kd, "distill", "-r", "taught.yaml", "train.steps=2")


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_a_recipe_looks_into_a_teacher_of_a_family_like_llama(
    family: str, teachers: Callable[[str], Path], place: Path, tmp_path: Path
) -> None:
    objectives = (
        "objectives=[{loss: labels}, {loss: hint, sites: full}, {loss: attention_mse, sites: full}, "
        "{loss: diito, alignment: full}]"
    )
    result = distil(
        f"teachers=[{{name: t, model: {teachers(family)}}}]", objectives, "--output-dir", str(tmp_path)
    )
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"


@pytest.mark.parametrize("family", ["stablelm", "phi"])
def test_a_recipe_takes_responses_of_any_family_and_refuses_to_look_into_it(
    family: str, teachers: Callable[[str], Path], place: Path, tmp_path: Path
) -> None:
    teacher = f"teachers=[{{name: t, model: {teachers(family)}}}]"
    responses = "objectives=[{loss: labels}, {loss: forward_kl}]"
    result = distil(teacher, responses, "--output-dir", str(tmp_path / "responses"))
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    inside = "objectives=[{loss: labels}, {loss: diito, alignment: full}]"
    result = distil(teacher, inside, "--output-dir", str(tmp_path / "inside"))
    assert result.exit_code != 0 and family in result.stderr and "Traceback" not in result.stderr


def test_a_recipe_that_needs_maps_is_refused_where_they_cannot_be_read_and_another_is_not(
    teachers: Callable[[str], Path], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = attention_maps.install_maps

    def unheard(model: PreTrainedModel, layers: Iterable[int]) -> None:
        if model.config.model_type != "mistral":
            install(model, layers)

    monkeypatch.setattr(attention_maps, "install_maps", unheard)
    teacher = f"teachers=[{{name: t, model: {teachers('mistral')}}}]"
    kl = "objectives=[{loss: labels}, {loss: forward_kl}]"
    assert distil(teacher, kl, "--output-dir", str(tmp_path / "kl")).exit_code == 0
    maps = "objectives=[{loss: labels}, {loss: attention_mse, sites: last}]"
    result = distil(teacher, maps, "--output-dir", str(tmp_path / "maps"))
    assert result.exit_code == 3, result.output
    said = f"{teachers('mistral')}: attention maps cannot be read in this mistral model with transformers"
    assert f"teachers[0] (t): {said} {transformers.__version__} (layer 0" in result.stderr
    assert not list((tmp_path / "maps").rglob("checkpoints"))
