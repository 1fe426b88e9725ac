"""The commands ``vocabulary show`` and ``vocabulary compare``: what tokenizers have in common, on a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath

from transformers import PreTrainedTokenizerFast

from stlm_kd.data.corpus import texts
from stlm_kd.data.sources.sources import Source
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.vocabulary.mapping import Kind, map_vocabulary
from stlm_kd.vocabulary.pretokens import count_pretokens, count_tokens
from stlm_kd.vocabulary.token_bytes import Vocabulary, read_vocabulary


@dataclass(frozen=True, slots=True)
class VocabularySummary:
    """A tokenizer; ``bytes_per_token`` is None without a text.

    ``model`` is its algorithm (BPE, Unigram, WordPiece), ``alphabet`` how it writes bytes and spaces.
    """

    name: str
    model: str
    alphabet: str
    size: int
    special: tuple[str, ...]
    bytes_per_token: float | None


@dataclass(frozen=True, slots=True)
class ExactRows:
    """A teacher's vocabulary for a student's: rows of the adapted teacher that are copies of its own.

    ``rows`` counts tokens with the same bytes or role; ``share`` is their part of the text's tokens in the
    student's vocabulary, None without a text.
    """

    student: str
    teacher: str
    rows: int
    share: float | None


@dataclass(frozen=True, slots=True)
class VocabularyComparison:
    """Tokenizers, and the exact rows of each pair in both directions."""

    vocabularies: tuple[VocabularySummary, ...]
    pairs: tuple[ExactRows, ...]


def compare_vocabularies(
    names: Sequence[str], text: str | PathLike[str] | None = None, *, trust_remote_code: bool = False
) -> VocabularyComparison:
    """Compare tokenizers: size, special tokens, exact rows for one another, and these on a text.

    Args:
        names: Folders or ids on the Hub, of tokenizers or of models with one.
        text: A file of text, as in ``data.train`` of a recipe, or a folder of such.
        trust_remote_code: Whether to run code shipped with a model.

    Raises:
        MissingResourceError: A tokenizer or the text is not there.
        ModelError: A tokenizer is not fast, or of an unknown kind.
        DataError: The text cannot be read.
    """
    loaded = {name: load_tokenizer(name, trust_remote_code=trust_remote_code) for name in names}
    documents = [] if text is None else list(texts([Source(path=fspath(text))]))
    return compare_tokenizers(loaded, documents)


def compare_tokenizers(
    loaded: Mapping[str, PreTrainedTokenizerFast],
    documents: Sequence[str],
    *,
    students: Collection[str] | None = None,
) -> VocabularyComparison:
    """Compare loaded tokenizers by name; see ``compare_vocabularies``.

    Args:
        loaded: The tokenizers.
        documents: A text; empty for none.
        students: Names of those that are a student's in the pairs; default: all.
    """
    vocabularies = {name: read_vocabulary(tokenizer) for name, tokenizer in loaded.items()}
    uses = {name: _uses(one, documents) for name, one in vocabularies.items()}
    num_bytes = sum(len(document.encode()) for document in documents)
    summaries = tuple(
        VocabularySummary(
            name=name,
            model=type(one.backend.model).__name__,
            alphabet=one.spelling.value,
            size=len(one.used_ids),
            special=tuple(token for i in sorted(one.special) if (token := one.tokens[i]) is not None),
            bytes_per_token=num_bytes / uses[name].total() if uses[name] else None,
        )
        for name, one in vocabularies.items()
    )
    pairs = tuple(
        _exact_rows((a, loaded[a]), (b, loaded[b]), uses[a])
        for a in students or loaded
        for b in loaded
        if a != b
    )
    return VocabularyComparison(summaries, pairs)


def _uses(vocabulary: Vocabulary, documents: Sequence[str]) -> Counter[int]:
    return count_tokens(vocabulary, count_pretokens(vocabulary, documents))


def _exact_rows(
    student: tuple[str, PreTrainedTokenizerFast],
    teacher: tuple[str, PreTrainedTokenizerFast],
    uses: Counter[int],
) -> ExactRows:
    mapping = map_vocabulary(teacher[1], student[1])
    exact = mapping.ids_of(Kind.EXACT, Kind.ROLE).tolist()
    share = sum(uses[i] for i in exact) / uses.total() if uses else None
    return ExactRows(student[0], teacher[0], len(exact), share)
