"""Related words: as tokens of a vocabulary, in the form of the word that they stand for."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from stlm_kd.data.synthetic import sample_documents
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import MissingResourceError, ModelError
from stlm_kd.interventions import SourceInputs, WordTokens, draw_plan, wordnet
from stlm_kd.interventions.plan import OtherStates
from stlm_kd.interventions.spec import Intervention
from stlm_kd.interventions.wordnet import Relation, check_relation, thesaurus, wordnet_identity
from stlm_kd.vocabulary.token_bytes import read_vocabulary
from tests.support.pico import packed_batch


@dataclass
class Lemma:
    """As NLTK's."""

    word: str
    contraries: Sequence[Lemma] = ()

    def name(self) -> str:
        return self.word

    def antonyms(self) -> Sequence[Lemma]:
        return self.contraries


@dataclass
class Synset:
    words: Sequence[Lemma]
    parts: Sequence[Synset] = ()
    wholes: Sequence[Synset] = ()

    def lemmas(self) -> Sequence[Lemma]:
        return self.words

    def part_meronyms(self) -> Sequence[Synset]:
        return self.parts

    def part_holonyms(self) -> Sequence[Synset]:
        return self.wholes

    def _none(self) -> Sequence[Synset]:
        return ()

    substance_meronyms = member_meronyms = substance_holonyms = member_holonyms = _none


BIG = Lemma("big")
SMALL = Lemma("small", [BIG])
WHEEL = Synset([Lemma("wheel")])
CAR = Synset([Lemma("car"), Lemma("auto"), Lemma("motor_car")], parts=[WHEEL])


@dataclass
class SmallWordNet:
    """A WordNet of few words with NLTK's methods."""

    entries: dict[tuple[str, str], list[Synset]] = field(
        default_factory=lambda: {
            ("car", "n"): [CAR],
            ("wheel", "n"): [replace(WHEEL, wholes=[CAR])],
            ("small", "a"): [Synset([SMALL, Lemma("little")])],
            ("walk", "v"): [Synset([Lemma("walk"), Lemma("hike"), Lemma("stop")])],
        }
    )
    forms: dict[tuple[str, str], str] = field(
        default_factory=lambda: {
            ("cars", "n"): "car", ("autos", "n"): "auto", ("walking", "v"): "walk", ("hiking", "v"): "hike",
            ("stopping", "v"): "stop",
        }
    )  # fmt: skip

    def morphy(self, word: str, part: str) -> str | None:
        return word if (word, part) in self.entries else self.forms.get((word, part))

    def synsets(self, lemma: str, part: str) -> list[Synset]:
        return self.entries.get((lemma, part), [])


WORDS = [
    "car", "auto", "cars", "autos", "Car", "Auto", "wheel", "small", "big", "little", "walking", "hiking",
    "stopping", "unknown", "walk",
]  # fmt: skip
LEXICON = WordTokens(np.arange(5, 40), dict(enumerate(WORDS, start=5)), frozenset({30}), "pico")
IDS = {word: number for number, word in LEXICON.words.items()}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(wordnet, "_wordnet", SmallWordNet)
    thesaurus.cache_clear()
    yield
    thesaurus.cache_clear()
    wordnet_identity.cache_clear()


def related(relation: Relation, word: str) -> set[str]:
    return {LEXICON.words[token] for token in thesaurus(LEXICON, relation).of(IDS[word])}


@pytest.mark.parametrize(
    ("relation", "word", "expected"),
    [
        ("synonym", "car", {"auto"}),
        ("synonym", "cars", {"autos"}),
        ("synonym", "Car", {"Auto"}),
        ("synonym", "walking", {"hiking", "stopping"}),
        ("synonym", "walk", set()),  # neither lemma is a token, nor are they in another form
        ("synonym", "unknown", set()),
        ("antonym", "small", {"big"}),
        ("antonym", "car", set()),
        ("meronym", "car", {"wheel"}),
        ("meronym", "cars", {"wheel"}),  # there is no token for wheels
        ("holonym", "wheel", {"car", "auto"}),
    ],
)
def test_related_words_are_tokens_in_the_same_form(relation: Relation, word: str, expected: set[str]) -> None:
    assert related(relation, word) == expected


def test_a_token_that_is_no_word_is_related_to_none() -> None:
    assert thesaurus(LEXICON, "synonym").of(35) == ()


def sources(ids: list[int], source: str) -> list[list[int]]:
    """What stands in the place of these ids, in several steps, when all are replaced."""
    batch = packed_batch([[len(ids)]], length=len(ids))
    batch = replace(batch, input_ids=torch.tensor([ids]))
    intervention = Intervention("d", {"t": {0: (0,)}}, source=source, fraction=1.0)
    given = SourceInputs(0, None, LEXICON)
    found = []
    for index in range(30):
        plan = draw_plan(intervention, batch, given, index=index, steps=30, causal=True)
        assert isinstance(plan.source, OtherStates)
        found.append(plan.source.batch.input_ids[0].tolist())
    return found


