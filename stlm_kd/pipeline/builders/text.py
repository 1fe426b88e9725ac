"""A recipe's text: sources, tokenised stores, packed rows and masking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from stlm_kd.data.batches import PackedRows
from stlm_kd.data.chats import plain_text
from stlm_kd.data.corpus import PreparedSource, pack_sources, prepare
from stlm_kd.data.masking import Masking, even_masking, masking_for
from stlm_kd.data.sources.sources import Source, documents
from stlm_kd.data.token_store import TokenStore
from stlm_kd.distributed import launched_processes, on_main_process, process_rank
from stlm_kd.errors import DataError
from stlm_kd.pipeline.builders.sources import sources, training_sources, with_shares
from stlm_kd.pipeline.context import RecipeSetup
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.cache import VARIANTS
from stlm_kd.sharing.names import expanded
from stlm_kd.teachers.cache.format import read_manifest

T = TypeVar("T")


def training_rows(setup: RecipeSetup, *, fraction: float | None = None) -> tuple[PackedRows, ...]:
    """The training text or a fraction of it, tokenised (cached on disk) and packed."""
    data = setup.recipe.data
    fraction = data.fraction if fraction is None else fraction
    own = training_sources(setup.recipe)
    return with_shares(_rows(own, setup, "data.train", fraction), own)


def training_stores(setup: RecipeSetup, *, fraction: float) -> tuple[TokenStore, ...]:
    """A fraction of the training text, tokenised: one store per source."""
    own = training_sources(setup.recipe)
    return tuple(source.store for source in _by_main_process(lambda: _prepare(own, setup, fraction)))


def tokens_by_domain(setup: RecipeSetup) -> dict[str, int]:
    """Number of tokens in the student's training text, each counted once, by domain."""
    tokens: Counter[str] = Counter()
    for part in training_rows(setup):
        tokens[part.domain] += part.num_tokens
    return dict(tokens)


def held_out_rows(setup: RecipeSetup) -> tuple[PackedRows, ...]:
    """The validation text, tokenised and packed; () without validation."""
    entries = setup.recipe.data.validation
    if not entries:
        return ()
    return _rows(sources(entries, setup.recipe), setup, "data.validation", 1.0)


def _by_main_process(made: Callable[[], T]) -> T:
    """What is made of text; with several processes the main one makes it, and the others read its files."""
    if launched_processes() > 1:
        on_main_process(lambda: bool(made()))
    return made()


def _prepare(own: Sequence[Source], setup: RecipeSetup, fraction: float) -> tuple[PreparedSource, ...]:
    prepared = prepare(own, setup.tokenizer, setup.context.tokens, fraction=fraction)
    if process_rank() == 0:
        for entry, source in zip(own, prepared, strict=True):
            setup.context.stages.use(source.store.folder, f"tokens of {entry.described()}")
    return prepared


def _rows(own: Sequence[Source], setup: RecipeSetup, place: str, fraction: float) -> tuple[PackedRows, ...]:
    recipe = setup.recipe

    def packed() -> tuple[PackedRows, ...]:
        prepared = _prepare(own, setup, fraction)
        try:
            return pack_sources(prepared, recipe.data.context, wrapped=recipe.task == "mlm")
        except DataError as error:
            raise DataError(f"{place}: {error}") from error

    return _by_main_process(packed)


def training_masking(setup: RecipeSetup, parts: Sequence[PackedRows]) -> Masking | None:
    """Masking of the training text for masked language models; samples rare tokens more often."""
    share = setup.recipe.data.masked_share
    if share is None:
        return None
    return _by_main_process(lambda: masking_for(setup.tokenizer, parts, share=share))


def held_out_masking(setup: RecipeSetup) -> Masking | None:
    """Uniform masking of the held-out text, so that models trained on different text are comparable."""
    return None if setup.recipe.data.masked_share is None else even_masking(setup.tokenizer)


def held_out(recipe: Recipe, *, most_bytes: int | None = None) -> list[str]:
    """The recipe's validation documents in order, up to about ``most_bytes``; the last one is truncated."""
    kept: list[str] = []
    room = most_bytes
    for source in sources(recipe.data.validation or (), recipe):
        found = documents(source)
        for text in found if source.chat is None else map(plain_text, found):
            if room is None:
                kept.append(text)
                continue
            if room <= 0:
                return kept
            piece = text.encode()[:room].decode(errors="ignore")
            room -= len(piece.encode())
            kept.append(piece)
    return kept


def mask_variants(recipe: Recipe) -> int | None:
    """The number of mask variants per row for a masked language model with a cached teacher; else None."""
    cache = next((teacher.cache for teacher in recipe.teachers if teacher.cache is not None), None)
    if recipe.task != "mlm" or cache is None:
        return None
    return cache.variants or VARIANTS if cache.path is None else read_manifest(expanded(cache.path)).variants
