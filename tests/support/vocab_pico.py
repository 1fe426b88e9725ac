"""Small tokenizers in every spelling, made here, and the real ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

REAL = {
    "gpt2": "tokenizers/gpt2",
    "qwen2": "tokenizers/qwen2",
    "llama-2": "tokenizers/llama-2",
    "phi-3-mini": "tokenizers/phi-3-mini",
    "bert-base-cased": "tokenizers/bert-base-cased",
    "bert-base-uncased": "tokenizers/bert-base-uncased",
    "stories260K": "models/stories260K",
}
"""Real vocabularies: folders below ``STLM_KD_DATA``."""


@cache
def real_tokenizer(data: Path, name: str) -> PreTrainedTokenizerFast:
    """One of ``REAL``, loaded once."""
    tokenizer = AutoTokenizer.from_pretrained(data / REAL[name])
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


TEXT = [
    "the cat sat on the mat, and the other cats sat there",
    "a cathedral is not a cat; nothing other than the theatre",
    "here is\na new line  and  two spaces",
] * 3


def byte_level(*, add_prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2's, or RoBERTa's with the prefix."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def metaspace_unigram() -> PreTrainedTokenizerFast:
    """As T5's: spaces cut off, then a dummy one put in front of each word."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def sentencepiece_bpe() -> PreTrainedTokenizerFast:
    """As Llama's: a dummy space by the normaliser, bytes for what is rare."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "t", "h", "e", "c", "a", "▁t", "he", "▁the", "▁c", "at", "▁cat", "cat"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("a", "t"), ("▁", "c"), ("▁c", "at"), ("c", "at")]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT's, uncased."""
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        ".",
        ",",
        "##.",
        "cat",
        "##s",
        "##at",
        "the",
        "##the",
    ]
    pieces += [
        "c",
        "##c",
        "level",
        "##l",
        "##e",
        "##v",
        "t",
        "##t",
        "i",
        "##i",
        "if",
        "##if",
        "##ique",
        "##ed",
    ]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
