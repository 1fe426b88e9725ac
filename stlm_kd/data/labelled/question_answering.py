"""Extractive question answering: answers are spans of passages, which are read in overlapping windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from stlm_kd.data.batch import Integers
from stlm_kd.data.labelled.batches import ExampleBatch, example_batch
from stlm_kd.data.labelled.encoding import MULTIPLE, EncodedTexts, encodings, padding_id, separates
from stlm_kd.data.labelled.examples import drawn_places, rows_of
from stlm_kd.data.sources.sources import hash_of
from stlm_kd.data.sources.tables import Row, shown
from stlm_kd.data.tokenizers import document_ends
from stlm_kd.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LONGEST_QUESTION = 64
"""Maximum tokens of a question, as in BERT's own script."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question; ``answers`` are (text, begin in the passage), ``id`` identifies it in results."""

    id: str
    question: str
    passage: str
    answers: tuple[tuple[str, int], ...]


def read_questions(
    *, path: str | None = None, dataset: str | None = None, split: str = "train"
) -> tuple[Question, ...]:
    """Read questions in the format of SQuAD v1.1: ``id``, ``context``, ``question``, ``answers``.

    ``path`` is a file for ``tables.read_rows``; or else ``dataset`` is on the Hub. Raises
    MissingResourceError if it is not found; DataError for malformed content, a question without answer or id,
    an answer that is not at its ``answer_start``, duplicate ids, or no question at all.
    """
    columns = ("id", "context", "question", "answers")
    rows = rows_of(path, dataset, split, columns=columns)
    found = tuple(_question(row, place) for place, row in rows)
    if not found:
        raise DataError(f"{path or dataset}: no question in it")
    if len({one.id for one in found}) < len(found):
        raise DataError(f"{path or dataset}: two questions have the same id; give each its own")
    return found


def _question(row: Row, place: str) -> Question:
    question, passage = (_required_text(row, column, place) for column in ("question", "context"))
    if not isinstance(row["id"], (str, int)) or isinstance(row["id"], bool):
        raise DataError(f"{place}, column id: {shown(row['id'])} found; expected a text or an integer")
    pairs = _answers(row["answers"], f"{place}, column answers")
    for text, start in pairs:
        if passage[start : start + len(text)] != text:
            raise DataError(
                f"{place}: the answer {text!r} is not at character {start} of the context; expected the "
                "index of its first character, counted from 0; correct answer_start"
            )
    return Question(str(row["id"]), question, passage, pairs)


def _required_text(row: Row, column: str, place: str) -> str:
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{place}, column {column}: {shown(value)} found; expected text; fill it in or remove the row"
        )
    return value


def _answers(answers: object, place: str) -> tuple[tuple[str, int], ...]:
    """The text and begin of each answer of a question, at least one."""
    found = answers if isinstance(answers, Mapping) else {}
    texts, starts = found.get("text"), found.get("answer_start")
    if not isinstance(texts, list) or not isinstance(starts, list):
        raise DataError(
            f"{place}: {shown(answers)} found; expected a mapping with the lists text and answer_start"
        )
    if len(texts) != len(starts):
        raise DataError(
            f"{place}: {len(texts)} text and {len(starts)} answer_start found; expected the same number"
        )
    if not texts:
        raise DataError(f"{place}: no answer; expected at least one, as in SQuAD v1.1; remove the row")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text:
            raise DataError(f"{place}, text: {shown(text)} found; expected text that is not empty")
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            raise DataError(f"{place}, answer_start: {shown(start)} found; expected an integer from 0")
    return tuple(zip(texts, starts, strict=True))


def draw_questions(questions: Sequence[Question], fraction: float, *, seed: int) -> tuple[Question, ...]:
    """A random fraction of the questions, at least one, in their order."""
    return tuple(questions[place] for place in drawn_places(len(questions), fraction, seed=seed))


def digest(questions: Sequence[Question], *, in_order: bool = False) -> str:
    """SHA-256 (hex) of all questions, independent of their order unless ``in_order``."""
    rows = [[one.id, one.question, one.passage, one.answers] for one in questions]
    return hash_of(rows if in_order else sorted(rows))


