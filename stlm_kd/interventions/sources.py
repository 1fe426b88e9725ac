"""The built-in sources of the states and tokens that replace those of the base.

Student and teachers use the same positions and rows, each with its own hidden states. Shapes: P exchanged
positions, D width of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from stlm_kd.data.batch import Integers
from stlm_kd.data.dealing import NO_SOURCE
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.interventions.draw import Document, SourcePool, SourceRequest, documents_of, places_of
from stlm_kd.interventions.plan import (
    Joined,
    Noise,
    OtherStates,
    OwnStates,
    Positions,
    Source,
    Tokens,
    parts_of,
)
from stlm_kd.interventions.source import Options, SourceData, register_source
from stlm_kd.interventions.wordnet import (
    Relation,
    check_relation,
    require_wordnet,
    thesaurus,
    wordnet_identity,
)
from stlm_kd.lazy import np, torch

if TYPE_CHECKING:
    from torch import Tensor


Pairing = Literal["batch", "independent"]
"""Source rows: another row of the optimizer step, which needs no further pass within the same micro-batch; or
any other row of the training text."""


def _pairs_rows(options: Options) -> bool:
    return bool(options.get("pairing", "batch") == "batch")


def _wordnet(relation: Relation) -> SourceData:
    """WordNet, in which a word of the vocabulary must be related to another."""
    return SourceData(
        require_wordnet, lambda: {"wordnet": wordnet_identity()}, partial(check_relation, relation=relation)
    )


@register_source("other-example", pairs_rows=_pairs_rows, keys={"pairing": "pairing"})
def other_example(draw: SourceRequest, /, *, pairing: Pairing = "batch") -> tuple[Positions, Source]:
    """Hidden states of another text, as in the paper (Wu et al., 2022, section 3).

    Each document receives those of one document of the source row. The rows of an optimizer step are paired
    across micro-batches so that none is its own source (see ``data.dealing``); rows of a batch outside a step
    are paired with each other. The source of a single row is any other row of the training text.
    """
    return _exchanged(draw, pairing)


@register_source(
    "input-tokens", replaces="tokens", runs_source=False, pairs_rows=_pairs_rows, keys={"pairing": "pairing"}
)
def input_tokens(draw: SourceRequest, /, *, pairing: Pairing = "batch") -> tuple[Positions, Source]:
    """Tokens of another text instead of hidden states, as an ablation: all models read the changed text."""
    base, states = _exchanged(draw, pairing)
    ids = []
    for part in parts_of(states):
        batch = part.batch if isinstance(part, OtherStates) else draw.batch
        ids.append(batch.input_ids[part.places.rows, part.places.positions])
    return base, Tokens(torch.cat(ids))


@register_source("in-context-random")
def in_context_random(draw: SourceRequest, /) -> tuple[Positions, Source]:
    """Hidden states of the base with random tokens at the overwritten positions.

    From Starshak's few-shot study of causal distillation ("in-context" interventions).
    """
    return _in_context(draw, lambda _, generator: int(generator.choice(draw.lexicon().ids)))


@register_source("synonym", is_for_held_out=False, data=_wordnet("synonym"))
def synonym(draw: SourceRequest, /) -> tuple[Positions, Source]:
    """As ``in-context-random``, with WordNet synonyms; random tokens for words without one."""
    return _related(draw, "synonym")


@register_source("antonym", is_for_held_out=False, data=_wordnet("antonym"))
def antonym(draw: SourceRequest, /) -> tuple[Positions, Source]:
    """As ``synonym``, with antonyms."""
    return _related(draw, "antonym")


@register_source("meronym", is_for_held_out=False, data=_wordnet("meronym"))
def meronym(draw: SourceRequest, /) -> tuple[Positions, Source]:
    """As ``synonym``, with meronyms: parts, substances or members of the word's referent."""
    return _related(draw, "meronym")


@register_source("holonym", is_for_held_out=False, data=_wordnet("holonym"))
def holonym(draw: SourceRequest, /) -> tuple[Positions, Source]:
    """As ``synonym``, with holonyms: wholes that have it as a part, a substance or a member."""
    return _related(draw, "holonym")


@register_source("mixup", runs_source=False, keys={"map": "mixup_map", "noise": "mixup_noise"})
def mixup(
    draw: SourceRequest,
    /,
    *,
    map: Literal["same", "residual"] = "same",
    noise: Literal["normal", "matched", "token-embedding"] = "normal",
) -> tuple[Positions, Source]:
    """The base's hidden states mixed with noise, in a random proportion per position; needs no source pass.

    From the few-shot study, h ← λh + (1 - λ)y, λ uniform, y standard normal. The student and all teachers
    share λ, and y if their widths are equal.

    Args:
        draw: The base.
        map: If several teacher layers are aligned: all get y; or the later ones get y plus their
            block's residual on the base (its output minus its input; in post-norm families this includes the
            norms).
        noise: y is standard normal; or has, per dimension, the mean and deviation of the micro-batch's
            hidden states at that layer (the only choice that depends on the split of a step); or is the
            embedding of a random token.
    """
    base = _within(draw)
    shares = [draw.generator("shares", row).random(len(own)) for row, own in base]
    tokens: list[Integers] = []
    if noise == "token-embedding":
        tokens = [draw.generator("noise", row).choice(draw.lexicon().ids, len(own)) for row, own in base]
    return places_of(base), Noise(
        shares=torch.from_numpy(np.concatenate([np.zeros(0), *shares])),
        map=map,
        noise=noise,
        draw=partial(_normal, draw, [(row, len(own)) for row, own in base]),
        tokens=torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *tokens])),
    )


