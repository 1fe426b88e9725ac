"""Token masking for masked language models: prediction targets and corrupted inputs.

As in DistilBERT's training code (Sanh et al., "DistilBERT, a distilled version of BERT", 2019): BERT's
masking, but rare tokens are selected more often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from stlm_kd.activity import advanced, doing
from stlm_kd.artifacts.atomic import read_json, write_json
from stlm_kd.artifacts.hashing import sealed, unsealed
from stlm_kd.data.batch import IGNORED, FlatRows, Integers
from stlm_kd.data.epochs import LARGEST_SHUFFLED, mixed
from stlm_kd.errors import ModelError
from stlm_kd.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerFast

    from stlm_kd.data.batches import PackedRows
    from stlm_kd.data.token_store import TokenStore

Floats: TypeAlias = "npt.NDArray[np.float64]"

_SMOOTHING = 0.7
_MASKED, _REPLACED = 0.8, 0.1  # fractions of the selected positions; the others keep their token
_BLOCK = 1 << 22  # ids counted at once
_VARIANT, _CHOICE = 101, 102  # purpose of a random generator, part of its seed


@dataclass(frozen=True, slots=True, eq=False)
class Masking:
    """The distribution of masks; ``weights`` are the sampling weight of each id, (V,); 0 for never.

    ``share`` is the fraction of non-padding positions that are selected.
    """

    weights: Floats
    mask_id: int
    share: float = 0.15

    def together(self, rows: FlatRows, generator: np.random.Generator) -> FlatRows:
        """Mask the rows with positions drawn over all of them together."""
        input_ids, labels = self.apply(rows.input_ids, rows.document_ids > 0, generator)
        return replace(rows, input_ids=input_ids, labels=labels)

    def apart(self, rows: FlatRows, generators: Iterable[np.random.Generator]) -> FlatRows:
        """Mask each row independently, with its own generator."""
        masked = replace(rows, input_ids=rows.input_ids.copy(), labels=rows.labels.copy())
        for row, generator in enumerate(generators):
            place = np.array([row])
            masked.put(place, self.together(rows.select(place), generator))
        return masked

    def apply(
        self, input_ids: Integers, attended: npt.NDArray[np.bool_], generator: np.random.Generator
    ) -> tuple[Integers, Integers]:
        """The corrupted inputs, and the labels: the original id at selected positions, else ``IGNORED``.

        Of all ``attended`` positions together (of any shape, False on padding), a fraction (rounded up) is
        drawn without replacement, with probabilities proportional to the weights of the remaining ids; fewer
        if fewer have a weight. Each selected id independently becomes the mask (0.8), any id of the
        vocabulary (0.1), or stays (0.1). ``input_ids`` is not changed.
        """
        tokens = input_ids[attended]
        drawn = _draw(self.weights[tokens], math.ceil(self.share * len(tokens)), generator)
        seen, targets = tokens.copy(), np.full_like(tokens, IGNORED)
        targets[drawn] = tokens[drawn]
        seen[drawn] = self._in_place_of(tokens[drawn], generator)
        corrupted, labels = input_ids.copy(), np.full_like(input_ids, IGNORED)
        corrupted[attended], labels[attended] = seen, targets
        return corrupted, labels

    def _in_place_of(self, tokens: Integers, generator: np.random.Generator) -> Integers:
        fate = generator.random(len(tokens))
        any_id = generator.integers(len(self.weights), size=len(tokens))
        replaced = np.where(fate < _MASKED + _REPLACED, any_id, tokens)
        return np.where(fate < _MASKED, self.mask_id, replaced)


def _draw(weights: Floats, count: int, generator: np.random.Generator) -> npt.NDArray[np.intp]:
    """At most ``count`` positions, sorted: weighted sampling without replacement.

    If each position gets an exponentially distributed time with its weight as the rate, the earliest ones
    are such a sample (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006).
    """
    possible = np.flatnonzero(weights)
    if len(possible) <= count:
        return possible
    times = generator.standard_exponential(len(possible)) / weights[possible]
    # Sorted, because the order that argpartition returns depends on the processor.
    return np.sort(possible[np.argpartition(times, count)[:count]])


def variant_generators(rows: Integers, variants: Integers) -> Iterator[np.random.Generator]:
    """The generator of each row's masks under its variant: the same for all training seeds.

    By default the masks of a step are drawn over all its rows together and never repeat. With a cached
    teacher, each row has a fixed number of masks, drawn by its number and the variant's number alone.
    """
    for row, variant in zip(rows.tolist(), variants.tolist(), strict=True):
        yield np.random.default_rng([_VARIANT, row, variant])


def chosen_variants(rows: Integers, seed: int, epoch: int, *, total: int, variants: int) -> Integers:
    """The mask variant of each of these rows in an epoch, (N,); ``total`` is the number of all rows.

    They are drawn for all rows, or computed for these alone if so many would not fit (``epochs``).
    """
    generator = np.random.default_rng([seed, epoch, _CHOICE])
    if total <= LARGEST_SHUFFLED:
        return generator.integers(variants, size=total)[rows]
    key = generator.integers(1 << 64, dtype=np.uint64)
    return (mixed(mixed(rows.astype(np.uint64)) ^ key) % np.uint64(variants)).astype(np.int64)


def masking_for(
    tokenizer: PreTrainedTokenizerFast, parts: Sequence[PackedRows], *, share: float = 0.15
) -> Masking:
    """A masking by token frequencies in the parts, of this tokenizer; errors as ``mask_id_of``."""
    counts_V = np.zeros(parts[0].store.vocab_size, np.int64)
    for part in parts:
        counts_V += remembered_counts(part.store)
    return Masking(masking_weights(counts_V, tokenizer.all_special_ids), mask_id_of(tokenizer), share)


def even_masking(tokenizer: PreTrainedTokenizerFast, *, share: float = 0.15) -> Masking:
    """A masking with equal weights, as BERT's; special tokens are never selected."""
    counts_V = np.ones(max(tokenizer.get_vocab().values()) + 1, np.int64)
    return Masking(masking_weights(counts_V, tokenizer.all_special_ids), mask_id_of(tokenizer), share)


