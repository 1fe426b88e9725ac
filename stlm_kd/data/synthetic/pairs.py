"""Minimal pairs: two sentences that differ in one word, of which the grammar accepts only the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from stlm_kd.data.synthetic import grammar, lexicon
from stlm_kd.data.synthetic.draw import Draws
from stlm_kd.data.synthetic.grammar import Predicate, Words
from stlm_kd.data.synthetic.lexicon import ANIMAL, CLASSES, PERSON, Gender, NounClass
from stlm_kd.errors import DataError, did_you_mean

BENCHMARK = "sample_minimal_pairs"
"""The name of the pairs as a benchmark; its rows are generated, not downloaded."""

_TRIES = 100


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """An acceptable sentence, one that breaks a single rule of the grammar, and the rule's name."""

    good: str
    bad: str
    phenomenon: str


Maker = Callable[[Draws], tuple[Words, Words]]


def minimal_pairs(count: int, *, seed: int = 0, phenomena: Sequence[str] = ()) -> list[MinimalPair]:
    """``count`` synthetic minimal pairs, cycling through the phenomena (by default all of them).

    The pairs of one phenomenon do not depend on which others are requested. DataError: an unknown one.
    """
    names = tuple(phenomena) or PHENOMENA
    for name in names:
        if name not in _MAKERS:
            raise DataError(f"minimal pairs: {name} is not a phenomenon{did_you_mean(name, _MAKERS)}")
    streams = [_pairs_of(name, seed) for name in names]
    return [next(streams[index % len(streams)]) for index in range(count)]


def _pairs_of(phenomenon: str, seed: int) -> Iterator[MinimalPair]:
    """An endless stream of pairs; pairs repeat only when new ones have become rare."""
    draws = Draws(f"pairs {seed} {phenomenon}")
    seen: set[tuple[Words, Words]] = set()
    while True:
        pair = _MAKERS[phenomenon](draws)
        for _ in range(_TRIES):
            if pair not in seen:
                break
            pair = _MAKERS[phenomenon](draws)
        seen.add(pair)
        yield MinimalPair(grammar.sentence(pair[0]), grammar.sentence(pair[1]), phenomenon)


def _any_class(draws: Draws) -> NounClass:
    return draws.uniform(CLASSES)


def _other_class(draws: Draws, *excluded: NounClass) -> NounClass:
    return draws.uniform([cls for cls in CLASSES if cls not in excluded])


def _subject_verb_agreement(draws: Draws) -> tuple[Words, Words]:
    subject = grammar.noun_phrase(draws, grammar.draw_noun(draws, _any_class(draws)), determiner="the")
    predicate = grammar.predicate(draws, subject)
    while predicate.after and predicate.after[-1] == subject.reflexive():  # it would reveal the number
        predicate = grammar.predicate(draws, subject)
    return grammar.clause(subject, predicate), (*subject.words, *predicate.words(plural=not subject.plural))


def _agreement_across_attractor(draws: Draws) -> tuple[Words, Words]:
    plural = draws.chance(0.5)
    head = grammar.plain_phrase(draws, _any_class(draws), plural=plural)
    other = grammar.plain_phrase(draws, _any_class(draws), plural=not plural)
    words = (*head.words, draws.zipf(lexicon.PREPOSITIONS), *other.words)
    predicate = grammar.intransitive(draws, head.noun_class)
    return (*words, *predicate.words(plural=plural)), (*words, *predicate.words(plural=not plural))


def _anaphor_agreement(draws: Draws) -> tuple[Words, Words]:
    noun_class = draws.uniform((PERSON, ANIMAL))
    subject = grammar.noun_phrase(draws, grammar.draw_noun(draws, noun_class), determiner="the")
    verb = draws.zipf(grammar.transitive_verbs(noun_class, noun_class))
    wrong = [
        form
        for form in (*(grammar.reflexive(gender, plural=False) for gender in Gender), "themselves")
        if form != subject.reflexive()
    ]
    good = grammar.clause(subject, Predicate((), verb, (subject.reflexive(),)))
    return good, (*good[:-1], draws.uniform(wrong))


