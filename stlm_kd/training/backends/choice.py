"""Selection and cleanup of the training engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from stlm_kd.training.backends.ddp import PlainEngine
from stlm_kd.training.config import TrainingConfig
from stlm_kd.training.processes import Processes, plain_accelerator
from stlm_kd.training.protocols import Engine


@contextmanager
def open_engine(step: nn.Module, settings: TrainingConfig) -> Iterator[tuple[Processes, Engine]]:
    """Open the engine for these settings; restores the module afterwards."""
    engine: Engine
    with ExitStack() as stack:
        if settings.zero is None:
            processes = Processes(plain_accelerator())
            engine = PlainEngine(step, settings, processes)
        else:
            from stlm_kd.training.backends.deepspeed import DeepSpeedEngine
            from stlm_kd.training.backends.deepspeed_setup import deepspeed_accelerator, surroundings
            from stlm_kd.training.backends.zero3 import Zero3Engine

            stack.enter_context(surroundings())
            processes = Processes(deepspeed_accelerator(step, settings))
            engine = (Zero3Engine if settings.zero == 3 else DeepSpeedEngine)(step, settings, processes)
        try:
            yield processes, engine
            engine.finish()
        finally:
            step.zero_grad(set_to_none=True)
            engine.close()
