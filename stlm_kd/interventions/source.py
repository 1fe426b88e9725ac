"""Counterfactual sources: where the states or tokens come from that replace those of the base.

One is a function decorated with ``register_source``; its keyword-only arguments are its options in recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from stlm_kd.interventions.word_tokens import WordTokens
from stlm_kd.registry import Extension, Registry, registering

Options: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SourceData:
    """Data that a source reads beside the text.

    Attributes:
        require: Raises MissingResourceError if they are not installed.
        identity: Their version, which is part of the key of a student.
        check: Raises ModelError if a vocabulary has nothing in common with them.
    """

    require: Callable[[], object]
    identity: Callable[[], Mapping[str, str]]
    check: Callable[[WordTokens], object]


@dataclass(frozen=True, eq=False)
class CounterfactualSource(Extension):
    """A counterfactual source: ``source(draw, /, **options)`` returns base positions and their replacement.

    Attributes:
        replaces: Hidden states of a layer, or the tokens that all models read.
        runs_source: Whether the models run on a source text to get the states.
        pairs_rows: Whether rows of an optimizer step are sources of each other with these options.
        is_for_held_out: Whether held-out rows and examples can be compared with it.
        data: Data that it reads beside the text.
        keys: By option, a key of the objective that gives the option too, and under which it is stored.
    """

    replaces: Literal["states", "tokens"] = "states"
    runs_source: bool = True
    pairs_rows: Callable[[Options], bool] = lambda options: False
    is_for_held_out: bool = True
    data: SourceData | None = None
    keys: Mapping[str, str] = field(default_factory=dict)


def _fault(found: Any, arguments: tuple[Any, ...]) -> str | None:
    """What is wrong with the result of a source."""
    if isinstance(found, tuple) and len(found) == 2:
        return None
    return f"{type(found).__name__} found; expected two values, the base positions and their replacement"


SOURCES: Registry[CounterfactualSource] = Registry(
    "counterfactual source", 1, reserved=("name",), fault=_fault
)


register_source = registering(
    SOURCES,
    CounterfactualSource,
    """Register a function ``source(draw, /, **options)`` as a source of counterfactual states or tokens.

    ``draw`` is a ``SourceRequest``: the batch, its documents, and named random generators. The function
    returns the base positions to overwrite (``Positions``: rows and positions, int64, shape (P,) each) and
    what replaces their states (``OtherStates``, ``OwnStates`` …) or tokens (``Tokens``). Recipes name it in
    an objective: ``{loss: diito, source: {name: NAME, option: value}}``.

    >>> from stlm_kd.interventions.plan import Tokens
    >>> from stlm_kd.interventions.draw import places_of
    >>> @register_source("constant-token", replaces="tokens", runs_source=False)
    ... def constant_token(draw, /, *, token: int = 0):
    ...     places = places_of(draw)
    ...     return places, Tokens(places.rows.new_full(places.rows.shape, token))
    >>> SOURCES["constant-token"].replaces
    'tokens'
    """,
)
