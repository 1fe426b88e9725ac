"""DeepSpeed's own settings in a file beside the recipe."""

import json
from pathlib import Path

import pytest

from stlm_kd.errors import RecipeError
from stlm_kd.pipeline.checks.requirements import missing_here
from stlm_kd.pipeline.context import context_for
from stlm_kd.recipe import load, recipe_hash
from stlm_kd.recipe.describe import describe
from stlm_kd.recipe.load import checked
from stlm_kd.recipe.locate import Source, read_source

RECIPE = """
task: clm
student: {tokenizer: {train: bpe, size: 300}, architecture: {model_type: llama}}
data: {train: {sample: train}, context: 16}
objectives: [{loss: labels}]
train: {steps: 2, effective_batch: 32, micro_batch: 4, clip: 0.5, learning_rate: 1e-3}
engine: {deepspeed: {zero: 3, offload: optimizer, config: settings.json}}
"""
EQUAL = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": 4,
    "gradient_clipping": 0.5,
    "bf16": {"enabled": False},
    "optimizer": {"type": "AdamW", "params": {"lr": 0.001, "betas": [0.9, 0.95], "eps": "auto"}},
    "comms_logger": {"enabled": True},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": False},
        "offload_param": {"device": "none"},
        "reduce_bucket_size": "auto",
        "sub_group_size": 1000,
    },
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "settings.json").write_text(json.dumps(EQUAL))
    return tmp_path / "recipe.yaml"


def refusal(recipe: Path, settings: object) -> str:
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (recipe.parent / "settings.json").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(str(recipe))
    (found,) = caught.value.faults
    return found.message


def test_what_the_recipe_decides_is_left_out_and_the_rest_passed_on(recipe: Path, tmp_path: Path) -> None:
    loaded = load(str(recipe))
    context = context_for(loaded, tmp_path, resume=True, trust_remote_code=False, run_name="run")
    assert (context.zero, context.deepspeed.offload) == (3, "optimizer")
    assert context.deepspeed.settings == {
        "comms_logger": {"enabled": True},
        "zero_optimization": {"sub_group_size": 1000, "offload_optimizer": {"pin_memory": False}},
    }


def test_all_contradictions_are_in_one_message(recipe: Path) -> None:
    changed = {
        "train_batch_size": 16,
        "gradient_accumulation_steps": 3,
        "fp16": {"enabled": True},
        "bf16": {"enabled": True},
        "scheduler": {"type": "WarmupLR"},
        "optimizer": {"type": "Lamb", "params": {"lr": 0.1, "beta": 1}},
        "gradient_cliping": 1.0,
        "zero_optimization": {"stage": 2, "overlap_com": True, "reduce_bucket_size": "many"},
    }
    found = refusal(recipe, changed)
    for part in (
        "train_batch_size: 16 found, expected 32 (train.effective_batch)",
        "gradient_accumulation_steps: 3 found, expected a divisor of 8 (train.micro_batch)",
        "fp16.enabled: expected false: loss scaling is not supported",
        "bf16.enabled: true found, expected false (engine.deepspeed.weights)",
        "scheduler: found, expected nothing: train.schedule",
        "optimizer.type: 'Lamb' found, expected AdamW",
        "optimizer.params.lr: 0.1 found, expected 0.001 (train.learning_rate)",
        "optimizer.params.beta: not a setting of a recipe's AdamW (did you mean betas?)",
        "gradient_cliping: not a setting that is passed on (did you mean gradient_clipping?)",
        "zero_optimization.stage: 2 found, expected 3 (engine.deepspeed.zero)",
        "zero_optimization.overlap_com: not a setting that is passed on (did you mean overlap_comm?)",
        "zero_optimization.reduce_bucket_size: 'many' found, expected true, false or a number",
    ):
        assert part in found


@pytest.mark.parametrize(
    ("part", "device", "message"),
    [("offload_optimizer", "none", "expected cpu"), ("offload_param", "cpu", "expected none")],
)
def test_an_offload_that_the_recipe_has_not_is_refused(
    recipe: Path, part: str, device: str, message: str
) -> None:
    found = refusal(recipe, {"zero_optimization": {part: {"device": device}}})
    assert f"zero_optimization.{part}.device: '{device}' found, {message} (engine.deepspeed.offload)" in found


def test_a_number_too_large_for_a_float_is_refused(recipe: Path) -> None:
    """JSON's 1e400 is read as infinite."""
    found = refusal(recipe, '{"zero_optimization": {"stage3_max_reuse_distance": 1e400}}')
    assert "stage3_max_reuse_distance: inf found, expected true, false or a number" in found


def with_bf16_weights(recipe: Path, *, zero: int = 2, precision: str = "bf16") -> Path:
    text = recipe.read_text().replace("learning_rate: 1e-3", f"learning_rate: 1e-3, precision: {precision}")
    engine = f"{{zero: {zero}, weights: bf16, config: settings.json}}"
    recipe.write_text(text.replace("{zero: 3, offload: optimizer, config: settings.json}", engine))
    return recipe


def test_bf16_weights_agree_with_a_file_that_has_them_alone(recipe: Path, tmp_path: Path) -> None:
    with_bf16_weights(recipe)
    (recipe.parent / "settings.json").write_text('{"bf16": {"enabled": true}}')
    context = context_for(load(str(recipe)), tmp_path, resume=True, trust_remote_code=False, run_name="run")
    assert (context.deepspeed.weights, context.deepspeed.settings) == ("bf16", {"zero_optimization": {}})
    assert "bf16 weights" in describe(load(str(recipe)))
    found = refusal(recipe, {"bf16": {"enabled": False}})
    assert "bf16.enabled: false found, expected true (engine.deepspeed.weights)" in found


@pytest.mark.parametrize(
    ("zero", "precision", "message"),
    [
        (0, "bf16", "bf16 found, which needs ZeRO stage 2 or 3, but zero is 0"),
        (1, "bf16", "bf16 found, which needs ZeRO stage 2 or 3, but zero is 1"),
        (3, "fp32", "bf16 found, which is for trainings with precision: bf16, but this recipe has none"),
    ],
)
def test_bf16_weights_where_none_can_be_are_refused(
    recipe: Path, zero: int, precision: str, message: str
) -> None:
    assert message in refusal(with_bf16_weights(recipe, zero=zero, precision=precision), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[1]", "a list of 1 found; expected a mapping"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ("[" * 100_000, "nested too deeply"),
        (" " * 2_000_000, "2,000,000 bytes found; expected at most 1,048,576"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(recipe: Path, text: str, message: str) -> None:
    assert message in refusal(recipe, text)


def test_a_missing_file_is_a_missing_requirement(recipe: Path) -> None:
    (recipe.parent / "settings.json").unlink()
    found = [fault for fault in missing_here(load(str(recipe))) if fault.place == "engine.deepspeed.config"]
    assert [fault.message.partition(": ")[2] for fault in found] == [
        "cannot be read (No such file or directory); give another file"
    ]


def test_a_recipe_from_elsewhere_names_no_settings(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="settings are a file of this machine; to use it, give"):
        checked(read_source(Source(recipe, "hf://some/recipe", recipe.parent)))


def test_the_hash_is_that_of_the_recipe_as_written(recipe: Path, tmp_path: Path) -> None:
    before = recipe_hash(load(str(recipe)))
    other = tmp_path / "other"
    other.mkdir()
    for name in ("recipe.yaml", "settings.json"):
        (tmp_path / name).rename(other / name)
    assert recipe_hash(load(str(other / "recipe.yaml"))) == before
