"""Batches of labelled examples, and which examples make which optimizer step; B rows, T positions.

Everything is a function of the step's number and the seed, as in ``stlm_kd.data.batches``. The examples of a
step are drawn first and then grouped into micro-batches by length, to reduce padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from stlm_kd.data.batch import IGNORED, Batch, Integers, Sources, batches_with_sources
from stlm_kd.data.dealing import dealt, sources
from stlm_kd.data.labelled.encoding import Encoded, EncodedTexts
from stlm_kd.data.labelled.examples import Labels
from stlm_kd.lazy import np, torch

if TYPE_CHECKING:
    from torch import Tensor


FORWARD_COST = 100
"""Overhead of a forward and backward pass, in positions, on a CPU; on a GPU, thousands."""

_ORDER = 0  # purpose of a random generator, part of its seed


Labelled = Literal["text", "words", "span"]


@dataclass(frozen=True, slots=True)
class ExampleBatch:
    """B examples, padded on the right; the first three fields as in ``Encoded``.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) bool.
        token_type_ids: (B, T) int64, or None.
        labels: (B,): int64 classes, or float32 numbers. A row of padding has ``IGNORED``, or NaN. For words
            (B, T): at some positions a class, elsewhere ``IGNORED``; for a span (B, 2): the positions of its
            first and last token.
        example_ids: (B,) int64, the example's index in its data set: stable over epochs, shuffles and ranks;
            -1 for a row of padding, for a rank that has no example when other ranks have one.
        others: The same examples under other tokenizers, by the name of the teacher that uses it.
        of: What the labels refer to: a whole example, its words, or a span of it.
        sources: As in ``Batch``.
        origin: The same batch on the CPU, if it was moved from there.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None
    labels: Tensor
    example_ids: Tensor
    others: Mapping[str, Encoded] = field(default_factory=dict)
    of: Labelled = "text"
    sources: Sources | None = field(default=None, repr=False, compare=False)
    origin: ExampleBatch | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def own(self) -> Encoded:
        """The rows under the student's tokenizer."""
        return Encoded(self.input_ids, self.attention_mask, self.token_type_ids)

    def reading(self, teacher: str) -> Encoded:
        """The rows under a teacher's own tokenizer, or else under the student's."""
        return self.others.get(teacher, self.own)

    def to(self, device: torch.device) -> ExampleBatch:
        """The same batch on a device."""
        own = self.own.to(device)
        moved = ExampleBatch(
            own.input_ids,
            own.attention_mask,
            own.token_type_ids,
            self.labels.to(device, non_blocking=True),
            self.example_ids.to(device, non_blocking=True),
            {name: encoded.to(device) for name, encoded in self.others.items()},
            self.of,
            self.sources,
        )
        object.__setattr__(moved, "origin", self if self.input_ids.is_cpu else self.origin)
        return moved

    def num_tokens(self) -> int:
        """Non-padding positions under the student's tokenizer."""
        return int(self.attention_mask[self.example_ids >= 0].sum())


AnyBatch = Batch | ExampleBatch
"""One micro-batch of packed text or of labelled examples."""


def on_cpu(batch: AnyBatch) -> AnyBatch:
    """The same batch on the CPU, without waiting for a device if it was moved from there."""
    if batch.input_ids.is_cpu:
        return batch
    if batch.origin is not None:
        return batch.origin
    found = batch.to(torch.device("cpu"))
    torch.accelerator.synchronize()  # the copy is asynchronous and must be complete before it is read
    return found