def _determiner_noun_agreement(draws: Draws) -> tuple[Words, Words]:
    """The noun is in object position, so no verb shows its number."""
    target, plural = _any_class(draws), draws.chance(0.5)
    determiner = draws.uniform(("these", "those", "many") if plural else ("this", "that", "every"))
    noun = draws.zipf(target.nouns)
    actor = grammar.plain_phrase(draws, PERSON)
    start = grammar.clause(actor, Predicate((), draws.zipf(target.transitive), (determiner,)))
    good, bad = (lexicon.noun_form(noun, plural=number) for number in (plural, not plural))
    return (*start, good), (*start, bad)


def _selection_of_subject(draws: Draws) -> tuple[Words, Words]:
    verb_class = _any_class(draws)
    predicate = grammar.intransitive(draws, verb_class)
    return _swap_noun(draws, verb_class, _other_class(draws, verb_class), predicate, subject=True)


def _selection_of_object(draws: Draws) -> tuple[Words, Words]:
    target = _any_class(draws)
    predicate = Predicate((), draws.zipf(target.transitive), ())
    return _swap_noun(draws, target, _other_class(draws, target), predicate, subject=False)


def _selection_of_adjective(draws: Draws) -> tuple[Words, Words]:
    """The adjective changes and the noun stays, so noun frequencies give no cue."""
    noun_class = _any_class(draws)
    subject = grammar.plain_phrase(draws, noun_class)
    good = grammar.clause(subject, grammar.copular(draws, noun_class))
    bad = grammar.clause(subject, grammar.copular(draws, _other_class(draws, noun_class)))
    return good, bad


def _swap_noun(
    draws: Draws, right: NounClass, wrong: NounClass, predicate: Predicate, *, subject: bool
) -> tuple[Words, Words]:
    """The clause with a noun of the right class, and with one of the wrong class at the same rank."""
    plural = draws.chance(0.4)
    rank = draws.zipf(range(min(len(right.nouns), len(wrong.nouns))))
    phrases = [("the", lexicon.noun_form(cls.nouns[rank], plural=plural)) for cls in (right, wrong)]
    if subject:
        verb = predicate.words(plural=plural)
        return (*phrases[0], *verb), (*phrases[1], *verb)
    actor = grammar.clause(grammar.named_person(draws), predicate)
    return (*actor, *phrases[0]), (*actor, *phrases[1])


def _quantifier_after_there(draws: Draws) -> tuple[Words, Words]:
    noun = grammar.draw_noun(draws, _any_class(draws))
    weak = draws.uniform(lexicon.WEAK_PLURAL if noun.plural else ("no", "one"))
    strong = draws.uniform(lexicon.STRONG_PLURAL if noun.plural else lexicon.STRONG_SINGULAR)
    good = grammar.existential(draws, noun, determiner=weak)
    return good, (*good[:2], strong, *good[3:])


def _quantifier_before_ever(draws: Draws) -> tuple[Words, Words]:
    noun = grammar.draw_noun(draws, _any_class(draws))
    good = grammar.never(draws, noun)
    wrong = draws.uniform(("the", "some", "all", "most") if noun.plural else ("the", "every", "this", "each"))
    return good, (wrong, *good[1:])


_MAKERS: dict[str, Maker] = {
    "agreement_across_attractor": _agreement_across_attractor,
    "anaphor_agreement": _anaphor_agreement,
    "determiner_noun_agreement": _determiner_noun_agreement,
    "quantifier_after_there": _quantifier_after_there,
    "quantifier_before_ever": _quantifier_before_ever,
    "selection_of_adjective": _selection_of_adjective,
    "selection_of_object": _selection_of_object,
    "selection_of_subject": _selection_of_subject,
    "subject_verb_agreement": _subject_verb_agreement,
}
PHENOMENA = tuple(_MAKERS)
