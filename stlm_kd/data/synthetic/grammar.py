"""Noun phrases, predicates and clauses, and agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stlm_kd.data.synthetic import lexicon
from stlm_kd.data.synthetic.draw import Draws
from stlm_kd.data.synthetic.lexicon import ANIMAL, CLASSES, PERSON, Gender, NounClass

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NounPhrase:
    """A noun phrase; ``words`` end with the head unless a modifier follows it."""

    words: Words
    noun_class: NounClass
    plural: bool
    gender: Gender

    def pronoun(self) -> str:
        """The subject pronoun that replaces it."""
        return "they" if self.plural else self.gender.value

    def reflexive(self) -> str:
        """The reflexive that it binds."""
        return reflexive(self.gender, plural=self.plural)


@dataclass(frozen=True, slots=True)
class Predicate:
    """A predicate: words before the verb, the verb in its base form, and words after it."""

    before: Words
    verb: str
    after: Words

    def words(self, *, plural: bool) -> Words:
        """The words of the predicate, the verb inflected for the subject's number."""
        return (*self.before, lexicon.verb_form(self.verb, plural=plural), *self.after)


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun with its number, without a determiner."""

    stem: str
    plural: bool


def reflexive(gender: Gender, *, plural: bool) -> str:
    """The reflexive pronoun of a gender and number."""
    if plural:
        return "themselves"
    return {Gender.MASCULINE: "himself", Gender.FEMININE: "herself", Gender.NEUTER: "itself"}[gender]


def draw_noun(draws: Draws, noun_class: NounClass, *, plural: bool | None = None) -> Noun:
    """A noun of the class; its number is drawn if ``plural`` is None."""
    return Noun(draws.zipf(noun_class.nouns), draws.chance(0.4) if plural is None else plural)


def noun_phrase(
    draws: Draws, noun: Noun, *, determiner: str | None = None, adjective: float = 0.3
) -> NounPhrase:
    """Determiner, an adjective with the given probability, and the noun."""
    noun_class = lexicon.CLASS_OF_NOUN[noun.stem]
    if determiner is None:
        fitting = lexicon.PLURAL_DETERMINERS if noun.plural else lexicon.SINGULAR_DETERMINERS
        determiner = draws.zipf(fitting)
    head = lexicon.noun_form(noun.stem, plural=noun.plural)
    middle = (draws.zipf(noun_class.adjectives),) if draws.chance(adjective) else ()
    words = lexicon.with_article((determiner, *middle, head))
    return NounPhrase(words, noun_class, noun.plural, lexicon.gender_of(noun.stem))


def plain_phrase(draws: Draws, noun_class: NounClass, *, plural: bool | None = None) -> NounPhrase:
    """The definite article and a noun of the class."""
    noun = draw_noun(draws, noun_class, plural=plural)
    return noun_phrase(draws, noun, determiner="the", adjective=0.0)


def named_person(draws: Draws) -> NounPhrase:
    """A person by name."""
    feminine = draws.chance(0.5)
    name = draws.zipf(lexicon.WOMEN if feminine else lexicon.MEN)
    return NounPhrase((name,), PERSON, False, Gender.FEMININE if feminine else Gender.MASCULINE)


def draw_object(draws: Draws, noun_class: NounClass, cast: Sequence[Noun] = ()) -> NounPhrase:
    """An object of the class, often a member of the cast."""
    known = [noun for noun in cast if lexicon.CLASS_OF_NOUN[noun.stem] is noun_class]
    if known and draws.chance(0.7):
        return noun_phrase(draws, draws.uniform(known), determiner="the", adjective=0.15)
    if noun_class is PERSON and draws.chance(0.3):
        return named_person(draws)
    return noun_phrase(draws, draw_noun(draws, noun_class))


def transitive_verbs(subject: NounClass, target: NounClass) -> Words:
    """The verbs that both classes allow; empty if the subject's class takes no transitive verb."""
    if subject is PERSON:
        return target.transitive
    if subject is ANIMAL:
        return tuple(verb for verb in target.transitive if verb in lexicon.ANIMAL_DOES)
    return ()


