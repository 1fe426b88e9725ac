"""Paragraphs with a few recurring entities, in two disjoint streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from stlm_kd.data.synthetic import grammar, lexicon
from stlm_kd.data.synthetic.draw import Draws
from stlm_kd.data.synthetic.grammar import Noun, NounPhrase, Words
from stlm_kd.errors import DataError, did_you_mean

SPLITS = ("train", "validation")
_LENGTHS = (4, 5, 6, 7, 8, 9)


def sample_documents(split: str, *, size: int, seed: int = 0) -> Iterator[str]:
    """Stream synthetic documents of four to nine sentences, up to ``size`` bytes (all ASCII) in total.

    The two splits have separate streams; a longer text of the same seed begins with the shorter one. Raises
    DataError for an unknown split, or a size too small for one document.
    """
    if split not in SPLITS:
        raise DataError(f"sample text: {split} is not a split of it{did_you_mean(split, SPLITS)}")
    return _documents(split, size, seed)


def _documents(split: str, size: int, seed: int) -> Iterator[str]:
    index = 0
    while True:
        document = _document(Draws(f"{split} {seed} {index}"))
        size -= len(document)
        if size < 0:
            break
        yield document
        index += 1
    if index == 0:
        raise DataError(
            f"sample text: a size of {size + len(document)} bytes holds no document; "
            f"give at least {len(document)} bytes"
        )


def _document(draws: Draws) -> str:
    cast = _draw_cast(draws)
    sentences = []
    previous: NounPhrase | None = None
    for _ in range(draws.uniform(_LENGTHS)):
        words, previous = _draw_sentence(draws, cast, previous)
        sentences.append(grammar.sentence(words))
    return " ".join(sentences)


def _draw_cast(draws: Draws) -> tuple[Noun, ...]:
    """The entities of a document: a person or an animal first, then nouns of any class."""
    actor = grammar.draw_noun(draws, lexicon.PERSON if draws.chance(0.6) else lexicon.ANIMAL)
    others = (grammar.draw_noun(draws, draws.uniform(lexicon.CLASSES)) for _ in range(3))
    return (actor, *others)


def _draw_subject(draws: Draws, cast: Sequence[Noun], previous: NounPhrase | None) -> NounPhrase:
    if previous is not None and draws.chance(0.3):
        return replace(previous, words=(previous.pronoun(),))
    if draws.chance(0.12):
        return grammar.named_person(draws)
    if draws.chance(0.5):
        return grammar.noun_phrase(draws, draws.zipf(cast), determiner="the", adjective=0.15)
    return grammar.noun_phrase(draws, grammar.draw_noun(draws, draws.uniform(lexicon.CLASSES)))


def _draw_clause(
    draws: Draws, cast: Sequence[Noun], previous: NounPhrase | None = None
) -> tuple[Words, NounPhrase]:
    subject = _draw_subject(draws, cast, previous)
    full = subject
    if len(subject.words) > 1 and draws.chance(0.25):
        full = grammar.with_modifier(draws, subject, cast)
    return grammar.clause(full, grammar.predicate(draws, subject, cast)), subject


def _draw_sentence(
    draws: Draws, cast: Sequence[Noun], previous: NounPhrase | None
) -> tuple[Words, NounPhrase | None]:
    """A sentence, and the antecedent of a pronoun in the next one."""
    kind = draws.weighted(("clause", "there", "ever", "town", "report"), (0.74, 0.08, 0.04, 0.06, 0.08))
    if kind == "there":
        return grammar.existential(draws, draws.zipf(cast)), None
    if kind == "ever":
        return grammar.never(draws, draws.zipf(cast)), None
    if kind == "town":
        words, subject = _draw_clause(draws, cast)
        return ("in", f"{draws.zipf(lexicon.TOWNS)},", *words), subject
    if kind == "report":
        reported, _ = _draw_clause(draws, cast)
        speaker = grammar.draw_object(draws, lexicon.PERSON, cast)
        verb = lexicon.verb_form(draws.zipf(lexicon.REPORTING), plural=speaker.plural)
        return (*speaker.words, verb, "that", *reported), speaker
    return _draw_clause(draws, cast, previous)
