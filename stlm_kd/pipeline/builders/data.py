"""What a student reads: packed rows of text, or labelled examples; in training and held out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerFast

from stlm_kd.data.batches import BatchStream, PackedRows, evaluation_batches, numbered_batch
from stlm_kd.data.labelled.batches import (
    FORWARD_COST,
    AnyBatch,
    EncodedExamples,
    ExampleStream,
    Tokenised,
    example_evaluation_batches,
)
from stlm_kd.data.labelled.encoding import MULTIPLE, EncodedTexts, encode_texts
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.data.masking import Masking
from stlm_kd.distributed import launched_processes, process_rank
from stlm_kd.interventions import SourcePool
from stlm_kd.interventions.example_pool import ExamplePool, TextPool
from stlm_kd.pipeline.builders.examples import held_out_examples, training_examples
from stlm_kd.pipeline.builders.overlap import HeldOut, example_notes, refuse_identical_files, text_notes
from stlm_kd.pipeline.builders.text import (
    held_out,
    held_out_masking,
    held_out_rows,
    training_masking,
    training_rows,
)
from stlm_kd.pipeline.context import RunContext
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.training import Train
from stlm_kd.teachers.combination import Domains
from stlm_kd.training import current_device

ACCELERATOR_FORWARD_COST = 4000
"""What a pass costs besides its positions, in positions, where kernels are wide; an estimate."""


class Stream(Protocol):
    """The training batches of this process."""

    steps_per_epoch: int

    def step(self, index: int) -> Sequence[AnyBatch]:
        """The micro-batches of an optimizer step, counted from 0 over all epochs."""


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """How the rows of optimizer steps are dealt out.

    Attributes:
        effective: Rows of an optimizer step over all processes.
        micro: Rows of one forward in one of them, at most.
        pairs: Whether rows of a step are sources of each other in interventions.
    """

    effective: int
    micro: int
    pairs: bool = False


class TrainingData(Protocol):
    """What a student reads."""

    @property
    def num_rows(self) -> int:
        """Rows of the training text, each once."""

    @property
    def num_tokens(self) -> int:
        """Positions of the training text that hold a token, each once."""

    @property
    def row_tokens(self) -> float:
        """Positions that a row has, on average; of packed text those that are free as well."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the training text."""

    @property
    def is_always_the_same(self) -> bool:
        """Whether a row reads the same each time, so that what a teacher says of it can be remembered."""

    @property
    def domains(self) -> Domains | None:
        """Of which domain the training rows are; None of what has no domains."""

    def stream(self, sizes: BatchSizes, *, seed: int) -> Stream:
        """The training batches of this process."""

    def in_order(self, micro_batch: int) -> Iterator[AnyBatch]:
        """Each training row once, in all processes alike."""

    def rows(self, numbers: Sequence[int], variants: Sequence[int]) -> AnyBatch:
        """Training rows by their numbers, each under a variant of its masks where it has any."""

    def held_out(self, micro_batch: int) -> Iterator[AnyBatch] | None:
        """The held-out batches of this process; None where there are none."""

    def pool(self) -> SourcePool:
        """All training rows, to draw sources of interventions from."""


@dataclass(frozen=True)
class PackedText:
    """Packed rows of text, of which a masked language model reads some tokens masked.

    Attributes:
        parts: The training text.
        held: The held-out text.
        masking: Of the training text; None for causal models.
        held_masking: Of the held-out text.
        variants: Of the masks of each training row; None where they are drawn anew each time.
        notes: See ``TrainingData``.
    """

    parts: Sequence[PackedRows]
    held: Sequence[PackedRows]
    masking: Masking | None
    held_masking: Masking | None
    variants: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def num_tokens(self) -> int:
        return sum(part.num_tokens for part in self.parts)

    @property
    def row_tokens(self) -> float:
        return self.parts[0].context

    @property
    def bits_of_a_nat(self) -> float | None:
        """What 1 nat per held-out token is in bits per byte, ends of documents counted; None where masked."""
        if self.held_masking is not None or not self.held:
            return None
        stores = [part.store for part in self.held]
        predicted = sum(store.num_tokens - store.num_documents for store in stores)  # all but each first one
        return predicted / sum(store.num_bytes for store in stores) / math.log(2)

    @property
    def is_always_the_same(self) -> bool:
        return self.masking is None

    @property
    def domains(self) -> Domains:
        return Domains(tuple(part.domain for part in self.parts), tuple(map(len, self.parts)))

    def stream(self, sizes: BatchSizes, *, seed: int) -> BatchStream:
        return BatchStream(
            self.parts,
            effective_batch=sizes.effective,
            micro_batch=sizes.micro,
            seed=seed,
            rank=process_rank(),
            world_size=launched_processes(),
            masking=self.masking,
            variants=self.variants,
            pairs=sizes.pairs,
        )

    def in_order(self, micro_batch: int) -> Iterator[AnyBatch]:
        return evaluation_batches(self.parts, micro_batch=micro_batch)

    def rows(self, numbers: Sequence[int], variants: Sequence[int]) -> AnyBatch:
        return numbered_batch(self.parts, numbers, variants, self.masking)

    def held_out(self, micro_batch: int) -> Iterator[AnyBatch] | None:
        if not self.held:
            return None
        return evaluation_batches(
            self.held,
            micro_batch=micro_batch,
            rank=process_rank(),
            world_size=launched_processes(),
            masking=self.held_masking,
        )

    def pool(self) -> TextPool:
        return TextPool(self.parts, self.masking)


