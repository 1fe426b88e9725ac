"""Continue a prompt with a trained model."""

from __future__ import annotations

import shlex
from os import PathLike, fspath
from typing import Any

import torch
from transformers import PretrainedConfig

from stlm_kd.artifacts.run_dir import model_of
from stlm_kd.data.tokenizers import document_ends, ids_from_start, load_tokenizer
from stlm_kd.errors import ModelError, UsageError, first_line, foreign_errors
from stlm_kd.models.load import declared_task, load_config, load_language_model, quietly
from stlm_kd.models.positions import num_positions


def generate(
    model: str | PathLike[str],
    *,
    prompt: str,
    max_new_tokens: int = 50,
    temperature: float = 0.8,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> str:
    """Generate a continuation; return the prompt followed by it.

    Args:
        model: A run (its first student), a model folder or a Hub id.
        prompt: Text to continue; may be empty.
        max_new_tokens: Maximum number of tokens; fewer if the document or the model's positions end.
        temperature: 0 for greedy decoding.
        seed: Random seed for sampling.
        trust_remote_code: Whether to run code shipped with the model.

    Raises:
        ModelError: The model is a classifier or a masked language model.
        UsageError: The prompt exceeds the model's positions.
        ModelError: The tokenizer has neither an eos nor a sep token.
    """
    name = model_of(fspath(model))
    _check_continues(name, load_config(name, trust_remote_code=trust_remote_code))
    loaded = load_language_model(name, "clm", trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    (ids,) = ids_from_start(tokenizer, [prompt])
    _, end = document_ends(tokenizer)
    positions = num_positions(loaded.config)
    room = max_new_tokens if positions is None else positions - len(ids)
    if room < 1:
        raise UsageError(f"--prompt: {len(ids) - 1} tokens, but {name} has {positions} positions")
    torch.manual_seed(seed)
    writer: Any = loaded  # transformers' types do not know that a causal model generates
    guard = foreign_errors(
        lambda error: ModelError(
            f"{name}: transformers cannot generate with its generation_config.json ({first_line(error)}); "
            "correct or delete that"
        ),
        is_quiet=True,
    )
    with quietly(local=True), guard:
        output = writer.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=min(max_new_tokens, room),
            do_sample=temperature > 0,
            temperature=temperature if temperature > 0 else None,
            eos_token_id=sorted({end, *_stop_ids(writer.generation_config.eos_token_id)}),
            pad_token_id=end,
        )
    return str(tokenizer.decode(output[0, 1:], skip_special_tokens=True))


def _stop_ids(of_model: int | list[int] | None) -> list[int]:
    if of_model is None:
        return []
    return [of_model] if isinstance(of_model, int) else list(of_model)


def _check_continues(name: str, config: PretrainedConfig) -> None:
    if any(kind.endswith("ForSequenceClassification") for kind in config.architectures or ()):
        raise ModelError(
            f"{name}: {config.model_type} is a classifier, which does not continue text; "
            f"score it instead: stlm-kd eval {shlex.quote(name)} --suite classification --data FILE"
        )
    if declared_task(config) == "mlm":
        raise ModelError(
            f"{name}: {config.model_type} is a masked language model, which fills gaps in text and does not "
            f"continue it; score it instead: stlm-kd eval {shlex.quote(name)} --suite masked-loss --data FILE"
        )
