"""A teacher whose outputs are read from a cache on disk."""

from __future__ import annotations

from pathlib import Path

import torch

from stlm_kd.data.labelled.batches import AnyBatch, on_cpu
from stlm_kd.errors import CheckpointError
from stlm_kd.models.outputs import ModelOutputs, OutputSpec
from stlm_kd.teachers.cache.reader import TeacherCache, distribution, states
from stlm_kd.teachers.protocol import TeacherOutput


class CachedTeacher:
    """Reads a teacher's outputs for any batch of the training data, whatever its order, size and process.

    Args:
        cache: Cache of the training data, or its folder, as written by ``stlm-kd teacher cache``.
        needs: All outputs that will be requested.

    Raises:
        MissingResourceError: The folder holds no cache.
        CheckpointError: The cache is damaged, or lacks hidden states that are requested.

    It is a teacher of a step like any other; a batch's ``example_ids`` are the rows of the cache:

    >>> import numpy as np, stlm_kd, tempfile, torch, transformers
    >>> from pathlib import Path
    >>> from stlm_kd.distillation.entries import batch_of
    >>> from stlm_kd.teachers.cache.writer import Work, complete, write
    >>> from stlm_kd.teachers.cache.format import Layout
    >>> sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes))
    >>> batch = batch_of({"input_ids": torch.tensor([[7, 3, 9], [4, 4, 1]])}, model)
    >>> sizes = {"items_per_shard": 2, "seed": 0, "micro_batch": 2, "batch": lambda rows, variants: batch}
    >>> work = Work(Layout(50, head=10, draws=5), rows=2, variants=1, **sizes)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder), work, stlm_kd.LiveTeacher(model), [0], done=lambda tokens: None)
    ...     _ = complete(Path(folder), work, flops=None, made_of={}, source={})
    ...     teacher = stlm_kd.CachedTeacher(folder)
    ...     step = stlm_kd.DistillationStep(model, [{"loss": "forward_kl"}], teachers={"a": teacher})
    ...     sorted(step(batch).sums)  # over the 10 largest and 5 drawn tokens
    ['forward_kl', 'labels']
    """

    def __init__(self, cache: TeacherCache | str | Path, needs: OutputSpec = OutputSpec()) -> None:  # noqa: B008
        if not isinstance(cache, TeacherCache):
            cache = TeacherCache.open(Path(cache))
        missing = sorted({str(site) for site in needs.sites} - cache.layout.states.keys())
        if missing:
            raise CheckpointError(
                f"{cache.folder}: contains no hidden states at {', '.join(missing)}, which an objective "
                "compares; build a cache that includes them (cache: {states: […]})"
            )
        self.cache = cache

    @torch.no_grad()
    def __call__(self, batch: AnyBatch, needs: OutputSpec) -> TeacherOutput:
        """Read the outputs of a batch; attention maps and outputs after interventions are not cached.

        Raises:
            CheckpointError: A row of the batch is not in the cache, or its tokens differ.
        """
        layout, device = self.cache.layout, batch.input_ids.device
        assert not needs.maps and needs.resume is None, "refused when the recipe is read"
        found = self.cache.find(on_cpu(batch))
        kept = {site: state.to(device) for site, state in states(found, layout).items()}
        target = distribution(found, layout).to(device)
        wanted = {site: kept[str(site)] for site in needs.sites}
        return TeacherOutput(target, ModelOutputs(states=wanted))
