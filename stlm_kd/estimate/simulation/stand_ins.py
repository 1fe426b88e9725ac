"""What a step reads beside its models: batches, pools of rows, teachers; with the right shapes only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from stlm_kd.data.batch import IGNORED, Batch, Integers, batches_with_sources
from stlm_kd.data.dealing import sources
from stlm_kd.data.labelled.batches import AnyBatch, ExampleBatch
from stlm_kd.interventions import SourceInputs, WordTokens
from stlm_kd.losses import TopKTail
from stlm_kd.models.outputs import ModelOutputs, OutputSpec
from stlm_kd.recipe import Recipe
from stlm_kd.teachers.cache.format import Layout
from stlm_kd.teachers.cached import CachedTeacher
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.protocol import TeacherOutput
from stlm_kd.teachers.targets import Logits


def batch_of(recipe: Recipe, vocabulary: int, rows: int, *, pairs: bool) -> AnyBatch:
    """A micro-batch of full rows, each one document; in pairs, with the sources of interventions."""

    def made(places: Integers) -> AnyBatch:
        return _rows(recipe, vocabulary, places)

    own = np.arange(rows)
    if not pairs:
        return made(own)
    (found,) = batches_with_sources(made, [own], sources(np.arange(max(rows, 2))))
    return found


def _rows(recipe: Recipe, vocabulary: int, places: Integers) -> AnyBatch:
    shape, length = (len(places), recipe.data.context), recipe.data.context
    ids = torch.arange(len(places) * length).view(shape) % vocabulary
    attended = torch.ones((), dtype=torch.bool).expand(shape)
    numbers = torch.from_numpy(np.asarray(places, np.int64))
    if recipe.language_task is None:
        kind = torch.float32 if recipe.task == "regression" else torch.int64
        return ExampleBatch(ids, attended, None, torch.zeros(len(places), dtype=kind), numbers)
    labels = ids.clone()
    if recipe.data.masked_share is None:
        labels = labels.roll(-1, 1)
        labels[:, -1] = IGNORED
    else:
        kept = max(1, round(recipe.data.masked_share * length))
        labels[:, torch.linspace(0, length - 1, kept).long()] = -1
        labels = torch.where(labels == -1, ids, IGNORED)
    positions = torch.arange(length).expand(shape)
    return Batch(ids, attended, labels, torch.ones((), dtype=torch.int64).expand(shape), positions, numbers)


class Pool:
    """Rows of a training text from which sources of interventions are drawn."""

    def __init__(self, recipe: Recipe, vocabulary: int) -> None:
        self.recipe, self.vocabulary = recipe, vocabulary

    def __len__(self) -> int:
        return 1 << 20

    def number(self, place: int) -> int:
        return place

    def batch(self, places: Sequence[int], generators: Sequence[np.random.Generator]) -> AnyBatch:
        return _rows(self.recipe, self.vocabulary, np.asarray(places, np.int64))


def supplies_of(recipe: Recipe, vocabulary: int) -> SourceInputs:
    """What sources of interventions draw from: a pool of rows, and tokens without spelling."""
    return SourceInputs(pool=Pool(recipe, vocabulary), lexicon=WordTokens(np.arange(vocabulary), {}))


RUNNING, PROJECTING = "running", "projecting"

During = Callable[[tuple[str, str]], AbstractContextManager[None]]
"""Notes that a teacher, by name, is ``RUNNING`` or ``PROJECTING``: its head is kept whole."""


class TracedTeacher(LiveTeacher):
    """A teacher that says when its weights must be on the device."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: int,
        *,
        name: str,
        during: During,
    ) -> None:
        super().__init__(model, vocabulary, name=name)
        self.during = during

    @contextmanager
    def _on(self, device: torch.device) -> Iterator[torch.device]:
        with self.during((self.name, RUNNING)):
            yield device

    def whole_head(self) -> AbstractContextManager[None]:
        headless = self.model.get_output_embeddings() is None
        return nullcontext() if headless else self.during((self.name, PROJECTING))


class CachedStandIn(CachedTeacher):
    """Outputs of the shapes that a cache of this layout has."""

    def __init__(self, layout: Layout, mode: FakeTensorMode) -> None:
        self.layout, self.mode = layout, mode

    def __call__(self, batch: AnyBatch, needs: OutputSpec) -> TeacherOutput:
        layout, shape = self.layout, tuple(batch.input_ids.shape)
        with self.mode:
            states = {site: torch.zeros(*shape, layout.states[str(site)]) for site in needs.sites}
            observed = ModelOutputs(states=states)
            if layout.logits:
                return TeacherOutput(Logits(torch.zeros(shape[0], layout.vocabulary)), observed)
            scalar = torch.zeros(shape)
            target = TopKTail(
                torch.zeros(*shape, layout.head + layout.draws, dtype=torch.int64),
                torch.zeros(*shape, layout.head),
                scalar,
                scalar,
                layout.temperature,
                layout.vocabulary,
                scalar,
            )
        return TeacherOutput(target, observed)
