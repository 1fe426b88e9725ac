"""How the model of a tokenizer.json spells one of its tokens by its other tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import inf
from typing import Any, Protocol

from stlm_kd.errors import ModelError
from stlm_kd.vocabulary.token_bytes import SPACE_MARK

Pair = tuple[str, str]


class Segmentation(Protocol):
    """A kind of model: BPE, Unigram or WordPiece."""

    def parts(self, token: str, kept: Collection[str]) -> list[str] | None:
        """What ``token`` becomes without it, of ``kept`` tokens; None if it must stay."""

    def needs(self, token: str) -> Sequence[str]:
        """The tokens without which it cannot be produced."""

    def trimmed(self, kept: Mapping[str, int]) -> dict[str, Any]:
        """The model's JSON with only these tokens, by their new ids."""


def segmentation_of(state: Mapping[str, Any], name: str) -> Segmentation:
    """The segmentation of the model of a ``tokenizer.json``; ModelError for a kind that is not known."""
    model = state["model"]
    kind = model.get("type")
    if kind == "BPE":
        affixes = [key for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
        if not model["merges"] or affixes:
            found = f"a BPE model with {affixes[0]}" if affixes else "a BPE model without merges"
            raise ModelError(
                f"{name}: {found}, from which no tokens can be chosen; expected merges of plain tokens, as "
                "GPT-2's or Llama's; train a tokenizer instead: {train: bpe, size: N}"
            )
        return BPE(model)
    if kind == "Unigram":
        return Unigram(model)
    if kind == "WordPiece":
        return WordPiece.checked(model, {one["content"] for one in state["added_tokens"]}, name)
    raise ModelError(
        f"{name}: a {kind} model, from which no tokens can be chosen; expected BPE, Unigram or WordPiece; "
        "train a tokenizer instead: {train: bpe, size: N}"
    )


def _bytes_of(token: str, vocabulary: Collection[str]) -> list[str] | None:
    """The byte tokens that spell one character, if the vocabulary has them all."""
    found = [f"<0x{byte:02X}>" for byte in token.encode()]
    return found if all(byte in vocabulary for byte in found) else None


@dataclass(frozen=True)
class BPE:
    """Merges by rank. The tree of merges that spell a token alone is kept with it, so it is spelled alike."""

    model: Mapping[str, Any]

    @cached_property
    def merges(self) -> list[Pair]:
        """The pairs of strings, in order of rank."""
        pairs = (one.split(" ", 1) if isinstance(one, str) else one for one in self._raw)
        return [(str(a), str(b)) for a, b in pairs]

    @property
    def _raw(self) -> list[Any]:
        found: list[Any] = self.model["merges"]
        return found

    @cached_property
    def _ranks(self) -> dict[Pair, int]:
        return {pair: rank for rank, pair in enumerate(self.merges)}

    @cached_property
    def _trees(self) -> dict[str, list[str]]:
        """The last two parts of each token, or its pieces if merges never produce it; none of a character."""
        return {token: self._last(token) for token in self.model["vocab"] if len(token) > 1}

    def _last(self, token: str) -> list[str]:
        """Merge the characters until the whole token stands, and return the parts of the last merge."""
        parts = list(token)
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, inf))
            if best not in self._ranks:
                break
            if len(parts) == 2:
                return parts
            merged: list[str] = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            parts = merged
        return [part for part in parts if part in self.model["vocab"]]

    def parts(self, token: str, kept: Collection[str]) -> list[str] | None:
        if token in self._trees:
            return self._trees[token] or None
        if token == SPACE_MARK or not self.model.get("byte_fallback"):
            return None
        return _bytes_of(token, kept)

    def needs(self, token: str) -> Sequence[str]:
        return self._trees.get(token, ())

    def trimmed(self, kept: Mapping[str, int]) -> dict[str, Any]:
        merges = [
            raw
            for raw, (a, b) in zip(self._raw, self.merges, strict=True)
            if a in kept and b in kept and a + b in kept
        ]
        return {**self.model, "vocab": dict(kept), "merges": merges}


@dataclass(frozen=True)
class Unigram:
    """Log-probabilities: the most probable segmentation of the tokens left."""

    model: Mapping[str, Any]

    @cached_property
    def _scores(self) -> dict[str, float]:
        return {token: float(score) for token, score in self.model["vocab"]}

    def parts(self, token: str, kept: Collection[str]) -> list[str] | None:
        if len(token) == 1:
            falls_back = self.model.get("byte_fallback") and token != SPACE_MARK
            return _bytes_of(token, kept) if falls_back else None
        best: list[tuple[float, list[str]]] = [(0.0, []), *((-inf, list[str]()) for _ in token)]
        for end in range(1, len(token) + 1):
            for start in range(end):
                part = token[start:end]
                if part == token or part not in kept or part not in self._scores:
                    continue
                score = best[start][0] + self._scores[part]
                if score > best[end][0]:
                    best[end] = (score, [*best[start][1], part])
        return best[-1][1] or None

    def needs(self, token: str) -> Sequence[str]:
        return ()

    def trimmed(self, kept: Mapping[str, int]) -> dict[str, Any]:
        vocab = [entry for entry in self.model["vocab"] if entry[0] in kept]
        unknown = self.model.get("unk_id")
        if unknown is not None:
            unknown = kept[self.model["vocab"][unknown][0]]
        return {**self.model, "vocab": vocab, "unk_id": unknown}


@dataclass(frozen=True)
class WordPiece:
    """Greedy longest match from the start of a word."""

    model: Mapping[str, Any]

    @classmethod
    def checked(cls, model: Mapping[str, Any], added: Collection[str], name: str) -> WordPiece:
        """ModelError if a character inside a word has no token, where a longest match may end."""
        prefix, vocab = str(model["continuing_subword_prefix"]), model["vocab"]
        plain = [token for token in vocab if token not in added]
        bodies = (token[len(prefix) if token.startswith(prefix) else 1 :] for token in plain)
        lacking = sorted({prefix + one for body in bodies for one in body} - set(vocab))
        if lacking:
            raise ModelError(
                f"{name}: a WordPiece vocabulary without a token for {', '.join(lacking[:3])}; expected one "
                "for each character inside a word, so that what is left spells every word; train a tokenizer "
                "instead: {train: bpe, size: N}"
            )
        return cls(model)

    def parts(self, token: str, kept: Collection[str]) -> list[str] | None:
        prefix = str(self.model["continuing_subword_prefix"])
        inside = token.startswith(prefix) and len(token) > len(prefix)
        body, found, start = token[len(prefix) :] if inside else token, [], 0
        while start < len(body):
            before = prefix if inside or start else ""
            ends = range(len(body), start, -1)
            hits = (before + body[start:end] for end in ends)
            part = next((hit for hit in hits if hit != token and hit in kept), None)
            if part is None:
                return None
            found.append(part)
            start += len(part) - len(before)
        return found

    def needs(self, token: str) -> Sequence[str]:
        return ()

    def trimmed(self, kept: Mapping[str, int]) -> dict[str, Any]:
        return {**self.model, "vocab": dict(kept)}
