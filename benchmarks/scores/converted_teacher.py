"""A teacher that reads its own tokens, its distribution converted to a vocabulary that is cut from its own.

A student's token has the probability of all of the teacher's tokens whose pieces begin with it. Inside a word
the teacher may have read what the student has read so far in several ways: with a token that goes on from
there, or with tokens that end there, each as probable as the teacher says. No word depends on later text,
except that the pre-tokenizer splits runs of white space by what follows them. Byte-level BPE with the same
pre-tokenizer on both sides.

    python benchmarks/scores/converted_teacher.py --model FOLDER --tokenizer FOLDER --data FILE.jsonl

Prints bits per byte of the teacher with its own tokens, converted, and with the student's rows alone, on the
same bytes.
"""

from __future__ import annotations

import json
import math
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

WINDOW = 256
"""Tokens of the teacher that are read together."""

Pieces = tuple[int, ...]
Share = tuple[Tensor, Tensor]
"""Tokens of the teacher, and the student's token with which each goes on."""


@dataclass(frozen=True)
class Cover:
    """A state of the teacher in which it has read some of the text; ``rest`` are the student's tokens since.

    ``rest`` is empty where it has read all, None where none of its tokens goes on from ``rest``. ``token`` is
    what it reads next on the way to the next cover.
    """

    node: int
    rest: Pieces | None
    token: int = 0


