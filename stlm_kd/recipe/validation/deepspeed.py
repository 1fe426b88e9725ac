"""A file with DeepSpeed's own settings: what of it is passed on, and what contradicts the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

from stlm_kd.artifacts.atomic import read_json
from stlm_kd.errors import MissingResourceError, did_you_mean
from stlm_kd.recipe.schema.fields import show
from stlm_kd.recipe.schema.root import Recipe
from stlm_kd.recipe.schema.training import DeepSpeed, Train
from stlm_kd.recipe.validation.conflict import Conflict, Place

AUTO = "auto"
_LARGEST = 2**20
"""Maximum number of bytes of such a file."""

_PASSED = {"comms_logger", "dump_state", "memory_breakdown", "steps_per_print", "wall_clock_breakdown"}
_PASSED_OF_ZERO = {
    "allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "overlap_comm",
    "reduce_bucket_size", "reduce_scatter", "stage3_gather_16bit_weights_on_model_save",
    "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_model_persistence_threshold",
    "stage3_module_granularity_threshold", "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size", "sub_group_size", "use_multi_rank_bucket_allreduce",
}  # fmt: skip
_PASSED_OF_OFFLOADING = {
    "offload_optimizer": {"buffer_count", "pin_memory"},
    "offload_param": {"buffer_count", "buffer_size", "max_in_cpu", "pin_memory"},
}
_OURS = {
    "activation_checkpointing": "train.gradient_checkpointing",
    "checkpoint": "train.checkpoint_every",
    "comet": "tracking",
    "csv_monitor": "tracking",
    "scheduler": "train.schedule",
    "tensorboard": "tracking",
    "wandb": "tracking",
}
"""Keys of settings that have another form in a recipe, and their place there."""

_OFF = {
    "fp16": "loss scaling is not supported; use train.precision",
    "bfloat16": "the old name of bf16",
    "torch_autocast": "use train.precision",
}


def deepspeed_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """All that contradicts the recipe in the file of its engine, as one conflict; none without a file.

    A missing file is none: ``pipeline.checks.requirements`` finds it.
    """
    engine = recipe.engine.deepspeed
    if engine is None or engine.config is None:
        return
    place: Place = ("engine", "deepspeed", "config")
    try:
        settings = read_settings(engine.config)
    except MissingResourceError:
        return
    except ValueError as error:
        yield (place,), str(error)
        return
    if faults := [*_faults(settings, recipe.train, engine)]:
        yield (place,), f"{engine.config}: {'; '.join(faults)}"


def engine_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Options of the engine that its stage, or the precision of all trainings, rules out."""
    engine = recipe.engine.deepspeed
    if engine is None:
        return
    least = {"none": 0, "optimizer": 1, "parameters": 3}[engine.offload]
    place: Place = ("engine", "deepspeed")
    if engine.zero < least:
        message = f"{engine.offload} found, which needs ZeRO stage {least}" + ("" if least == 3 else " to 3")
        yield ((*place, "offload"), (*place, "zero")), f"{message}, but zero is {engine.zero}"
    if engine.weights == "fp32":
        return
    if engine.zero < 2:
        message = f"bf16 found, which needs ZeRO stage 2 or 3, but zero is {engine.zero}"
        yield ((*place, "weights"), (*place, "zero")), message
    adapted = [teacher.adapt.precision for teacher in recipe.teachers if teacher.adapt is not None]
    if "bf16" not in adapted + ([] if recipe.adapts_only else [recipe.train.precision]):
        message = "bf16 found, which is for trainings with precision: bf16, but this recipe has none; set it"
        yield ((*place, "weights"), ("train", "precision")), message


def read_settings(file: str) -> dict[str, Any]:
    """The settings in a file.

    Raises:
        MissingResourceError: There is no such plain file, or it cannot be read.
        ValueError: It is no JSON, no mapping, or too large.
    """
    path = Path(file).expanduser()
    try:
        if (size := path.stat().st_size) > _LARGEST:
            raise ValueError(f"{file}: {size:,} bytes found; expected at most {_LARGEST:,}")
        found = read_json(path)
    except OSError as error:
        raise MissingResourceError(f"{file}: cannot be read ({error.strerror}); give another file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: byte {error.start} is not UTF-8") from error
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(file) else f"{file}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: {show(found)} found; expected a mapping of DeepSpeed's settings")
    return found


def passed_settings(file: str) -> dict[str, Any]:
    """The settings of a checked file that DeepSpeed gets; those that the recipe decides are left out."""
    found = read_settings(file)
    zero = _given(found.get("zero_optimization"))
    inner = {name: zero[name] for name in zero.keys() & _PASSED_OF_ZERO}
    for part, names in _PASSED_OF_OFFLOADING.items():
        values = _given(zero.get(part))
        passed = {name: values[name] for name in values.keys() & names}
        inner |= {part: passed} if passed else {}
    return {name: found[name] for name in _given(found).keys() & _PASSED} | {"zero_optimization": inner}


def _given(values: object) -> dict[str, Any]:
    """The entries of a mapping that are not left to others."""
    return {k: v for k, v in values.items() if v != AUTO} if isinstance(values, Mapping) else {}