_TARGETS = {
    subject.name: tuple(target for target in CLASSES if transitive_verbs(subject, target))
    for subject in CLASSES
}


def intransitive(draws: Draws, subject: NounClass) -> Predicate:
    """A verb of the subject's class without an object: "often growls", "does not growl", "growls slowly"."""
    verb = draws.zipf(subject.intransitive)
    if draws.chance(0.1):
        return Predicate((), "do", ("not", verb))
    before = (draws.zipf(lexicon.FREQUENCY),) if draws.chance(0.15) else ()
    after = (draws.zipf(lexicon.MANNER),) if draws.chance(0.25) else ()
    return Predicate(before, verb, after)


def transitive(draws: Draws, subject: NounClass, cast: Sequence[Noun]) -> Predicate:
    """A verb with its object; the subject must be a person or an animal."""
    targets = _TARGETS[subject.name]
    in_cast = {lexicon.CLASS_OF_NOUN[noun.stem].name for noun in cast}
    known = [target for target in targets if target.name in in_cast]
    target = draws.uniform(known if known and draws.chance(0.7) else targets)
    verb = draws.zipf(transitive_verbs(subject, target))
    return Predicate((), verb, draw_object(draws, target, cast).words)


def copular(draws: Draws, subject: NounClass) -> Predicate:
    """The copula with an adjective of the subject's class."""
    return Predicate((), "be", (draws.zipf(subject.adjectives),))


def predicate(draws: Draws, subject: NounPhrase, cast: Sequence[Noun] = ()) -> Predicate:
    """Any predicate that fits the subject."""
    if _TARGETS[subject.noun_class.name]:
        if draws.chance(0.12):
            verbs = transitive_verbs(subject.noun_class, subject.noun_class)
            return Predicate((), draws.zipf(verbs), (subject.reflexive(),))
        if draws.chance(0.6):
            return transitive(draws, subject.noun_class, cast)
    if draws.chance(0.3):
        return copular(draws, subject.noun_class)
    return intransitive(draws, subject.noun_class)


def with_modifier(draws: Draws, head: NounPhrase, cast: Sequence[Noun]) -> NounPhrase:
    """The phrase with a second noun before its verb: "the dogs near the barn", "the dogs that chase hens"."""
    if _TARGETS[head.noun_class.name] and draws.chance(0.4):
        relative = transitive(draws, head.noun_class, cast).words(plural=head.plural)
        return replace(head, words=(*head.words, "that", *relative))
    other = plain_phrase(draws, draws.uniform(CLASSES))
    return replace(head, words=(*head.words, draws.zipf(lexicon.PREPOSITIONS), *other.words))


def clause(subject: NounPhrase, predicate: Predicate) -> Words:
    """Subject and predicate in agreement."""
    return (*subject.words, *predicate.words(plural=subject.plural))


def existential(draws: Draws, noun: Noun, *, determiner: str | None = None) -> Words:
    """A clause such as "there is a dog near the barn", which allows only some determiners."""
    if determiner is None:
        determiner = draws.zipf(lexicon.WEAK_PLURAL if noun.plural else lexicon.WEAK_SINGULAR)
    there = noun_phrase(draws, noun, determiner=determiner)
    place = plain_phrase(draws, draws.uniform(CLASSES))
    copula = lexicon.verb_form("be", plural=noun.plural)
    return ("there", copula, *there.words, draws.zipf(lexicon.PREPOSITIONS), *place.words)


def never(draws: Draws, noun: Noun) -> Words:
    """A clause such as "no dog ever growls", where "ever" requires the negative determiner."""
    subject = noun_phrase(draws, noun, determiner="no")
    verb = draws.zipf(subject.noun_class.intransitive)
    return clause(subject, Predicate(("ever",), verb, ()))


def sentence(words: Words) -> str:
    """The words as a sentence, with a capital and a full stop."""
    text = " ".join(words)
    return f"{text[0].upper()}{text[1:]}."
