"""Sentences with one tag per word; after tokenisation a word's first token has its tag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stlm_kd.data.batch import IGNORED, Integers
from stlm_kd.data.labelled.batches import ExampleBatch, example_batch
from stlm_kd.data.labelled.encoding import MULTIPLE, EncodedTexts, encode_texts, encodings
from stlm_kd.data.labelled.examples import drawn_places, rows_of
from stlm_kd.data.sources.sources import hash_of
from stlm_kd.data.sources.tables import Row, shown
from stlm_kd.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Sentences:
    """N sentences of words, with an index into ``tag_names`` (``O``, ``B-PER``, …) for every word."""

    words: tuple[tuple[str, ...], ...]
    tags: tuple[tuple[int, ...], ...]
    ids: tuple[str, ...]
    tag_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.words)

    def draw(self, fraction: float, *, seed: int) -> Sentences:
        """A random fraction of the sentences, at least one, in their order."""
        places = drawn_places(len(self), fraction, seed=seed)
        return replace(
            self,
            words=tuple(self.words[place] for place in places),
            tags=tuple(self.tags[place] for place in places),
            ids=tuple(self.ids[place] for place in places),
        )

    def digest(self, *, in_order: bool = False) -> str:
        """SHA-256 (hex) of ids, words and tags, independent of the sentences' order unless ``in_order``."""
        rows = [*zip(self.ids, self.words, self.tags, strict=True)]
        return hash_of(rows if in_order else sorted(rows))


def read_sentences(
    tag_names: Sequence[str], *, path: str | None = None, dataset: str | None = None, split: str = "train"
) -> Sentences:
    """Read sentences of a file or of a data set on the Hub, with columns ``tokens`` and ``ner_tags``.

    A tag is one of ``tag_names``, or an index counted from 0; ``path`` and ``dataset`` as for
    ``read_questions``. Raises MissingResourceError if not found; DataError for malformed content, an unknown
    tag, different numbers of tags and words, or no sentence at all.
    """
    columns = ("tokens", "ner_tags")
    rows = rows_of(path, dataset, split, columns=columns, optional=("id",))
    words, tags = [], []
    ids: list[str] = []
    for place, row in rows:
        found = _sentence(row, place, tag_names)
        if found[0]:
            words.append(found[0])
            tags.append(found[1])
            own = row.get("id")
            ids.append(str(len(ids) if own is None else own))
    if not words:
        raise DataError(f"{path or dataset}: no sentence in it")
    if len(set(ids)) < len(ids):
        ids = [str(number) for number in range(len(ids))]
    return Sentences(tuple(words), tuple(tags), tuple(ids), tuple(tag_names))


def _sentence(row: Row, place: str, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    words, tags = row["tokens"], row["ner_tags"]
    if not isinstance(words, list) or not isinstance(tags, list):
        value, column = (tags, "ner_tags") if isinstance(words, list) else (words, "tokens")
        raise DataError(f"{place}, column {column}: {shown(value)} found; expected a list")
    if len(words) != len(tags):
        raise DataError(
            f"{place}: {len(words)} words (tokens) and {len(tags)} tags (ner_tags) found; expected one tag "
            "for each word"
        )
    for word in words:
        if not isinstance(word, str):
            raise DataError(
                f"{place}, column tokens: {shown(word)} found; expected text; quote it or remove the row"
            )
    return tuple(words), tuple(_tag(tag, place, names) for tag in tags)


def _tag(tag: object, place: str, names: Sequence[str]) -> int:
    if isinstance(tag, int) and not isinstance(tag, bool) and 0 <= tag < len(names):
        return tag
    if tag in names:
        return names.index(str(tag))
    raise DataError(f"{place}: tag {shown(tag)} is not one of the tags{did_you_mean(str(tag), names)}")


@dataclass(frozen=True, slots=True)
class EncodedWords:
    """Tokenised sentences, of P positions together.

    ``labels``, (P,) int64: at a word's first token its tag, elsewhere ``IGNORED``. ``firsts``: for each
    sentence, the position of each word's first token in its row; -1 for a word that was truncated or has
    none.
    """

    own: EncodedTexts
    labels: Integers
    firsts: tuple[npt.NDArray[np.int64], ...]

    def __len__(self) -> int:
        return len(self.own)

    @property
    def unread(self) -> int:
        """Number of words without a token in their row."""
        return int(sum((row < 0).sum() for row in self.firsts))

    def batch(self, places: Integers) -> ExampleBatch:
        """These sentences in this order; one row of padding if there are none."""
        tags = replace(self.own, tokens=self.labels.astype(np.int32), types=None, padding=IGNORED)
        return example_batch(self.own, places, tags.rows(places).input_ids, of="words")


def encode_words(
    sentences: Sentences, tokenizer: PreTrainedTokenizerFast, *, context: int, multiple: int = MULTIPLE
) -> EncodedWords:
    """Encode sentences: words joined by spaces, with special tokens, truncated to ``context`` tokens."""
    texts = [(" ".join(words),) for words in sentences.words]
    own = encode_texts(texts, tokenizer, context=context, multiple=multiple)
    labels = np.full(len(own.tokens), IGNORED, np.int64)
    firsts = []
    for number, encoding in enumerate(encodings(texts, tokenizer, context)):
        first_W = _first_tokens(sentences.words[number], encoding.offsets, encoding.special_tokens_mask)
        read_W = first_W >= 0
        labels[own.offsets[number] + first_W[read_W]] = np.array(sentences.tags[number])[read_W]
        firsts.append(first_W)
    return EncodedWords(own, labels, tuple(firsts))


def _first_tokens(
    words: Sequence[str], offsets: Sequence[tuple[int, int]], special: Sequence[int]
) -> npt.NDArray[np.int64]:
    """The position of the first token with a character of each word; -1 if there is none."""
    ends = np.cumsum([len(word) + 1 for word in words])  # each with the space after it
    first_W = np.full(len(words), -1, np.int64)
    for position, ((begin, end), is_special) in enumerate(zip(offsets, special, strict=True)):
        if is_special or begin == end:
            continue
        word = int(np.searchsorted(ends, end - 1, side="right"))
        if word < len(words) and first_W[word] < 0:
            first_W[word] = position
    return first_W
