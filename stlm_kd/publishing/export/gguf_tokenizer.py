"""A tokenizer in the words of GGUF.

llama.cpp implements each kind of tokenizer itself: byte-level BPE (``gpt2``), whose way to split text into
words has a name there, and SentencePiece's BPE (``llama``), which has scores in place of merges.
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerFast

from stlm_kd.data.tokenizers import document_ends
from stlm_kd.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGUFWriter

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_WORDS = {_QWEN2: "qwen2", _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"): "llama-bpe"}
"""llama.cpp's name of each pattern that splits text into words before byte-level BPE."""


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, *, rows: int, name: str) -> None:
    """Add a tokenizer to a file's metadata.

    Documents begin with the start token, as in training: llama.cpp adds it to each prompt.

    Args:
        writer: The file's writer.
        tokenizer: The tokenizer.
        rows: Rows of the model's embeddings; those without a token are marked as unused.
        name: The model's name in messages.

    Raises:
        ModelError: GGUF has no equal tokenizer.
    """
    steps = json.loads(tokenizer.backend_tokenizer.to_str())
    model = steps["model"]
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model.get("merges", ())]
    words = _name_of_words(steps)
    by_score = words is None and _is_sentencepiece(steps)
    if words is None and not by_score:
        raise ModelError(
            f"{name}: its tokenizer is neither a byte-level BPE that splits words as GPT-2, Llama 3 or Qwen2 "
            "do, nor SentencePiece's BPE, so llama.cpp would give other ids; export it to onnx, or train the "
            "student with one of these tokenizers"
        )
    from gguf import TokenType

    types = {
        token.content: TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        for token in tokenizer.added_tokens_decoder.values()
    }
    if by_score:
        types |= {f"<0x{byte:02X}>": TokenType.BYTE for byte in range(256)}
        types |= {model["unk_token"]: TokenType.UNKNOWN}
    tokens = {id: token for token, id in tokenizer.get_vocab().items()}
    writer.add_tokenizer_model("llama" if by_score else "gpt2")
    writer.add_tokenizer_pre(words or "default")
    writer.add_token_list([tokens.get(id, f"[PAD{id}]") for id in range(rows)])
    writer.add_token_types(
        [types.get(tokens[id], TokenType.NORMAL) if id in tokens else TokenType.UNUSED for id in range(rows)]
    )
    if by_score:
        scores = _scores(merges, set(tokens.values()) - set(types), name)
        writer.add_token_scores([scores.get(tokens.get(id, ""), 0.0) for id in range(rows)])
        writer.add_add_space_prefix(True)
    else:
        writer.add_token_merges([" ".join(pair) for pair in merges])
    start, end = document_ends(tokenizer)
    writer.add_bos_token_id(start)
    writer.add_eos_token_id(end)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def _name_of_words(steps: dict[str, Any]) -> str | None:
    """llama.cpp's name of the way in which a byte-level BPE splits words; None if it has none."""
    model, splits = steps["model"], steps["pre_tokenizer"] or {}
    # llama.cpp does not normalise; NFC, which Qwen2's tokenizer applies, leaves almost all text as it is.
    if model["type"] != "BPE" or (steps["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        return None
    if any(model.get(part) for part in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")):
        return None
    parts = splits.get("pretokenizers", [splits])
    last = parts[-1]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"] or last["use_regex"] != (len(parts) == 1):
        return None
    found: str | None = "gpt-2" if len(parts) == 1 else None
    if len(parts) == 2 and parts[0]["type"] == "Split" and parts[0]["behavior"] == "Isolated":
        found = _WORDS.get(parts[0]["pattern"].get("Regex"))
    # A word that is a token stays whole in Llama 3's tokenizer, whatever the merges say.
    return found if bool(model.get("ignore_merges")) == (found == "llama-bpe") else None


def _is_sentencepiece(steps: dict[str, Any]) -> bool:
    """Whether it is a BPE with byte fallback that writes blanks as ▁ and puts one before a text."""
    model, normalizer, splits = steps["model"], steps["normalizer"], steps["pre_tokenizer"]
    if model["type"] != "BPE" or not model.get("byte_fallback") or not model.get("unk_token"):
        return False
    if normalizer is None:
        return splits in [
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
            for scheme in ("first", "always")
            for split in (False, True)
        ]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    parts = [{"type": "Prepend", "prepend": "▁"}, replace]
    return splits is None and normalizer == {"type": "Sequence", "normalizers": parts}


def _scores(merges: list[tuple[str, ...]], tokens: set[str], name: str) -> dict[str, float]:
    """Scores of tokens that order their merges as given.

    Raises:
        ModelError: No scores do, since merges of one token are apart or some are missing.
    """
    ordered = [token for token, _ in groupby("".join(pair) for pair in merges)]
    implied = {
        (token[:i], token[i:])
        for token in tokens
        for i in range(1, len(token))
        if token[:i] in tokens and token[i:] in tokens
    }
    if len(set(ordered)) < len(ordered) or implied != set(merges):
        raise ModelError(
            f"{name}: the merges of its tokenizer are not those of SentencePiece, which follow from an order "
            "of the tokens, so llama.cpp would give other ids; export it to onnx"
        )
    return {token: -float(rank) for rank, token in enumerate(ordered)}
