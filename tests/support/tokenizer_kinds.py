"""Small tokenizers that mark the start and the end of a document in different ways, and models for them."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"
WORDS = (
    *("the", "cat", "dog", "sat", "on", "a", "mat", "and", "ran", "home"),
    *("good", "bad", "small", "big", "tree", "house", "one", "two", "three"),
)
TEXTS = [" ".join(WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(5 + i % 9)) + "." for i in range(120)]


def byte_level(*, template: str | None = None) -> PreTrainedTokenizerFast:
    """GPT-2-like: one token starts and ends documents; perhaps with a template such as ``$A <end>``."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    if template is not None:
        made.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(END, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END)


def end_in_template() -> PreTrainedTokenizerFast:
    """One whose template puts the text between start and end."""
    return byte_level(template=f"{END} $A {END}")


def word_piece() -> PreTrainedTokenizerFast:
    """BERT's: [CLS] and [SEP] alone, lower case."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


def unigram() -> PreTrainedTokenizerFast:
    """Llama-like: pieces of words after a blank, with <s> and </s>."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


KINDS = {
    "byte-level": byte_level,
    "end-in-template": end_in_template,
    "cls-and-sep": word_piece,
    "start-in-template": unigram,
}


def llama(vocabulary: int, *, positions: int = 64) -> LlamaForCausalLM:
    """A small causal model with random weights that tell tokens apart."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()