@dataclass(frozen=True)
class LabelledData:
    """Labelled examples, as the student's tokenizer reads them and those of teachers that read otherwise.

    Attributes:
        examples: To train on.
        held: Held out.
        tokenizer: The student's.
        readers: By teacher, a tokenizer that is not the student's.
        context: The most tokens of an example.
    """

    examples: Examples
    held: Examples | None
    tokenizer: PreTrainedTokenizerFast
    readers: Mapping[str, PreTrainedTokenizerFast]
    context: int

    @property
    def num_rows(self) -> int:
        return len(self.examples)

    @property
    def num_tokens(self) -> int:
        return int(self._encoded.own.lengths().sum())

    @property
    def row_tokens(self) -> float:
        return self.num_tokens / self.num_rows

    @property
    def notes(self) -> tuple[str, ...]:
        overlap = example_notes(self.examples, self.held)
        cut = self._encoded.own.truncated
        if not cut:
            return overlap
        told = f"{cut} of {self.num_rows} training examples are longer than {self.context} tokens and cut"
        return (told, *overlap)

    @property
    def is_always_the_same(self) -> bool:
        return True

    @property
    def domains(self) -> None:
        """See ``TrainingData``."""

    def stream(self, sizes: BatchSizes, *, seed: int) -> ExampleStream:
        return example_stream(self._encoded, sizes, seed=seed)

    def in_order(self, micro_batch: int) -> Iterator[AnyBatch]:
        return example_evaluation_batches(self._encoded, micro_batch=micro_batch)

    def rows(self, numbers: Sequence[int], variants: Sequence[int]) -> AnyBatch:
        return self._encoded.batch(np.asarray(numbers, np.int64))

    def held_out(self, micro_batch: int) -> Iterator[AnyBatch] | None:
        if self._held is None:
            return None
        return example_evaluation_batches(
            self._held, micro_batch=micro_batch, rank=process_rank(), world_size=launched_processes()
        )

    def pool(self) -> ExamplePool:
        return ExamplePool(self._encoded)

    @cached_property
    def _encoded(self) -> EncodedExamples:
        others = {name: self._read(self.examples, reader) for name, reader in self.readers.items()}
        return EncodedExamples(self.examples.labels, self._read(self.examples, self.tokenizer), others)

    @cached_property
    def _held(self) -> EncodedExamples | None:
        held = self.held
        return None if held is None else EncodedExamples(held.labels, self._read(held, self.tokenizer))

    def _read(self, examples: Examples, tokenizer: PreTrainedTokenizerFast) -> EncodedTexts:
        return encode_texts(examples.texts, tokenizer, context=self.context, multiple=row_multiple())


def example_stream(examples: Tokenised, sizes: BatchSizes, *, seed: int) -> ExampleStream:
    """The training batches of this process."""
    return ExampleStream(
        examples,
        effective_batch=sizes.effective,
        micro_batch=sizes.micro,
        seed=seed,
        rank=process_rank(),
        world_size=launched_processes(),
        forward_cost=FORWARD_COST if current_device().type == "cpu" else ACCELERATOR_FORWARD_COST,
        pairs=sizes.pairs,
    )


def row_multiple() -> int:
    """Rows of examples are padded to a multiple of so many positions."""
    return 1 if current_device().type == "cpu" else MULTIPLE


def build_training_data(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    context: RunContext,
    *,
    fraction: float | None,
    seed: int,
    readers: Mapping[str, PreTrainedTokenizerFast],
    variants: int | None = None,
) -> TrainingData:
    """What a student of the recipe reads.

    Args:
        recipe: Its data.
        tokenizer: The student's.
        context: Where tokenised text is kept.
        fraction: The share of the training text; ``data.fraction`` where None.
        seed: Draws the examples of the share. The share of a text is the same for all seeds.
        readers: By teacher, a tokenizer that is not the student's.
        variants: Of the masks of each training row; None where they are drawn anew each time.

    Raises:
        DataError, MissingResourceError: Data that are not there, too short, or trained on and held out at
            once.
    """
    refuse_identical_files(recipe)
    fraction = recipe.data.fraction if fraction is None else fraction
    if recipe.language_task is None:
        return LabelledData(
            training_examples(recipe, fraction, seed=seed),
            held_out_examples(recipe),
            tokenizer,
            readers,
            recipe.data.context,
        )
    parts = training_rows(recipe, tokenizer, context, fraction=fraction)
    held = held_out_rows(recipe, tokenizer, context)
    return PackedText(
        parts,
        held,
        training_masking(recipe, tokenizer, parts),
        held_out_masking(recipe, tokenizer),
        variants,
        text_notes(parts, held),
    )


def batch_sizes(train: Train) -> BatchSizes:
    """Those of a student's training."""
    return BatchSizes(train.effective_batch, train.micro_batch or train.effective_batch)


def held_out_of_recipe(recipe: Recipe, *, most_bytes: int | None = None) -> HeldOut:
    """The validation text, up to about so many bytes, or all validation examples; [] where none is named."""
    if recipe.language_task is not None:
        return held_out(recipe, most_bytes=most_bytes)
    return held_out_examples(recipe) or []
