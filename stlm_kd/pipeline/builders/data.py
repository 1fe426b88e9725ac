"""Training and held-out data: packed rows of text, or labelled examples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerFast

from stlm_kd.data.batch import Batch
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
from stlm_kd.distributed import are_together, launched_processes, on_main_process, process_rank
from stlm_kd.interventions.example_pool import ExamplePool, TextPool
from stlm_kd.pipeline.builders.examples import held_out_examples, training_examples
from stlm_kd.pipeline.builders.overlap import HeldOut, example_notes, refuse_identical_files, text_notes
from stlm_kd.pipeline.builders.sources import sources
from stlm_kd.pipeline.builders.text import (
    held_out,
    held_out_masking,
    held_out_rows,
    training_masking,
    training_rows,
)
from stlm_kd.pipeline.context import RecipeSetup
from stlm_kd.recipe import Recipe
from stlm_kd.teachers.combination import Domains
from stlm_kd.training.config import TrainingConfig
from stlm_kd.training.processes import current_device

ACCELERATOR_FORWARD_COST = 4000
"""Fixed cost of a forward pass on an accelerator, in positions; an estimate."""


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """Rows per optimizer step over all processes, and at most per forward pass and process.

    ``pairs``: whether rows of a step are used as sources for each other in interventions.
    """

    effective: int
    micro: int
    pairs: bool = False


@dataclass(frozen=True)
class PackedText:
    """Training and held-out data of a language model: packed rows of text, with masking for masked models.

    ``variants`` is the number of mask variants of each training row; None for new masks each time.
    """

    parts: Sequence[PackedRows]
    held: Sequence[PackedRows]
    masking: Masking | None
    held_masking: Masking | None
    variants: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        """Number of training rows, each counted once."""
        return sum(len(part) for part in self.parts)

    @property
    def num_tokens(self) -> int:
        """Number of training positions with a token, each counted once."""
        return sum(part.num_tokens for part in self.parts)

    @property
    def row_tokens(self) -> float:
        """Average positions per row, including padding."""
        return self.parts[0].context

    @property
    def bits_of_a_nat(self) -> float | None:
        """Bits per byte for 1 nat per held-out token, counting document ends; None for masked models."""
        if self.held_masking is not None or not self.held:
            return None
        stores = [part.store for part in self.held]
        predicted = sum(store.num_predicted for store in stores)
        return predicted / sum(store.num_bytes for store in stores) / math.log(2)

    @property
    def is_always_the_same(self) -> bool:
        """Whether a row is identical in each epoch, so that a teacher's outputs can be precomputed."""
        return self.masking is None

    @property
    def domains(self) -> Domains:
        return Domains(tuple(part.domain for part in self.parts), tuple(map(len, self.parts)))

    def stream(self, sizes: BatchSizes, *, seed: int) -> BatchStream:
        """The training batches of this process."""
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

    def in_order(self, micro_batch: int, *, most_rows: int | None = None) -> Iterator[Batch]:
        """Each training row once, or so many spread evenly over the text; the same in all processes."""
        return evaluation_batches(self.parts, micro_batch=micro_batch, most_rows=most_rows)

    def rows(self, numbers: Sequence[int], variants: Sequence[int]) -> AnyBatch:
        """Training rows by number, each with the given mask variant if it has any."""
        return numbered_batch(self.parts, numbers, variants, self.masking)

    def held_out(
        self, micro_batch: int, *, whole: bool = False, most_rows: int | None = None
    ) -> Iterator[AnyBatch] | None:
        """The held-out batches of this process, or all of them; None without held-out data.

        With ``most_rows`` the processes together read at most that many rows, spread evenly over the text.
        """
        if not self.held:
            return None
        rank, processes = (0, 1) if whole else (process_rank(), launched_processes())
        return evaluation_batches(
            self.held,
            micro_batch=micro_batch,
            rank=rank,
            world_size=processes,
            masking=self.held_masking,
            most_rows=most_rows,
        )

    def pool(self) -> TextPool:
        return TextPool(self.parts, self.masking)