def _faults(settings: Mapping[str, Any], train: Train, engine: DeepSpeed) -> Iterator[str]:
    decided = {"gradient_clipping": (train.clip or 0.0, "train.clip")}
    rows = train.effective_batch
    micro = train.micro_batch or rows
    decided["train_batch_size"] = rows, "train.effective_batch"
    decided["train_micro_batch_size_per_gpu"] = micro, "train.micro_batch"
    mappings = {"zero_optimization", "optimizer", "bf16", "gradient_accumulation_steps", *_OFF}
    known = {*decided, *mappings, *_OURS, *_PASSED}
    for key, value in _given(settings).items():
        if key in decided:
            yield from _differs(key, value, *decided[key])
        elif key == "gradient_accumulation_steps":
            if type(value) is not int or value < 1 or rows % (micro * value):
                yield f"{key}: {show(value)} found, expected a divisor of {rows // micro} (train.micro_batch)"
        elif key == "bf16":
            is_bf16 = engine.weights == "bf16"
            given = value.get("enabled", AUTO) if isinstance(value, Mapping) else value
            if given is not is_bf16 and given != AUTO:
                expected = str(is_bf16).lower()
                yield f"bf16.enabled: {show(given)} found, expected {expected} (engine.deepspeed.weights)"
        elif key in _OFF:
            if not isinstance(value, Mapping) or value.get("enabled", False) not in (False, AUTO):
                yield f"{key}.enabled: expected false: {_OFF[key]}"
        elif key in _OURS:
            yield f"{key}: found, expected nothing: {_OURS[key]} of the recipe decides"
        elif key == "optimizer":
            yield from _of_optimizer(value, train)
        elif key == "zero_optimization":
            yield from _of_zero(value, engine)
        elif key in _PASSED:
            yield from _simple(key, value, is_mapping=key == "comms_logger")
        else:
            yield f"{key}: not a setting that is passed on{did_you_mean(key, known)}"


def _differs(key: str, value: object, expected: object, whose: str) -> Iterator[str]:
    if isinstance(value, bool) or value != expected:
        yield f"{key}: {show(value)} found, expected {expected} ({whose})"


def _simple(key: str, value: object, *, is_mapping: bool = False) -> Iterator[str]:
    """A fault if a value that is passed on is of another kind than DeepSpeed reads."""
    if is_mapping and not isinstance(value, Mapping):
        yield f"{key}: {show(value)} found, expected a mapping"
    elif not is_mapping and (not isinstance(value, (bool, int, float)) or not 0 <= value < inf):
        yield f"{key}: {show(value)} found, expected true, false or a number of at least 0"


def _of_optimizer(value: object, train: Train) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"optimizer: {show(value)} found, expected a mapping"
        return
    kind = _given(value).get("type", "AdamW")
    if str(kind).lower() != "adamw" or not train.bias_correction:
        expected = "AdamW" if train.bias_correction else "nothing, since train.bias_correction is false"
        yield f"optimizer.type: {show(kind)} found, expected {expected}"
    names = {"lr": "learning_rate", "betas": "betas", "eps": "eps", "weight_decay": "weight_decay"}
    for key, found in _given(value.get("params")).items():
        if key not in names:
            yield f"optimizer.params.{key}: not a setting of a recipe's AdamW{did_you_mean(key, names)}"
            continue
        expected = getattr(train, names[key])
        same = list(expected) == found if isinstance(expected, tuple) else None
        if not same:
            yield from _differs(f"optimizer.params.{key}", found, expected, f"train.{names[key]}")


def _of_zero(value: object, engine: DeepSpeed) -> Iterator[str]:
    place = "zero_optimization"
    if not isinstance(value, Mapping):
        yield f"{place}: {show(value)} found, expected a mapping"
        return
    for key, found in _given(value).items():
        if key == "stage":
            yield from _differs(f"{place}.stage", found, engine.zero, "engine.deepspeed.zero")
        elif key in _PASSED_OF_OFFLOADING:
            yield from _of_offloading(f"{place}.{key}", key, found, engine)
        elif key in _PASSED_OF_ZERO:
            yield from _simple(f"{place}.{key}", found)
        else:
            known = {"stage", *_PASSED_OF_OFFLOADING, *_PASSED_OF_ZERO}
            yield f"{place}.{key}: not a setting that is passed on{did_you_mean(key, known)}"


def _of_offloading(place: str, part: str, value: object, engine: DeepSpeed) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{place}: {show(value)} found, expected a mapping"
        return
    is_offloaded = engine.offload == "parameters" or (
        engine.offload == "optimizer" and part == "offload_optimizer"
    )
    expected = "cpu" if is_offloaded else "none"
    yield from _differs(
        f"{place}.device", _given(value).get("device", expected), expected, "engine.deepspeed.offload"
    )
    known = {"device", *_PASSED_OF_OFFLOADING[part]}
    for key, found in _given(value).items():
        if key not in known:
            yield f"{place}.{key}: not a setting that is passed on{did_you_mean(key, known)}"
        elif key != "device":
            yield from _simple(f"{place}.{key}", found)