def test_words_are_replaced_by_related_ones_and_others_at_random() -> None:
    found = sources([IDS["cars"], IDS["unknown"], IDS["walking"]], "synonym")
    assert {ids[0] for ids in found} == {IDS["autos"]}
    assert {ids[2] for ids in found} == {IDS["hiking"], IDS["stopping"]}
    others = {ids[1] for ids in found}
    assert len(others) > 10 and others <= set(LEXICON.ids.tolist())


def test_a_token_with_which_a_longer_word_begins_is_no_word() -> None:
    found = sources([IDS["cars"], 30], "synonym")
    assert len({ids[0] for ids in found}) > 10


@pytest.mark.parametrize(("source", "word", "expected"), [
    ("antonym", "small", "big"), ("meronym", "car", "wheel"), ("synonym", "car", "auto"),
])  # fmt: skip
def test_every_relation_is_a_source(source: str, word: str, expected: str) -> None:
    assert {ids[0] for ids in sources([IDS[word]], source)} == {IDS[expected]}


def test_holonyms_are_a_source() -> None:
    assert {ids[0] for ids in sources([IDS["wheel"]], "holonym")} == {IDS["car"], IDS["auto"]}


def test_a_vocabulary_without_a_related_word_is_refused() -> None:
    check_relation(LEXICON, "antonym")
    poor = WordTokens(np.arange(5, 8), {5: "car", 6: "wheel"}, name="poor")
    check_relation(poor, "meronym")
    with pytest.raises(
        ModelError, match="poor: no word of this vocabulary is the antonym of another in WordNet"
    ):
        check_relation(poor, "antonym")


@pytest.mark.parametrize("masked", [False, True], ids=["byte-level", "wordpiece"])
def test_the_words_of_a_tokenizer_begin_words_and_are_letters(masked: bool) -> None:
    texts = list(sample_documents("train", size=20_000, seed=1))
    tokenizer = train_tokenizer(texts, size=400, masked=masked)
    lexicon = WordTokens.of(read_vocabulary(tokenizer))
    special = set(tokenizer.all_special_ids)
    assert special and not special & set(lexicon.ids.tolist())
    assert set(lexicon.words) <= set(lexicon.ids.tolist())
    for number, word in lexicon.words.items():
        assert word.isalpha()
        assert tokenizer.decode([number]).strip().lower() == word.lower()
        assert number not in lexicon.continuations
    two = tokenizer(" the zzthe", add_special_tokens=False)["input_ids"]
    assert two[0] in lexicon.words and two[-1] in lexicon.continuations


@dataclass
class Files:
    """A corpus as NLTK reads it, from a folder or an archive."""

    root: Any

    def fileids(self) -> tuple[str, ...]:
        return ("index.noun", "data.noun")


def identity(monkeypatch: pytest.MonkeyPatch, root: object) -> str:
    monkeypatch.setattr(wordnet, "_wordnet", lambda: Files(root))
    wordnet_identity.cache_clear()
    return wordnet_identity()


def test_another_wordnet_is_told_by_its_files_packed_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])  # outside these it opens nothing
    found = []
    for name, contents in (("a", ("car n", "auto")), ("b", ("car n", "motor")), ("c", ("car nauto", ""))):
        (tmp_path / name).mkdir()
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for file, content in zip(Files(None).fileids(), contents, strict=True):
                (tmp_path / name / file).write_text(content)
                archive.writestr(f"wordnet/{file}", content)
        folder = nltk.data.FileSystemPathPointer(str(tmp_path / name))
        packed = nltk.data.ZipFilePathPointer(str(tmp_path / f"{name}.zip"), "wordnet/")
        found.append(identity(monkeypatch, folder))
        assert identity(monkeypatch, packed) == found[-1]
    assert len(set(found)) == 3


def test_the_real_wordnet_knows_forms_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where NLTK finds one."""
    monkeypatch.undo()
    words = ["dog", "dogs", "hound", "hounds", "good", "evil", "car", "cars", "trunk", "tree"]
    lexicon = WordTokens(np.arange(len(words)), dict(enumerate(words)))
    try:
        known = {relation: thesaurus(lexicon, relation) for relation in get_args(wordnet.Relation)}
    except MissingResourceError as error:
        pytest.skip(str(error))
    assert words[known["synonym"].of(1)[0]] == "hounds"
    assert "evil" in {words[token] for token in known["antonym"].of(4)}
    assert "trunk" in {words[token] for token in known["meronym"].of(9)}
    assert known["holonym"].of(8)