def example_batch(
    own: EncodedTexts,
    places: Integers,
    labels: Tensor,
    *,
    others: Mapping[str, EncodedTexts] | None = None,
    of: Labelled = "text",
) -> ExampleBatch:
    """Examples by index, in this order; one row of padding if there are none.

    ``places``, (B,), are the indices in all examples, ``own`` under the student's tokenizer and ``others``
    under those of the teachers of these names; ``labels``, (B, …), may be empty without examples.
    """
    rows = own.rows(places)
    if not len(labels):
        nothing = torch.nan if labels.is_floating_point() else IGNORED
        labels = labels.new_full((1, *labels.shape[1:]), nothing)
    return ExampleBatch(
        rows.input_ids,
        rows.attention_mask,
        rows.token_type_ids,
        labels,
        torch.from_numpy(places) if len(places) else torch.tensor([-1]),
        {name: texts.rows(places) for name, texts in (others or {}).items()},
        of,
    )


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """N tokenised examples: ``labels`` as in ``Examples``, ``own`` and ``others`` as in ``example_batch``."""

    labels: Labels
    own: EncodedTexts
    others: Mapping[str, EncodedTexts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert all(len(texts) == len(self.labels) for texts in (self.own, *self.others.values()))

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, places: Integers) -> ExampleBatch:
        """These examples in this order; one row of padding if there are none."""
        return example_batch(self.own, places, torch.from_numpy(self.labels[places]), others=self.others)


class Tokenised(Protocol):
    """Tokenised examples of some kind, from which batches are built."""

    @property
    def own(self) -> EncodedTexts:
        """The examples under the student's tokenizer."""

    def __len__(self) -> int: ...

    def batch(self, places: Integers) -> ExampleBatch:
        """These examples in this order; one row of padding if there are none."""


class ExampleStream:
    """The micro-batches of every optimizer step, reshuffled in each epoch.

    In an epoch every example occurs once; the last step holds the remaining examples. A step's examples
    (``effective_batch``, over all ranks) are grouped by length, the longest first, into the same number of
    micro-batches on every rank, of at most ``micro_batch``. The groups minimise the number of positions, with
    ``forward_cost`` added for each micro-batch.

    With ``pairs`` rows are sources of each other in interventions: neighbours by length, so of similar
    length, whatever the split. Both rows of a pair are in one micro-batch, unless micro-batches hold one row.
    """

    def __init__(
        self,
        examples: Tokenised,
        *,
        effective_batch: int,
        micro_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        forward_cost: int = FORWARD_COST,
        pairs: bool = False,
    ) -> None:
        assert effective_batch >= 1 and micro_batch >= 1 and seed >= 0 and 0 <= rank < world_size
        self.examples = examples
        self._lengths = examples.own.lengths()
        self.effective_batch = effective_batch
        self.micro_batch = micro_batch
        self.seed = seed
        self._rank, self._world_size = rank, world_size
        self._forward_cost = forward_cost
        self._pairs = pairs
        self._order: tuple[int, Integers] = (0, self._shuffled(0))
        self.rows_per_epoch = len(examples)
        self.steps_per_epoch = -(-self.rows_per_epoch // effective_batch)

    def step(self, index: int) -> list[ExampleBatch]:
        """The rank's micro-batches of an optimizer step, counted from 0 over all epochs."""
        epoch, step = divmod(index, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._shuffled(epoch))
        begin = step * self.effective_batch
        places = _longest_first(self._order[1][begin : begin + self.effective_batch], self._lengths)
        groups = dealt(
            self.examples.own.padded(self._lengths[places]),
            rank=self._rank,
            world_size=self._world_size,
            most=self.micro_batch,
            cost=self._forward_cost,
            pairs=self._pairs,
        )
        if not self._pairs:
            return [self.examples.batch(places[own]) for own in groups]
        return batches_with_sources(lambda own: self.examples.batch(places[own]), groups, sources(places))

    def _shuffled(self, epoch: int) -> Integers:
        return np.random.default_rng([self.seed, epoch, _ORDER]).permutation(len(self.examples))


def example_evaluation_batches(
    examples: Tokenised, *, micro_batch: int, rank: int = 0, world_size: int = 1
) -> Iterator[ExampleBatch]:
    """Every example once, the longest first (ties in order); the same number of batches on every rank."""
    places = _longest_first(np.arange(len(examples)), examples.own.lengths())
    stride = micro_batch * world_size
    for begin in range(0, len(places), stride):
        yield examples.batch(places[begin : begin + stride][rank::world_size])


def _longest_first(places: Integers, lengths: Integers) -> Integers:
    return places[np.argsort(-lengths[places], kind="stable")]
