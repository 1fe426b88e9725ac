"""Folders of models whose configuration, tokenizer or weights were changed at random, and their loading.

As a program, it answers the cases of a range, each with a line before and after: what a library aborts in is
the case whose answer is missing.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tests.support.mutations import answer, mutated

KINDS = ("config", "tokenizer", "weights", "architecture")
FAMILIES = ("llama", "gpt2", "bert")
_CONTEXT = 12
_SIZES = {
    "llama": "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads",
    "gpt2": "n_embd n_inner n_layer n_head n_positions",
    "bert": "hidden_size intermediate_size num_hidden_layers num_attention_heads type_vocab_size",
}
_OTHERS = {
    "llama": {"attention_dropout": 0.1, "hidden_act": "silu", "attention_bias": True},
    "gpt2": {"resid_pdrop": 0.1, "activation_function": "gelu_new", "scale_attn_weights": True},
    "bert": {"hidden_dropout_prob": 0.1, "hidden_act": "gelu", "initializer_range": 0.1},
}


def build(folder: Path) -> None:
    """One small model of each family, with a tokenizer of another kind each."""
    from stlm_kd.models.load import save_model
    from tests.support.pico import pico_model
    from tests.support.tokenizer_kinds import byte_level, unigram, word_piece

    for family, tokenizer in zip(FAMILIES, (unigram(), byte_level(), word_piece()), strict=True):
        save_model(pico_model(family, vocabulary=len(tokenizer)), tokenizer, folder / family)
    read_all(folder)


def read_all(base: Path) -> None:
    """Read the models as they were built, so that the time of imports is not that of a case."""
    for family in FAMILIES:
        _run(base / family)
        _encode(base / family)
    _build_student({"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2}, base / "gpt2")


def prepared(kind: str, number: int, base: Path, folder: Path) -> tuple[str, Callable[[], object]]:
    """A damaged copy of a model in ``folder``: what was damaged, and the work that reads it."""
    draw = random.Random(f"{kind} {number}")
    family = draw.choice(FAMILIES)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base / family, folder)
    if kind == "weights":
        return _damage_weights(folder, draw), lambda: _run(folder)
    if kind == "architecture":
        sizes = dict(zip(_SIZES[family].split(), (16, 32, 2, 2, 2), strict=True))
        fields = mutated({"model_type": family, **sizes, **_OTHERS[family]}, draw)
        return f"architecture {fields}", lambda: _build_student(fields, folder)
    names = ("tokenizer.json", "tokenizer.json", "tokenizer_config.json")
    file = folder / ("config.json" if kind == "config" else draw.choice(names))
    text = file.read_text("utf-8")
    if draw.random() < 0.15:
        at = draw.randrange(len(text))
        put = draw.choice(("", "\x00", "]", "\ufffd", "9" * 500, "[" * 9000))
        changed = text[:at] + put + text[at + draw.randrange(9) :]
    else:
        changed = json.dumps(mutated(json.loads(text), draw))
    file.write_text(changed, "utf-8", errors="surrogatepass")
    read = _run if kind == "config" else _encode
    return f"{file.name} of {family}: {changed[:1500]}", lambda: read(folder)


def _run(folder: Path) -> None:
    from stlm_kd.models.capabilities import check_forward
    from stlm_kd.models.load import load_language_model

    check_forward(load_language_model(str(folder), None), context=_CONTEXT, name=str(folder))


def _build_student(fields: Any, folder: Path) -> None:
    from stlm_kd.data.tokenizers import load_tokenizer
    from stlm_kd.models.capabilities import check_forward
    from stlm_kd.models.load import declared_task, load_config
    from stlm_kd.models.students import student_from_fields
    from stlm_kd.recipe.schema.student import Student

    try:
        checked = Student.model_validate({"tokenizer": "x", "architecture": fields}).architecture
    except ValidationError:
        return  # a fault of a recipe
    tokenizer, task = load_tokenizer(str(folder)), declared_task(load_config(str(folder)))
    student = student_from_fields(checked or {}, tokenizer, task=task, context=_CONTEXT, seed=0)
    check_forward(student, context=_CONTEXT, name="student")


def _encode(folder: Path) -> None:
    from stlm_kd.data.tokenizers import document_ends, load_tokenizer, tokenizer_identity

    tokenizer = load_tokenizer(str(folder))
    document_ends(tokenizer)
    tokenizer_identity(tokenizer)
    tokenizer(["the cat sat", "naïve 日本 \n  x"])


def _damage_weights(folder: Path, draw: random.Random) -> str:
    """Change the header, the length, the bytes or the index of the weights."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    kind = draw.randrange(6)
    if kind == 0:
        index = {"metadata": {"total_size": len(data)}, "weight_map": dict.fromkeys(header, file.name)}
        changed = json.dumps(mutated(index, draw))
        (folder / "model.safetensors.index.json").write_text(changed, "utf-8", errors="surrogatepass")
        if draw.random() < 0.8:
            file.rename(folder / "model-00001-of-00001.safetensors")
        return f"index {changed[:500]}"
    if kind == 1:
        cut = draw.randrange(len(content))
        file.write_bytes(content[:cut])
        return f"cut at {cut}"
    if kind == 2:
        at = draw.randrange(8 + size)
        file.write_bytes(content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :])
        return f"byte {at}"
    if kind == 3:
        length = draw.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(content)))
        file.write_bytes(struct.pack("<Q", length) + content[8:])
        return f"header of {length}"
    if kind == 4:
        at = draw.randrange(0, len(data) - 4, 4)
        wrong = struct.pack("<f", draw.choice((float("nan"), float("inf"), -float("inf"), 3e38)))
        file.write_bytes(content[: 8 + size] + data[:at] + wrong + data[at + 4 :])
        return f"value at {at}"
    changed = json.dumps(mutated(header, draw)).encode("utf-8", "surrogatepass")
    file.write_bytes(struct.pack("<Q", len(changed)) + changed + data)
    return f"header {changed[:1500]!r}"


def main(kind: str, begin: int, end: int, base: Path, folder: Path) -> None:
    """Answer the cases, one JSON line for each before and after."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    read_all(base)
    for number in range(begin, end):
        given, work = prepared(kind, number, base, folder)
        print(json.dumps([number, "begins", given]), flush=True)
        print(json.dumps([number, *map(str, answer(work))]), flush=True)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
