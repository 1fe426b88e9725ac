"""Trim a tokenizer to those of its own tokens that are most useful on a text."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stlm_kd.errors import ModelError
from stlm_kd.lazy import tokenizers
from stlm_kd.vocabulary.pretokens import count_pretokens, count_tokens
from stlm_kd.vocabulary.segmentation import Segmentation, segmentation_of
from stlm_kd.vocabulary.token_bytes import read_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stlm_kd.vocabulary.token_bytes import Vocabulary


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[str],
    size: int,
    *,
    place: str = "size",
    name: str | None = None,
) -> PreTrainedTokenizerFast:
    """A tokenizer of exactly ``size`` of a tokenizer's own tokens, in the order of their ids.

    Starts from all tokens and removes the one whose removal adds the fewest pieces to the text, until
    ``size`` are left; its uses are then those of its parts. A part of a kept BPE token is never removed, so
    each kept token is spelled by the merges that the original applies. Kept always: bytes and characters
    without another spelling, special tokens with a role or named in the chat template, and added tokens of
    text. The segmentation is that of the same kind of model (BPE, Unigram, WordPiece) with what is left.

    Args:
        tokenizer: A fast tokenizer; unchanged.
        texts: Read once. Without a text, tokens go from the last id.
        size: The number of tokens to keep, special and added ones included.
        place: The name of the size in messages.
        name: The tokenizer's name in messages; default: its folder or id.

    Raises:
        ModelError: The size is below what must stay or above the tokenizer's; no tokens can be chosen from
            a model of this kind.
    """
    vocabulary = read_vocabulary(tokenizer)
    vocabulary = vocabulary if name is None else replace(vocabulary, name=name)
    check_trim_size(size, len(vocabulary.used_ids), place=place, name=vocabulary.name)
    state = json.loads(vocabulary.backend.to_str())
    segmentation = segmentation_of(state, vocabulary.name)
    fixed = _fixed(tokenizer, vocabulary)
    uses = count_tokens(vocabulary, count_pretokens(vocabulary, texts))
    kept = _chosen(vocabulary, segmentation, uses, fixed, size, place=place)
    return _rebuilt(tokenizer, vocabulary, state, segmentation, kept)


def check_trim_size(size: int, whole: int, *, place: str, name: str) -> None:
    """ModelError for more tokens than the ``whole`` number of a tokenizer's."""
    if size > whole:
        raise ModelError(
            f"{place}: {size:,} found; expected at most {whole:,}, the number of tokens of {name}"
        )