@dataclass
class Tree:
    """Readings of a window as a tree of tokens; a node attends to those above it."""

    begin: int
    tokens: list[int] = field(default_factory=list)
    above: list[list[int]] = field(default_factory=list)
    known: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.child(-1, self.begin)

    def child(self, node: int, token: int) -> int:
        if (node, token) not in self.known:
            new = self.known[node, token] = len(self.tokens)
            self.tokens.append(token)
            self.above.append([*(self.above[node] if node >= 0 else ()), new])
        return self.known[node, token]

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, positions, and the mask of what each node attends to."""
        size = len(self.tokens)
        mask = torch.zeros(size, size, dtype=torch.bool)
        for node, above in enumerate(self.above):
            mask[node, above] = True
        return torch.tensor(self.tokens), torch.tensor([len(above) - 1 for above in self.above]), mask


class Conversion:
    """From the teacher's vocabulary to the student's."""

    def __init__(self, own: Tokenizer, student: Tokenizer) -> None:
        self.own, self.student = own, student
        added = {one.content for one in own.get_added_tokens_decoder().values()}
        ids = own.get_vocab()
        self.sizes = {i: len(token) for token, i in ids.items()}
        self.student_sizes = {i: len(token) for token, i in student.get_vocab().items()}
        self.first_V = torch.full((max(ids.values()) + 1,), -1)
        going_on: dict[Pieces, list[tuple[int, int]]] = defaultdict(list)
        for token, i in ids.items():
            if token in added:
                self.first_V[i] = student.get_vocab().get(token, -1)
                continue
            pieces = self._ids(student, token)
            self.first_V[i] = pieces[0]
            for end in range(1, len(pieces)):
                going_on[tuple(pieces[:end])].append((i, pieces[end]))
        self.going_on = {path: _share(pairs) for path, pairs in going_on.items()}

    @staticmethod
    def _ids(tokenizer: Tokenizer, word: str) -> list[int]:
        return [token.id for token in tokenizer.model.tokenize(word)]

    def words(self, text: str) -> list[tuple[str, list[int], list[int]]]:
        """The words in the byte alphabet, with the teacher's tokens and the student's."""
        words = [word for word, _ in self.own.pre_tokenizer.pre_tokenize_str(text)]
        found = [(word, self._ids(self.own, word), self._ids(self.student, word)) for word in words]
        for tokenizer, column in ((self.own, 1), (self.student, 2)):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            if [i for row in found for i in row[column]] != ids:
                raise SystemExit("the student's tokenizer splits text into other words than the teacher's")
        return found

    def covers(self, tree: Tree, start: int, word: str, pieces: list[int], count: int) -> list[Cover]:
        """The teacher's states after ``count`` of a word's pieces, from the first that may go on."""
        ends = [0]
        for piece in pieces[:count]:
            ends.append(ends[-1] + self.student_sizes[piece])
        found: list[Cover] = []
        node, at = start, 0
        for token in self._ids(self.own, word[: ends[-1]]):
            rest = tuple(pieces[ends.index(at) : count]) if at in ends else None
            goes_on = rest in self.going_on
            if goes_on or found:
                found.append(Cover(node, rest if goes_on else None, token))
            node, at = tree.child(node, token), at + self.sizes[token]
        return [*found, Cover(node, ())]

    def probability(self, probs: Tensor, covers: list[Cover], piece: int) -> float:
        """Of the student's next token, from the teacher's probabilities at each node."""
        hits, whole, weight = 0.0, 0.0, 1.0
        for cover in covers:
            row_V = probs[cover.node]
            if cover.rest == ():
                hits += weight * float(row_V[self.first_V == piece].sum())
                whole += weight
            elif cover.rest is not None:
                tokens, following = self.going_on[cover.rest]
                hits += weight * float(row_V[tokens][following == piece].sum())
                whole += weight * float(row_V[tokens].sum())
            weight *= float(row_V[cover.token])
        return hits / whole


def _share(pairs: list[tuple[int, int]]) -> Share:
    tokens, following = zip(*pairs, strict=True)
    return torch.tensor(tokens), torch.tensor(following)


@dataclass
class Teacher:
    """A language model with its embedding and head in fp32 and its body in bf16."""

    model: Any

    def logits(self, ids: Tensor, rows: Tensor | None, place: dict[str, Tensor] | None = None) -> Tensor:
        """Logits (N, V); of a vocabulary of these rows, if given."""
        embedding, head = (
            layer.weight if rows is None else layer.weight[rows]
            for layer in (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        )
        vectors = functional.embedding(ids, embedding)[None]
        hidden = self.model.base_model(inputs_embeds=vectors, use_cache=False, **(place or {}))
        return functional.linear(hidden.last_hidden_state[0].float(), head.float())


@dataclass
class Window:
    """A stretch of text: the teacher's readings of it, and what is asked of them.

    ``own`` are its own tokens, each after a node; ``asked`` the student's, each with the teacher's states
    before it.
    """

    tree: Tree
    own: list[tuple[int, int]] = field(default_factory=list)
    asked: list[tuple[int, list[Cover]]] = field(default_factory=list)
    num_bytes: int = 0


def windows(conversion: Conversion, text: str, begin: int) -> Iterator[Window]:
    """Whole words, as many as fit."""
    words = conversion.words(text)[::-1]
    while words:
        window, last, covers = Window(Tree(begin)), 0, [Cover(0, ())]
        while words and (not window.own or len(window.own) + len(words[-1][1]) < WINDOW):
            word, own, pieces = words.pop()
            start = last
            for token in own:
                window.own.append((last, token))
                last = window.tree.child(last, token)
            for count, piece in enumerate(pieces, 1):
                window.asked.append((piece, covers))
                covers = conversion.covers(window.tree, start, word, pieces, count)
            window.num_bytes += len(word)
        yield window


def score(
    teacher: Teacher, conversion: Conversion, rows: Tensor | None, text: str, floor: float
) -> dict[str, float]:
    """Nats of a text in each way, its bytes, and the positions that the teacher reads."""
    begin = int(teacher.model.config.bos_token_id)
    found: dict[str, float] = defaultdict(float)
    size = len(conversion.student_sizes)
    for window in windows(conversion, text, begin):
        ids, positions, mask = window.tree.inputs()
        place = {"position_ids": positions[None], "attention_mask": mask[None, None]}
        probs = teacher.logits(ids, None, place).softmax(-1)
        found["own"] -= sum(math.log(float(probs[node, token])) for node, token in window.own)
        for piece, covers in window.asked:
            chance = (1 - floor) * conversion.probability(probs, covers, piece) + floor / size
            found["converted"] -= math.log(chance)
        if rows is not None:
            read = torch.tensor([int((rows == begin).nonzero()[0, 0]), *(piece for piece, _ in window.asked)])
            log_probs = teacher.logits(read[:-1], rows).log_softmax(-1)
            found["sliced"] -= float(log_probs.gather(1, read[1:, None]).sum())
        found["bytes"] += window.num_bytes
        found["own tokens"] += len(window.own) + 1
        found["positions"] += len(window.tree.tokens)
    return found


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="the teacher's folder")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the student's folder")
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with text")
    parser.add_argument("--pieces", type=int, default=6, help="lines that are read")
    parser.add_argument("--floor", type=float, default=0.0, help="share of a uniform distribution")
    asked = parser.parse_args()
    own, student = (
        Tokenizer.from_file(str(one / "tokenizer.json")) for one in (asked.model, asked.tokenizer)
    )
    ids, vocabulary = own.get_vocab(), student.get_vocab()
    rows = None
    if vocabulary.keys() <= ids.keys():
        rows = torch.tensor([ids[token] for token in sorted(vocabulary, key=vocabulary.__getitem__)])
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.bfloat16).eval()
    conversion, teacher = Conversion(own, student), Teacher(model)
    with asked.data.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(asked.pieces), strict=False)]
    with torch.no_grad():
        found = [score(teacher, conversion, rows, text, asked.floor) for text in texts]
    for name in ("own", "converted", "sliced"):
        if name in found[0]:
            bits = fmean(one[name] / one["bytes"] for one in found) / math.log(2)
            print(f"{name:10} {bits:.3f} bits per byte")
    more = sum(one["positions"] for one in found) / sum(one["own tokens"] for one in found) - 1
    print(f"{more:.1%} more positions than the teacher's own tokens")


if __name__ == "__main__":
    main()
