"""A recipe's sources of text, for the data layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stlm_kd.data.batches import PackedRows
from stlm_kd.data.chats import STUDENT
from stlm_kd.data.sources.sources import Source
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.data import Source as RecipeSource


def sources(
    entries: Sequence[RecipeSource], recipe: Recipe, *, held_out: tuple[Source, ...] = ()
) -> tuple[Source, ...]:
    """Sources of a recipe; documents of ``held_out`` are not read."""
    return tuple(
        Source(
            domain=entry.domain,
            weight=entry.weight,
            share=entry.share,
            held_out=held_out,
            **{entry.kind: entry.value},
            **entry.options(labelled=False),
            **_chosen(entry, recipe),
        )
        for entry in entries
    )


def _chosen(entry: RecipeSource, recipe: Recipe) -> dict[str, Any]:
    """The keys of all sources that are given; the template of the student's tokenizer by its name."""
    found = entry.chosen()
    tokenizer = recipe.student.tokenizer
    if entry.chat is not None and entry.chat.template == STUDENT and isinstance(tokenizer, str):
        found["chat"] = replace(found["chat"], template=tokenizer)
    return found


def training_sources(recipe: Recipe) -> tuple[Source, ...]:
    """The sources of the training text, without the held-out documents if the recipe removes them."""
    data = recipe.data
    held_out = sources(data.validation or (), recipe) if data.remove_overlap else ()
    return sources(data.train, recipe, held_out=held_out)


def with_shares(parts: tuple[PackedRows, ...], own: Sequence[Source]) -> tuple[PackedRows, ...]:
    """The packed sources, with weights that give those with shares their part of an epoch's rows."""
    rows = sum(len(part) for part in parts)
    for part, source in zip(parts, own, strict=True):
        if source.share is not None:
            part.weight = source.share * rows / len(part)
    return parts
