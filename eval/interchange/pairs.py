"""Draws the interventions on held-out data that compare a student with its teachers.

All students and teachers with the same vocabulary and row length share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.data.batches import PackedRows, require_one_context
from stlm_kd.data.labelled.batches import EncodedExamples
from stlm_kd.data.labelled.encoding import encode_texts
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.data.masking import even_masking
from stlm_kd.data.text.store_builder import build_store
from stlm_kd.errors import UsageError
from stlm_kd.eval.interchange.config import SUITE, PairConfig
from stlm_kd.eval.interchange.metrics import Exchange, draw_exchanges
from stlm_kd.eval.runner import MASKED_WINDOW, texts_to_score
from stlm_kd.interventions import SourceInputs, SourcePool, WordTokens
from stlm_kd.interventions.draw import named_generator
from stlm_kd.interventions.example_pool import ExamplePool, TextPool
from stlm_kd.lazy import np
from stlm_kd.models.families import Task
from stlm_kd.models.positions import num_positions
from stlm_kd.vocabulary.token_bytes import read_vocabulary

ROWS_OF_A_BATCH = 32


def row_length(models: Mapping[str, PreTrainedModel], wanted: int | None, *, place: str) -> int:
    """``wanted``, or 128 limited by all models' positions; UsageError, at ``place``, if one has fewer."""
    if wanted is None:
        limits = (num_positions(model.config) for model in models.values())
        return min(MASKED_WINDOW, *(limit for limit in limits if limit is not None))
    for name, model in models.items():
        most = num_positions(model.config)
        if most is not None and wanted > most:
            raise UsageError(f"{place}: {wanted} tokens, but {name} has {most} positions")
    return wanted


def draw_pairs(
    held: Sequence[str] | Examples,
    tokenizer: PreTrainedTokenizerFast,
    asked: PairConfig,
    *,
    context: int,
    task: Task | None,
) -> list[Exchange]:
    """Interventions on rows of held-out text, packed as in training, or on labelled examples.

    ``context`` is the maximum tokens of a row or example; ``task`` that of language models, None for
    classifiers. Raises DataError without text, or with fewer than two rows of it if the source is another
    row.
    """
    if isinstance(held, Examples):
        encoded = EncodedExamples(held.labels, encode_texts(held.texts, tokenizer, context=context))
        return _drawn(ExamplePool(encoded), tokenizer, asked, causal=False)
    with _packed(texts_to_score(held, suite=SUITE), tokenizer, context, task) as parts:
        masking = even_masking(tokenizer) if task == "mlm" else None
        return _drawn(TextPool(parts, masking), tokenizer, asked, causal=task == "clm")


@contextmanager
def _packed(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerFast, context: int, task: Task | None
) -> Iterator[tuple[PackedRows, ...]]:
    """The text packed as in training; its tokens are stored on disk within the context."""
    with TemporaryDirectory() as folder:
        store = build_store(documents, tokenizer, Path(folder) / "tokens")
        parts = (PackedRows(store, context, wrapped=task == "mlm"),)
        require_one_context(parts)
        yield parts


def _drawn(
    pool: SourcePool, tokenizer: PreTrainedTokenizerFast, asked: PairConfig, *, causal: bool
) -> list[Exchange]:
    order = named_generator(asked.seed, SUITE, "rows").permutation(len(pool))[: asked.rows]
    pieces = [part.tolist() for part in np.array_split(order, -(-len(order) // ROWS_OF_A_BATCH))]
    masks = ([named_generator(asked.seed, SUITE, "base masks", row) for row in piece] for piece in pieces)
    return draw_exchanges(
        map(pool.batch, pieces, masks),
        source=asked.source,
        positions=asked.positions,
        supplies=SourceInputs(asked.seed, pool, WordTokens.of(read_vocabulary(tokenizer))),
        causal=causal,
    )