def _fixed(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> set[str]:
    """Tokens that stay: bytes of a fallback, special tokens in use, added tokens of text."""
    roles = {str(token) for token in _roles(tokenizer).values()}
    template = json.dumps(tokenizer.chat_template, ensure_ascii=False) if tokenizer.chat_template else ""
    added = {vocabulary.tokens[i] for i in vocabulary.added}
    special = {vocabulary.tokens[i] for i in vocabulary.special}
    named = {token for token in special if token and token in template}
    in_bytes = {vocabulary.tokens[i] for i in vocabulary.byte_tokens.values()}
    unknown = getattr(vocabulary.backend.model, "unk_token", None)
    steps = {token for token in special if token and f'"{token}"' in _post_processor(vocabulary)}
    found = roles | named | in_bytes | steps | (added - special) | {unknown}
    return {token for token in found if token is not None and token in set(vocabulary.tokens)}


def _roles(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The special tokens that have a role, by the name of its attribute."""
    names = (name for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES if name != "additional_special_tokens")
    return {name: token for name in names if (token := getattr(tokenizer, name)) is not None}


def _post_processor(vocabulary: Vocabulary) -> str:
    shell = tokenizers.Tokenizer(tokenizers.models.BPE())
    if vocabulary.backend.post_processor is not None:
        shell.post_processor = vocabulary.backend.post_processor
    return str(shell.to_str())


def _chosen(
    vocabulary: Vocabulary,
    segmentation: Segmentation,
    uses: Counter[int],
    fixed: Collection[str],
    size: int,
    *,
    place: str,
) -> set[str]:
    """The tokens that are left when those that save the fewest pieces are removed."""
    ids = {token: i for i, token in enumerate(vocabulary.tokens) if token is not None}
    plain = {token for token, i in ids.items() if token not in fixed and i not in vocabulary.added}
    kept, counts = set(ids), Counter({token: uses[i] for token, i in ids.items()})
    needed = Counter(part for token in plain for part in segmentation.needs(token))
    entry = tuple[int, int, str]

    def priced(token: str) -> entry | None:
        if token in plain:
            parts = segmentation.parts(token, kept)
            saved = 0 if parts is None else len(parts) - (len(token) > 1)  # a byte says less than a character
            return None if parts is None else (counts[token] * saved, -ids[token], token)
        return None if token in fixed else (0, -ids[token], token)  # a special token without a use

    queue = [price for token in ids if not needed[token] and (price := priced(token)) is not None]
    heapq.heapify(queue)
    while len(kept) > size:
        if not queue:
            message = f"the special tokens, bytes and characters of {vocabulary.name} that cannot be left out"
            raise ModelError(f"{place}: {size:,} found; expected at least {len(kept):,}: {message}")
        price = heapq.heappop(queue)
        token = price[2]
        if token not in kept or needed[token]:
            continue
        if (now := priced(token)) != price:  # its uses have grown, or a part of it has gone
            if now is not None:
                heapq.heappush(queue, now)
            continue
        kept.remove(token)
        for part in (segmentation.parts(token, kept) or ()) if token in plain else ():
            counts[part] += counts[token]
        for part in segmentation.needs(token) if token in plain else ():
            needed[part] -= 1
            if not needed[part] and part in plain and (fresh := priced(part)) is not None:
                heapq.heappush(queue, fresh)
    return kept


def _rebuilt(
    tokenizer: PreTrainedTokenizerFast,
    vocabulary: Vocabulary,
    state: dict[str, Any],
    segmentation: Segmentation,
    kept: Collection[str],
) -> PreTrainedTokenizerFast:
    """The tokenizer with the kept tokens; those that its model does not have come last."""
    from transformers import PreTrainedTokenizerFast

    model = state["model"]["vocab"]
    in_model = set(model) if isinstance(model, dict) else {token for token, _ in model}
    order = [token for token in vocabulary.tokens if token is not None and token in kept]
    order = [token for token in order if token in in_model] + [one for one in order if one not in in_model]
    ids = {token: i for i, token in enumerate(order)}
    state["model"] = segmentation.trimmed({token: i for token, i in ids.items() if token in in_model})
    added = [{**one, "id": ids[one["content"]]} for one in state["added_tokens"] if one["content"] in ids]
    state["added_tokens"] = sorted(added, key=lambda one: int(one["id"]))
    state["post_processor"] = _with_ids(state["post_processor"], ids)
    state["truncation"] = state["padding"] = None
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(state)),
        **_roles(tokenizer),
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        model_input_names=list(tokenizer.model_input_names),
        padding_side=tokenizer.padding_side,
        split_special_tokens=tokenizer.split_special_tokens,
    )
    if made.get_vocab() != ids:
        raise ModelError(f"{vocabulary.name}: its tokens cannot be renumbered; report its tokenizer.json")
    return made


def _with_ids(part: Any, ids: Mapping[str, int]) -> Any:
    """A post-processor with new ids; each kind names its tokens beside their ids."""
    if isinstance(part, list):
        if len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], int):
            return [part[0], ids[part[0]]]
        return [_with_ids(one, ids) for one in part]
    if not isinstance(part, dict):
        return part
    if isinstance(part.get("ids"), list) and isinstance(part.get("tokens"), list):
        return {**part, "ids": [ids[token] for token in part["tokens"]]}
    return {key: _with_ids(value, ids) for key, value in part.items()}
