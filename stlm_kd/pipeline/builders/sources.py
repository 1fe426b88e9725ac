"""A recipe's sources of text, for the data layer."""

from __future__ import annotations

from collections.abc import Sequence

from stlm_kd.data.batches import PackedRows
from stlm_kd.data.sources.sources import Source
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.data import Source as RecipeSource


def sources(entries: Sequence[RecipeSource], *, held_out: tuple[Source, ...] = ()) -> tuple[Source, ...]:
    """The sources; documents of ``held_out`` are not read."""
    return tuple(
        Source(
            domain=entry.domain,
            weight=entry.weight,
            share=entry.share,
            held_out=held_out,
            **{entry.kind: entry.value},
            **entry.options(labelled=False),
            **entry.chosen(),
        )
        for entry in entries
    )


def training_sources(recipe: Recipe) -> tuple[Source, ...]:
    """The sources of the training text, without the held-out documents if the recipe removes them."""
    data = recipe.data
    held_out = sources(data.validation or ()) if data.remove_overlap else ()
    return sources(data.train, held_out=held_out)


def with_shares(parts: tuple[PackedRows, ...], own: Sequence[Source]) -> tuple[PackedRows, ...]:
    """The packed sources, with weights that give those with shares their part of an epoch's rows."""
    rows = sum(len(part) for part in parts)
    for part, source in zip(parts, own, strict=True):
        if source.share is not None:
            part.weight = source.share * rows / len(part)
    return parts
