"""Student presets: configuration fields by name, without the vocabulary, which the tokenizer determines."""

from __future__ import annotations

from typing import Final

ConfigFields = dict[str, int | float | str | bool]

PRESETS: Final[dict[str, ConfigFields]] = {
    # 47,203,328 parameters with GPT-2's 50,257 tokens: the student of the super-tiny-language-model study.
    "stlm-47m": {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1320,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    # 6.5M parameters with an 8,192-token vocabulary: trains in an hour on a laptop.
    "stlm-6m": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    # 1.8M parameters with an 8,192-token vocabulary: trains in minutes.
    "stlm-2m": {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    # 0.14M parameters with 700 tokens: the offline sample.
    "stlm-nano": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    },
    # 0.17M parameters with 700 tokens: the same for masked language models.
    "stlm-bert-nano": {
        "model_type": "bert",
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "tie_word_embeddings": True,
    },
}
