"""A teacher that is not there: what it said of each row is read from its cache."""

from __future__ import annotations

import torch

from stlm_kd.data.labelled.batches import AnyBatch, on_cpu
from stlm_kd.errors import CheckpointError
from stlm_kd.models.outputs import ModelOutputs, OutputSpec
from stlm_kd.teachers.cache.reader import TeacherCache, distribution, on_device, states
from stlm_kd.teachers.protocol import TeacherOutput


class CachedTeacher:
    """Answers batches of the training data, whatever their order, size and process.

    Args:
        cache: Of the data that is trained on.
        needs: All that will ever be asked for.

    Raises:
        CheckpointError: States are asked for that the cache does not keep.
    """

    def __init__(self, cache: TeacherCache, needs: OutputSpec) -> None:
        missing = sorted({str(site) for site in needs.sites} - cache.layout.states.keys())
        if missing:
            raise CheckpointError(
                f"{cache.folder}: keeps no hidden states at {', '.join(missing)}, which an objective compares"
                "; make one whose states name them (cache: {states: […]})"
            )
        self.cache = cache

    @torch.no_grad()
    def __call__(self, batch: AnyBatch, needs: OutputSpec) -> TeacherOutput:
        """See ``Teacher``; attention maps and runs after interventions are not kept.

        Raises:
            CheckpointError: A row of the batch is not in the cache, or reads otherwise.
        """
        layout, device = self.cache.layout, batch.input_ids.device
        assert not needs.maps and needs.resume is None, "refused when the recipe is read"
        found = self.cache.find(on_cpu(batch))
        kept = {site: state.to(device) for site, state in states(found, layout).items()}
        said = on_device(distribution(found, layout), device)
        wanted = {site: kept[str(site)] for site in needs.sites}
        return TeacherOutput(said, ModelOutputs(states=wanted))