def _related(draw: SourceRequest, relation: Relation) -> tuple[Positions, Source]:
    lexicon = draw.lexicon()
    known = thesaurus(lexicon, relation)

    def replaced(tokens: list[int], generator: np.random.Generator) -> int:
        token, *following = tokens
        whole = not following or following[0] not in lexicon.continuations
        choices = known.of(token) if whole else ()
        return int(generator.choice(choices or lexicon.ids))

    return _in_context(draw, replaced)


def _in_context(
    draw: SourceRequest, replaced: Callable[[list[int], np.random.Generator], int]
) -> tuple[Positions, OtherStates]:
    """The base's states with tokens replaced: ``replaced`` takes each and the one after it, if any."""
    base = _within(draw)
    ids_BT = draw.batch.input_ids.clone()
    for row, own in base:
        generator = draw.generator("tokens", row)
        before: list[int] = draw.batch.input_ids[row].tolist()
        for position in own.tolist():
            ids_BT[row, position] = replaced(before[position : position + 2], generator)
    places = places_of(base)
    return places, OtherStates(replace(draw.batch, input_ids=ids_BT), places)


_Found = tuple[list[tuple[int, Integers]], OwnStates | OtherStates]
"""Positions of the base's rows, and their source."""


def _exchanged(draw: SourceRequest, pairing: Pairing) -> tuple[Positions, OwnStates | OtherStates | Joined]:
    found = [_from_pool(draw, draw.rows)] if pairing == "independent" else _from_step(draw)
    base = places_of([own for places, _ in found for own in places])
    parts = tuple(part for _, part in found)
    return base, parts[0] if len(parts) == 1 else Joined(parts)


def _from_step(draw: SourceRequest) -> list[_Found]:
    """Pair each row with another row of the step, in any micro-batch; without one, with a row of the text."""
    sources = draw.batch.sources
    source = _circle(draw) if sources is None else dict(enumerate(sources.rows.tolist()))
    size, rows = len(draw.ids), draw.rows
    outside = [row for row in rows if source[row] >= size]
    alone = [row for row in rows if source[row] == NO_SOURCE]
    found = []
    if outside:
        assert sources is not None and sources.outside is not None
        found.append(_from_rows(draw, [(row, source[row] - size) for row in outside], sources.outside))
    if alone:
        found.append(_from_pool(draw, alone))
    inside = [(row, source[row]) for row in rows if 0 <= source[row] < size]
    if not inside and found:
        return found
    base, places = _paired(draw, [(row, draw.documents[other]) for row, other in inside])
    return [(base, OwnStates(places_of(places))), *found]


def _circle(draw: SourceRequest) -> dict[int, int]:
    """Pair the rows of a batch outside a step: each with the next one in a random cyclic order."""
    rows = draw.rows
    if len(rows) < 2:
        return dict.fromkeys(rows, NO_SOURCE)
    circle = draw.generator("pairing", *rows).permutation(rows).tolist()
    return dict(zip(circle, circle[1:] + circle[:1], strict=True))


def _from_rows(draw: SourceRequest, pairs: list[tuple[int, int]], batch: AnyBatch) -> _Found:
    """Pair rows with rows of another batch."""
    documents = documents_of(batch)
    base, source = _paired(draw, [(row, documents[other]) for row, other in pairs])
    return base, OtherStates(batch, places_of(source))


def _from_pool(draw: SourceRequest, rows: list[int]) -> _Found:
    """Pair each row with a random other row of the training text."""
    if not rows:
        return [], OwnStates(places_of([]))
    pool = draw.pool()
    chosen = [_another(pool, draw.ids[row], draw.generator("pairing", row)) for row in rows]
    batch = pool.batch(chosen, [draw.generator("masks", row) for row in rows])
    return _from_rows(draw, [(row, place) for place, row in enumerate(rows)], batch)


def _another(pool: SourcePool, own: int, generator: np.random.Generator) -> int:
    """Index of a uniformly drawn row other than this one."""
    place = int(generator.integers(len(pool)))
    while pool.number(place) == own:
        place = int(generator.integers(len(pool)))
    return place


def _paired(
    draw: SourceRequest, sources: list[tuple[int, list[Document]]]
) -> tuple[list[tuple[int, Integers]], list[tuple[int, Integers]]]:
    """Positions of each document of the rows, and equally many of a random document of the source."""
    base, source = [], []
    for row, others in sources:
        generator = draw.generator("positions", row)
        for document in draw.documents[row]:
            other = others[int(generator.integers(len(others)))]
            own, theirs = draw.across(document, other, generator)
            base.append((row, own))
            source.append((other.row, theirs))
    return base, source


def _within(draw: SourceRequest) -> list[tuple[int, Integers]]:
    """Positions of each row, over all its documents."""
    found = []
    for row in draw.rows:
        generator = draw.generator("positions", row)
        found.append((row, np.concatenate([draw.within(one, generator) for one in draw.documents[row]])))
    return found


def _normal(draw: SourceRequest, counts: list[tuple[int, int]], width: int) -> Tensor:
    numbers = [draw.generator("noise", row).standard_normal((count, width)) for row, count in counts]
    return torch.from_numpy(np.concatenate([np.zeros((0, width)), *numbers]))