@dataclass(frozen=True)
class LabelledData:
    """Labelled examples, encoded with the student's tokenizer and with teachers' (``readers``) that differ.

    It has the same members as ``PackedText``, with the same meaning. They are encoded when they are first
    used, or once for all processes by ``share``.
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
        return (*self._encoded.own.notes, *self._overlap)

    @property
    def is_always_the_same(self) -> bool:
        return True

    @property
    def domains(self) -> None:
        """None: labelled examples have no domains."""

    def stream(self, sizes: BatchSizes, *, seed: int) -> ExampleStream:
        return example_stream(self._encoded, sizes, seed=seed)

    def in_order(self, micro_batch: int) -> Iterator[AnyBatch]:
        return example_evaluation_batches(self._encoded, micro_batch=micro_batch)

    def rows(self, numbers: Sequence[int], variants: Sequence[int]) -> AnyBatch:
        return self._encoded.batch(np.asarray(numbers, np.int64))

    def held_out(self, micro_batch: int, *, whole: bool = False) -> Iterator[AnyBatch] | None:
        if self._held is None:
            return None
        rank, processes = (0, 1) if whole else (process_rank(), launched_processes())
        return example_evaluation_batches(
            self._held, micro_batch=micro_batch, rank=rank, world_size=processes
        )

    def pool(self) -> ExamplePool:
        return ExamplePool(self._encoded)

    def share(self) -> None:
        """Encode on the main process for all others, each of which calls this."""
        found = on_main_process(lambda: (self._encoded, self._held, self._overlap))
        vars(self).update(zip(("_encoded", "_held", "_overlap"), found, strict=True))  # the cached ones

    @cached_property
    def _overlap(self) -> tuple[str, ...]:
        return example_notes(self.examples, self.held)

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


TrainingData = PackedText | LabelledData  # training and held-out data of a student


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
    """The multiple of positions that rows of examples are padded to."""
    return 1 if current_device().type == "cpu" else MULTIPLE


def build_training_data(
    setup: RecipeSetup,
    *,
    fraction: float | None,
    seed: int,
    readers: Mapping[str, PreTrainedTokenizerFast],
    variants: int | None = None,
) -> TrainingData:
    """The training and held-out data of a recipe's student.

    ``fraction`` is ``data.fraction`` if None; the seed draws it of labelled examples, while that of a text is
    the same for all seeds. ``readers`` and ``variants`` are those of ``LabelledData`` and ``PackedText``.

    Raises:
        DataError, MissingResourceError: Data is missing, too short, or both trained on and held out.
    """
    recipe = setup.recipe
    on_main_process(lambda: refuse_identical_files(recipe))
    fraction = recipe.data.fraction if fraction is None else fraction
    if recipe.language_task is None:
        examples = training_examples(recipe, fraction, seed=seed)
        context, unseen = recipe.data.context, held_out_examples(recipe)
        data = LabelledData(examples, unseen, setup.tokenizer, readers, context)
        if are_together():
            data.share()
        return data
    parts = training_rows(setup, fraction=fraction)
    held = held_out_rows(setup)
    masking, held_masking = training_masking(setup, parts), held_out_masking(setup)
    notes = on_main_process(lambda: text_notes(parts, held))
    return PackedText(parts, held, masking, held_masking, variants, notes)


def repeats_note(recipe: Recipe, training_data: TrainingData, epochs: float) -> tuple[str, ...]:
    """How often each source of text is read in a training, if not all are read equally often."""
    parts = training_data.parts if isinstance(training_data, PackedText) else ()
    if len({part.weight for part in parts}) < 2:
        return ()
    times = [epochs * part.weight for part in parts]
    listed = ", ".join(
        f"{source.described()} {time:.3g}{' (repeated)' if time > 1 else ''}"
        for source, time in zip(sources(recipe.data.train, recipe), times, strict=True)
    )
    return (f"epochs of each source: {listed}",)


def batch_sizes(config: TrainingConfig) -> BatchSizes:
    """The batch sizes of a training."""
    return BatchSizes(config.effective_batch, config.micro_batch or config.effective_batch)


def held_out_of_recipe(recipe: Recipe, *, most_bytes: int | None = None) -> HeldOut:
    """The validation text, up to about ``most_bytes``, or all validation examples; [] without validation."""
    if recipe.language_task is not None:
        return held_out(recipe, most_bytes=most_bytes)
    return held_out_examples(recipe) or []
