"""A teacher whose outputs are read from a cache on disk."""

from __future__ import annotations

import torch

from stlm_kd.data.labelled.batches import AnyBatch, on_cpu
from stlm_kd.errors import CheckpointError
from stlm_kd.models.outputs import ModelOutputs, OutputSpec
from stlm_kd.teachers.cache.reader import TeacherCache, distribution, states
from stlm_kd.teachers.protocol import TeacherOutput


class CachedTeacher:
    """Reads a teacher's outputs for any batch of the training data, whatever its order, size and process.

    Args:
        cache: Cache of the training data.
        needs: All outputs that will be requested.

    Raises:
        CheckpointError: The cache lacks hidden states that are requested.
    """

    def __init__(self, cache: TeacherCache, needs: OutputSpec) -> None:
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