@dataclass(frozen=True, slots=True)
class EncodedWindows:
    """Tokenised windows of all questions: N windows, of P positions together.

    ``labels``, (N, 2) int64: the positions of the answer's first and last token; 0 and 0 if the window does
    not contain the whole answer. ``questions``, (N,): the index of each window's question. ``characters``,
    (P, 2): begin and end of each token of the passage in its text; -1 for other tokens.
    """

    own: EncodedTexts
    labels: Integers
    questions: Integers
    characters: Integers

    def __len__(self) -> int:
        return len(self.own)

    def batch(self, places: Integers) -> ExampleBatch:
        """These windows in this order; one row of padding if there are none."""
        return example_batch(self.own, places, torch.from_numpy(self.labels[places]), of="span")


def _frame(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int], list[int], int]:
    """Special tokens before the question, before the passage, and after it; token type of the passage.

    They are the tokenizer's own; if it has no separator, the end token of a document.
    """
    pair = separates(tokenizer)
    probe = next(encodings([("a", "a") if pair else ("a",)], tokenizer, LONGEST_QUESTION))
    ids, special = probe.ids, probe.special_tokens_mask
    own = [place for place, is_special in enumerate(special) if not is_special]
    before, after = ids[: own[0]], ids[own[-1] + 1 :]
    if not pair:
        return before, [document_ends(tokenizer)[1]], after, 0
    gap = special.index(1, own[0])
    begin = next(place for place in own if place > gap)
    return before, ids[gap:begin], after, probe.type_ids[begin]


def encode_windows(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerFast,
    *,
    context: int,
    stride: int,
    multiple: int = MULTIPLE,
) -> EncodedWindows:
    """Encode each question, at least one, with its passage, in as many windows as the passage needs.

    A window has at most ``context`` tokens; neighbours share ``stride`` tokens of the passage. DataError if a
    window's room for the passage does not exceed ``stride``.
    """
    before, middle, after, passage_type = _frame(tokenizer)
    question_texts = encodings([(one.question,) for one in questions], tokenizer, None)
    passages = encodings([(one.passage,) for one in questions], tokenizer, None)
    ids: list[list[int]] = []
    types: list[list[int]] = []
    labels: list[tuple[int, int]] = []
    numbers: list[int] = []
    characters: list[list[tuple[int, int]]] = []
    for number, (own, passage) in enumerate(zip(question_texts, passages, strict=True)):
        head = [*before, *own.ids[:LONGEST_QUESTION], *middle]
        room = context - len(head) - len(after)
        if room <= stride and len(passage.ids) > room:
            raise DataError(
                f"question {questions[number].id}: {room} of {context} tokens are left for the passage, but "
                f"windows share {stride}; use a longer context or a shorter stride"
            )
        for begin, end in _bounds(len(passage.ids), room, stride):
            spans = passage.offsets[begin:end]
            ids.append([*head, *passage.ids[begin:end], *after])
            types.append([0] * len(head) + [passage_type] * (end - begin + len(after)))
            characters.append([(-1, -1)] * len(head) + spans + [(-1, -1)] * len(after))
            labels.append(_span_of(questions[number], spans, len(head)))
            numbers.append(number)
    flat_types = np.array([kind for row in types for kind in row], np.int8)
    own_texts = EncodedTexts(
        tokens=np.array([token for row in ids for token in row], np.int32),
        types=flat_types if flat_types.any() else None,
        offsets=np.cumsum([0, *map(len, ids)]),
        context=context,
        padding=padding_id(tokenizer),
        truncated=0,
        multiple=multiple,
    )
    return EncodedWindows(
        own_texts,
        np.array(labels, np.int64),
        np.array(numbers, np.int64),
        np.array([pair for row in characters for pair in row], np.int64),
    )


def _bounds(length: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """The windows of a passage with ``length`` tokens; neighbours share ``stride``.

    >>> list(_bounds(10, 6, 2))
    [(0, 6), (4, 10)]
    """
    begin = 0
    while True:
        end = min(begin + room, length)
        yield begin, end
        if end >= length:
            return
        begin = end - stride


def _span_of(question: Question, spans: Sequence[tuple[int, int]], before: int) -> tuple[int, int]:
    """First and last token position of the first answer in a window; (0, 0) if it is not complete."""
    text, start = question.answers[0]
    end = start + len(text)
    touched = [place for place, (first, last) in enumerate(spans) if first < end and last > start]
    if not touched or spans[touched[0]][0] > start or spans[touched[-1]][1] < end:
        return 0, 0
    return before + touched[0], before + touched[-1]
