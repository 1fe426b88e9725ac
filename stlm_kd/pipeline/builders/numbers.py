"""Numbers from recipes and model configurations."""

from __future__ import annotations

from typing import cast

from transformers import PretrainedConfig

from stlm_kd.recipe.schema.objective import Schedule
from stlm_kd.registry import Option
from stlm_kd.schedules import Number, Ramp, Steps


def number(value: float | Schedule) -> Number:
    """A constant, or a value scheduled over the training."""
    if not isinstance(value, Schedule):
        return value
    if value.schedule == "step-wise":
        return Steps(tuple(zip((0.0, *(value.at or ())), value.values, strict=True)))
    assert value.between is not None
    first, last = value.values
    return Ramp(value.schedule, first, last, *value.between)


def option(value: object) -> Option | Ramp | Steps:
    """A loss option, which may be scheduled."""
    return number(value) if isinstance(value, Schedule) else cast(Option, value)


def num_layers(config: PretrainedConfig) -> int:
    """Number of a model's blocks."""
    return int(config.get_text_config().num_hidden_layers)


def width(config: PretrainedConfig) -> int:
    """Dimension of a model's hidden states."""
    return int(config.get_text_config().hidden_size)
