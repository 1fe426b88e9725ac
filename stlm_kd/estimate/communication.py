"""The collective operations of an optimizer step, by engine and ZeRO stage.

The formulas are those of ``tests/slow/test_collectives.py``, which counts the operations of real trainings.
DeepSpeed's settings decide on the operations of ZeRO 1 and 2, and not the backend: unless
``use_multi_rank_bucket_allreduce`` is false, gradients are all-reduced, also with ``reduce_scatter``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stlm_kd.recipe import Recipe
from stlm_kd.recipe.validation.deepspeed import passed_settings

Zero = Literal[0, 1, 2, 3]
Kind = Literal["all-reduce", "reduce", "reduce-scatter", "all-gather"]

_PASSES: dict[Kind, int] = {"all-reduce": 2, "reduce": 1, "reduce-scatter": 1, "all-gather": 1}
"""How often each device sends its share of the tensors: a ring's all-reduce scatters sums, then gathers."""


@dataclass(frozen=True, slots=True)
class Collective:
    """One kind of operation in an optimizer step.

    Attributes:
        kind: The operation.
        of: What it is of.
        times: In a step; each time all tensors at once, which the libraries split into buckets.
        num_bytes: Of all these tensors, each time.
    """

    kind: Kind
    of: Literal["gradients", "weights", "small weights"]
    times: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ZeroSettings:
    """What the operations depend on, beside the stage.

    Attributes:
        largest_whole: Elements up to which stage 3 leaves a weight whole on each device between its uses.
        most_whole: Elements of all such weights, at most.
        most_kept: Trained parameters up to which stage 3 keeps what is gathered from the forward pass to the
            backward pass.
        reduces_to_owner: Whether stages 1 and 2 reduce gradients to the process that needs them.
        weight_bytes: Of an element of weights and gradients that are sent at stages 2 and 3.
    """

    largest_whole: int = 10**5
    most_whole: int = 2**63 - 1
    most_kept: int = 10**9
    reduces_to_owner: bool = False
    weight_bytes: int = 4

    @classmethod
    def of(cls, recipe: Recipe) -> ZeroSettings:
        """Those of a recipe's engine, and of its file of DeepSpeed's own settings."""
        engine = recipe.engine.deepspeed
        if engine is None:
            return cls()
        zero: dict[str, Any] = {}
        if engine.config is not None:
            zero = passed_settings(engine.config)["zero_optimization"]
        fetched_ahead = min(
            zero.get("stage3_prefetch_bucket_size", 5 * 10**7), zero.get("stage3_max_live_parameters", 10**9)
        )
        is_cast = engine.weights == recipe.train.precision == "bf16"
        return cls(
            int(zero.get("stage3_param_persistence_threshold", cls().largest_whole)),
            int(zero.get("stage3_model_persistence_threshold", cls().most_whole)),
            int(max(zero.get("stage3_max_reuse_distance", cls().most_kept), fetched_ahead)),
            bool(zero.get("reduce_scatter", True)) and not zero.get("use_multi_rank_bucket_allreduce", True),
            2 if is_cast else 4,
        )

    def bytes_at(self, zero: Zero) -> int:
        """Bytes of an element of the module's weights at a stage."""
        return self.weight_bytes if zero >= 2 else 4

    def whole(self, sizes: Sequence[int]) -> int:
        """How many of the trained parameters, by weight, stage 3 leaves whole.

        >>> ZeroSettings(largest_whole=10, most_whole=15).whole([8, 11, 9, 7])
        15
        """
        total = 0
        for size in sizes:
            if size <= self.largest_whole and total + size <= self.most_whole:
                total += size
        return total


def collectives(
    sizes: Sequence[int], zero: Zero, micro_batches: int, settings: ZeroSettings
) -> tuple[Collective, ...]:
    """The operations on weights and gradients in an optimizer step on several devices.

    Those of counts, losses and norms, of a few bytes each, are left out.

    Args:
        sizes: Parameters of each trained weight.
        zero: 0 is DDP, and DeepSpeed's stage 0.
        micro_batches: Of each device.
        settings: Of the engine.

    >>> [(one.kind, one.times) for one in collectives([10**6, 10], 2, 3, ZeroSettings())]
    [('all-reduce', 3), ('all-gather', 1)]
    """
    return tuple(one for one in _operations(sizes, zero, micro_batches, settings) if one.num_bytes)


def _operations(
    sizes: Sequence[int], zero: Zero, micro_batches: int, settings: ZeroSettings
) -> Iterator[Collective]:
    trained, element = sum(sizes), settings.bytes_at(zero)
    every = trained * element
    if zero == 3:
        whole = settings.whole(sizes)
        gathered = 1 if trained <= settings.most_kept else 2
        yield Collective("all-gather", "weights", gathered * micro_batches, (trained - whole) * element)
        yield Collective("reduce-scatter", "gradients", micro_batches, every)
        yield Collective("all-gather", "small weights", 1, whole * element)
        return
    to_owner = zero > 0 and settings.reduces_to_owner
    yield Collective(
        "reduce" if to_owner else "all-reduce", "gradients", micro_batches if zero == 2 else 1, every
    )
    if zero > 0:
        yield Collective("all-gather", "weights", 1, every)


def sent_bytes(operations: Sequence[Collective], gpus: int) -> int:
    """Bytes that each device sends, by rings.

    >>> parts = {zero: collectives([1000], zero, 4, ZeroSettings(largest_whole=0)) for zero in range(4)}
    >>> [sent_bytes(parts[zero], 8) for zero in range(4)]
    [7000, 10500, 31500, 28000]
    """
    total = sum(_PASSES[one.kind] * one.times * one.num_bytes for one in operations)
    return total * (gpus - 1) // gpus