def mask_id_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of the mask token; ModelError if the tokenizer has none."""
    mask_id = tokenizer.mask_token_id
    if mask_id is None:
        name = tokenizer.name_or_path or "the tokenizer"
        raise ModelError(
            f"{name}: no mask token, which a masked language model needs; "
            "set mask_token in its tokenizer_config.json, or take the tokenizer of a masked language model"
        )
    return int(mask_id)


def token_counts(stores: Iterable[TokenStore], vocabulary: int) -> Integers:
    """Number of occurrences of each id below ``vocabulary`` in all stores together, (V,)."""
    counts_V = np.zeros(vocabulary, np.int64)
    for store in stores:
        for begin in range(0, store.num_tokens, _BLOCK):
            counts_V += np.bincount(store.tokens[begin : begin + _BLOCK], minlength=vocabulary)
            advanced()
    return counts_V


def remembered_counts(store: TokenStore) -> Integers:
    """Number of occurrences of each id, (V,), counted once and then read from ``counts.json`` in its folder.

    A file that is damaged, or of other ids, is not used. A folder that cannot be written is left as it is.
    """
    path = store.folder / "counts.json"
    with suppress(OSError, ValueError, KeyError):
        found = unsealed(read_json(path))
        if found["store"] == store.identity:
            return np.array(found["counts"], np.int64)
    with doing(f"counting the tokens of {store.folder}"):
        counts_V = token_counts([store], store.vocab_size)
    with suppress(OSError):
        if store.identity:
            write_json(path, sealed({"store": store.identity, "counts": counts_V.tolist()}))
    return counts_V


def masking_weights(counts_V: Integers, special_ids: Sequence[int]) -> Floats:
    """Sampling weight of each id, (V,): its count, at least 1, to the power of -0.7; 0 for special tokens."""
    weights_V = np.maximum(counts_V, 1).astype(np.float64) ** -_SMOOTHING
    weights_V[list(special_ids)] = 0
    return weights_V
