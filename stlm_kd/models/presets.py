"""Student presets: configuration fields by name, without the vocabulary, which the tokenizer determines."""

from __future__ import annotations

from typing import Final

ConfigFields = dict[str, int | float | str | bool]


def _llama(width: int, inner: int, *, layers: int, heads: int, groups: int, positions: int) -> ConfigFields:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": positions,
        "tie_word_embeddings": True,
    }


PRESETS: Final[dict[str, ConfigFields]] = {
    # 47,203,328 parameters with GPT-2's 50,257 tokens: the student of the super-tiny-language-model study.
    "stlm-47m": _llama(512, 1320, layers=8, heads=16, groups=4, positions=512),
    # 6.5M parameters with an 8,192-token vocabulary: trains in an hour on a laptop.
    "stlm-6m": _llama(256, 688, layers=6, heads=8, groups=4, positions=512),
    # 1.8M parameters with an 8,192-token vocabulary: trains in minutes.
    "stlm-2m": _llama(128, 344, layers=4, heads=4, groups=2, positions=512),
    # 0.14M parameters with 700 tokens: the offline sample.
    "stlm-nano": _llama(64, 172, layers=2, heads=4, groups=2, positions=256),
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
