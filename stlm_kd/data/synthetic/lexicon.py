"""The words: eight classes of nouns, and the verbs and adjectives that each class selects.

A verb or an adjective combines only with nouns of its class ("the willow wilts", never "the wagon wilts"), so
a model has to learn every stem's class from text. Within a list the first word is the most frequent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cache


class Gender(Enum):
    """Grammatical gender, as a pronoun shows it."""

    MASCULINE = "he"
    FEMININE = "she"
    NEUTER = "it"


@dataclass(frozen=True, slots=True)
class NounClass:
    """Nouns that the same verbs and adjectives select. All stems are in their base form."""

    name: str
    nouns: tuple[str, ...]
    intransitive: tuple[str, ...]  # verbs whose subject is of this class
    transitive: tuple[str, ...]  # verbs whose object is of this class
    adjectives: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _noun_class(name: str, nouns: str, intransitive: str, transitive: str, adjectives: str) -> NounClass:
    return NounClass(name, *map(_words, (nouns, intransitive, transitive, adjectives)))


CLASSES = (
    _noun_class(
        "person",
        "king sister uncle mother boy queen waiter aunt brother girl prince daughter father "
        "grandmother nephew princess duke niece grandfather waitress son duchess",
        "laugh sing argue whisper dance pray complain",
        "greet thank advise marry teach trust invite",
        "kind clever jealous honest polite lazy brave rude wise shy generous",
    ),
    _noun_class(
        "animal",
        "dog horse cat rabbit goat wolf hen mouse crow donkey otter goose spider lamb badger "
        "lizard falcon turtle beaver squirrel",
        "growl graze howl burrow purr hibernate prowl",
        "feed chase groom tame ride hunt milk",
        "furry fierce wild hungry nimble playful timid spotted sleek feral horned",
    ),
    _noun_class(
        "plant",
        "tree rose bush oak fern willow daisy vine tulip reed maple thistle lily pine poppy nettle "
        "cedar elm orchid clover",
        "bloom wither sprout blossom wilt droop ripen",
        "water plant prune pick uproot tend graft",
        "leafy lush thorny fragrant mossy shady evergreen prickly barren gnarled budding",
    ),
    _noun_class(
        "food",
        "cake soup pie cheese loaf stew sausage pancake biscuit pudding dumpling tart muffin "
        "sandwich noodle omelette pickle waffle pretzel cracker",
        "cool simmer crumble bake spoil sizzle melt",
        "eat cook taste serve chew season swallow",
        "sweet tasty salty fresh sour spicy stale crisp bitter creamy juicy",
    ),
    _noun_class(
        "tool",
        "hammer knife ladder saw shovel bucket broom axe needle brush rake drill wrench spade lever "
        "clamp chisel pulley mallet anvil",
        "rust clatter jam wobble clink splinter grind",
        "lift sharpen borrow grip oil wield polish",
        "rusty sharp blunt handy dented pointed greasy hefty jagged notched forged",
    ),
    _noun_class(
        "vehicle",
        "boat train cart truck wagon bus ferry bicycle carriage tractor tram van coach canoe raft "
        "sledge scooter yacht barge kayak",
        "arrive rattle depart stall swerve skid accelerate",
        "drive repair load steer park board overtake",
        "noisy swift speedy sluggish punctual rickety overloaded wheeled armoured streamlined driverless",
    ),
    _noun_class(
        "building",
        "house castle barn tower church cottage school mill palace inn library temple shed hut "
        "cabin bakery chapel stable theatre prison",
        "stand collapse creak leak loom echo settle",
        "enter build guard paint rent demolish inherit",
        "tall ancient ruined spacious abandoned roomy haunted stately draughty vaulted roofless",
    ),
    _noun_class(
        "garment",
        "coat hat shirt dress boot scarf glove jacket cloak sock belt skirt sweater apron cap gown "
        "ribbon robe vest sandal",
        "fade shrink flutter dangle wrinkle fray unravel",
        "wear sew fold mend iron knit button",
        "woollen striped ragged silken tight baggy knitted fashionable threadbare checked embroidered",
    ),
)
PERSON, ANIMAL = CLASSES[0], CLASSES[1]
CLASS_OF_NOUN = {noun: cls for cls in CLASSES for noun in cls.nouns}

# Transitive verbs that an animal can be the subject of; a person takes all of them.
ANIMAL_DOES = frozenset(
    {"trust", "chase", "feed", "hunt", "uproot", "eat", "taste", "chew", "swallow", "guard", "enter"}
)

FEMININE = frozenset(
    _words("sister mother queen aunt girl daughter grandmother princess niece waitress duchess")
)
WOMEN = _words("Anna Clara Ruth Nora Ella Vera Ida Mabel")
MEN = _words("Tom Oscar Henry Paul Felix Victor Hugo Amos")
TOWNS = _words("Oakford Westmere Redhaven Stonewick Elmsby Kingsdale Farrow Millport")

SINGULAR_DETERMINERS = ("the", "a", "this", "every", "that", "each", "one")
PLURAL_DETERMINERS = _words("the some these many two those few most all three several")
# Determiners that can follow "there is" and "there are" (weak), and those that cannot (strong).
WEAK_SINGULAR, STRONG_SINGULAR = ("a", "no", "one"), ("every", "each")
WEAK_PLURAL, STRONG_PLURAL = ("some", "many", "two", "no", "few", "three", "several"), ("most", "all")

PREPOSITIONS = ("near", "behind", "beside", "above", "below")
FREQUENCY = ("often", "always", "rarely", "usually", "sometimes", "seldom")
MANNER = ("slowly", "quietly", "again", "today", "suddenly", "outside")
REPORTING = ("say", "think", "know", "believe", "hope", "claim")

_IRREGULAR = {
    "wolf": "wolves", "mouse": "mice", "goose": "geese", "loaf": "loaves", "knife": "knives",
    "scarf": "scarves", "be": "is", "have": "has", "do": "does",
}  # fmt: skip


@cache
def _with_s(stem: str) -> str:
    """The plural of a noun, or the third person singular of a verb."""
    if stem in _IRREGULAR:
        return _IRREGULAR[stem]
    if stem.endswith(("s", "x", "z", "ch", "sh")) or stem == "echo":
        return stem + "es"
    if stem.endswith("y") and stem[-2] not in "aeou":
        return stem[:-1] + "ies"
    return stem + "s"


def noun_form(noun: str, *, plural: bool) -> str:
    """The noun in the singular or the plural.

    >>> noun_form("daisy", plural=True), noun_form("mouse", plural=True)
    ('daisies', 'mice')
    """
    return _with_s(noun) if plural else noun


def verb_form(verb: str, *, plural: bool) -> str:
    """The verb in the present tense, third person.

    >>> verb_form("marry", plural=False), verb_form("be", plural=True)
    ('marries', 'are')
    """
    if plural:
        return "are" if verb == "be" else verb
    return _with_s(verb)


def gender_of(noun: str) -> Gender:
    """The gender of a singular pronoun or reflexive for the noun."""
    if CLASS_OF_NOUN[noun] is not PERSON:
        return Gender.NEUTER
    return Gender.FEMININE if noun in FEMININE else Gender.MASCULINE


def with_article(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words, with a leading "a" replaced by "an" before a vowel."""
    if words[0] == "a" and words[1][0] in "aeiou":
        return ("an", *words[1:])
    return words
