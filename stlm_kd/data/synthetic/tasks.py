"""Two synthetic labelled tasks: acceptability (like CoLA) and sentiment (like SST-2).

Reports of results on them must say that they are synthetic.

* ``acceptability``: sentences that the grammar accepts (1), and the same with one word that breaks a rule
  (0). Both sentences of a pair are in the same split, so single words give no cue.
* ``sentiment``: a sentence expresses praise (1) or blame (0). Negation reverses a word, and so does a denial
  such as "nobody thinks that"; of two clauses only the main one counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Final

from stlm_kd.data.synthetic import grammar, lexicon
from stlm_kd.data.synthetic.draw import Draws
from stlm_kd.data.synthetic.grammar import Predicate, Words
from stlm_kd.data.synthetic.lexicon import CLASSES
from stlm_kd.data.synthetic.pairs import minimal_pairs
from stlm_kd.errors import DataError

_PARTS_HELD_OUT, _PARTS = 1, 4
_FIRST_PAIRS = 512
_MOST_MISSES = 10_000  # consecutive repetitions after which the sentences count as exhausted

_PRAISE = ("good", "lovely", "splendid", "charming", "delightful", "superb", "pleasant", "wonderful", "fine")
_BLAME = ("bad", "awful", "dreadful", "dull", "horrid", "ugly", "terrible", "dismal", "poor")
_ADMIRES = ("admire", "adore", "praise", "enjoy")
_DESPISES = ("despise", "hate", "mock", "detest")
_DEGREES = ("very", "quite", "truly", "rather")

Example = tuple[str, int]


def sample_rows(task: str, split: str, *, count: int, seed: int = 0) -> list[dict[str, str | int]]:
    """Rows with ``idx``, ``sentence`` and ``label`` (1 acceptable or positive, 0 not), balanced over labels.

    The splits share no sentence, whatever their sizes; a longer list begins with the shorter one. Raises
    DataError if the grammar has fewer than ``count`` distinct sentences.
    """
    examples = _of_split(TASKS[task](seed), split, task)
    found = (next(examples) for _ in range(count))
    return [{"idx": idx, "sentence": text, "label": label} for idx, (text, label) in enumerate(found)]


def _of_split(groups: Iterator[tuple[Example, ...]], split: str, task: str) -> Iterator[Example]:
    """The examples of the groups that are entirely in the split, each sentence once."""
    seen: set[str] = set()
    misses = 0
    for group in groups:
        texts = [text for text, _ in group]
        if not seen.isdisjoint(texts):
            misses += 1
            if misses > _MOST_MISSES:
                raise DataError(
                    f"sample {task}: {split} has only {len(seen)} distinct sentences; set a smaller size"
                )
        elif all(_split_of(text) == split for text in texts):
            misses = 0
            seen.update(texts)
            yield from group


def _split_of(text: str) -> str:
    """The split of a sentence: a quarter of all sentences is held out."""
    part = hashlib.sha256(text.encode()).digest()[0] % _PARTS
    return "validation" if part < _PARTS_HELD_OUT else "train"


def _acceptability(seed: int) -> Iterator[tuple[Example, ...]]:
    count = _FIRST_PAIRS
    done = 0
    while True:
        pairs = minimal_pairs(count, seed=seed)
        for pair in pairs[done:]:
            swapped = Draws(f"order {seed} {pair.good} {pair.bad}").chance(0.5)
            group = ((pair.good, 1), (pair.bad, 0))
            yield group[::-1] if swapped else group
        done, count = count, 2 * count


def _sentiment(seed: int) -> Iterator[tuple[Example, ...]]:
    """Groups with one example of each label, in random order."""
    draws = Draws(f"sentiment {seed}")
    while True:
        first = draws.chance(0.5)
        yield tuple((grammar.sentence(_opinion(draws, good=good)), int(good)) for good in (first, not first))


def _opinion(draws: Draws, *, good: bool) -> Words:
    kind = draws.weighted(
        ("plain", "but", "although", "afterthought", "nobody"), (0.5, 0.14, 0.12, 0.12, 0.12)
    )
    if kind == "plain":
        return _verdict(draws, good=good)
    if kind == "nobody":
        speaker = draws.uniform((("nobody", "thinks"), ("few", "people", "think"), ("no", "guest", "says")))
        return (*speaker, "that", *_verdict(draws, good=not good, turned=0.0))
    main = _verdict(draws, good=good)
    other = _verdict(draws, good=draws.chance(0.5))
    if kind == "but":
        return (*_with_comma(other), "but", *main)
    if kind == "although":
        return ("although", *_with_comma(other), *main)
    return (*_with_comma(main), "although", *other)


def _verdict(draws: Draws, *, good: bool, turned: float = 0.2) -> Words:
    """A clause that praises or blames something, possibly by negating the opposite."""
    negated = draws.chance(turned)
    says_good = good != negated
    if draws.chance(0.35):
        return _attitude(draws, good=says_good, negated=negated)
    noun = grammar.draw_noun(draws, draws.uniform(CLASSES))
    subject = grammar.noun_phrase(draws, noun, determiner="the", adjective=0.15)
    adverb = (draws.uniform(("not", "never", "hardly")),) if negated else ()
    degree = (draws.zipf(_DEGREES),) if not negated and draws.chance(0.25) else ()
    opinion = draws.zipf(_PRAISE if says_good else _BLAME)
    return grammar.clause(subject, Predicate((), "be", (*adverb, *degree, opinion)))


def _attitude(draws: Draws, *, good: bool, negated: bool) -> Words:
    """A clause such as "the aunt does not admire the lamb"."""
    subject = grammar.draw_object(draws, lexicon.PERSON)
    target = grammar.draw_object(draws, draws.uniform(CLASSES))
    verb = draws.zipf(_ADMIRES if good else _DESPISES)
    if negated:
        return grammar.clause(subject, Predicate((), "do", ("not", verb, *target.words)))
    return grammar.clause(subject, Predicate((), verb, target.words))


def _with_comma(words: Words) -> Words:
    return (*words[:-1], f"{words[-1]},")


TASKS: Final[dict[str, Callable[[int], Iterator[tuple[Example, ...]]]]] = {
    "acceptability": _acceptability,
    "sentiment": _sentiment,
}
