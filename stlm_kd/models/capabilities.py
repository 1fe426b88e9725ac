"""Check that a model can be run as this library runs models, by comparison with its regular forward pass.

The library relies on internals that transformers does not guarantee: the head is one module, the attention
mask may be given per pair of positions, the body calls its list of blocks in order, and attention functions
are looked up by name. A release may change any of these without an error.

Shapes: B rows, T positions, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.errors import ModelError, first_line, foreign_errors
from stlm_kd.models.attention_maps import attention_module, kept_maps
from stlm_kd.models.forward import (
    evaluating,
    head_of,
    last_hidden,
    model_inputs,
    tree_inputs,
    vocabulary_head,
)
from stlm_kd.models.outputs import OutputSpec, finish_forward, logits_of
from stlm_kd.models.partial_forward import Inputs, call, finish, prepare

Path = Literal["blocks", "maps"]
"""Access to a model's internals that only some objectives need: its blocks, or its attention maps."""

LOUDER = 1024.0
"""Scale of the logits that reveals a cap; untrained models' logits lie below it. A power of two is exact."""


@torch.no_grad()
def check_forward(model: PreTrainedModel, *, context: int, name: str) -> None:
    """Check that a language model can be run up to its head, and on rows of several packed documents.

    Rejects models with capped logits, causal models with bidirectional attention or a sliding window below
    ``context`` (the positions per row), and models that carry a state over to the next document or ignore its
    position ids: a ``ModelError``, which begins with ``name``.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise ModelError(
            f"{name}: this {model.config.model_type} model has no embedding of tokens with a linear head "
            f"({type(embedding).__name__}, {type(head).__name__} found); use another model"
        )
    with evaluating(model):
        row = _random_row(model, [context])
        with (
            foreign_errors(
                lambda error: ModelError(
                    f"{name}: this {model.config.model_type} model cannot be run ({first_line(error)}); "
                    "correct its config.json, or use another model"
                ),
                is_quiet=True,
            ),
            _loud_head(model),
        ):
            whole = call(model, {"input_ids": row.input_ids})["logits"]
        try:
            parts = LOUDER * _projected(model, last_hidden(model, row))
        except (ModelError, TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
            raise ModelError(
                f"{name}: this {model.config.model_type} model does not accept an attention mask per pair of "
                f"positions ({error}); use a model with attention only"
            ) from error
        if not _close(parts, whole):
            raise ModelError(
                f"{name}: this {model.config.model_type} model's logits are not its head applied to its last "
                f"hidden state over {context} tokens (it may cap them, look both ways, or have a sliding "
                "window below data.context); use another model or a shorter context"
            )
        half = context // 2
        packed = _random_row(model, [half, context - half])
        alone = call(model, {"input_ids": packed.input_ids[:, half:]})["logits"]
        if not _close(_projected(model, last_hidden(model, packed)[:, half:]), alone):
            raise ModelError(
                f"{name}: in this {model.config.model_type} model a document attends to the one before it in "
                "its row, or continues its position ids; use a model with attention only, which keeps packed "
                "documents separate"
            )


@torch.no_grad()
def check_trees(model: PreTrainedModel, *, name: str) -> None:
    """Check that a causal model reads several continuations of a text in one row, each as if alone.

    Raises ``ModelError``, which begins with ``name``.
    """
    ids = _random_row(model, [8]).input_ids[0].tolist()
    first, second = [*range(8)], [0, 1, 2, 8, 9, 10]
    tokens, parents = [*ids, *ids[:3]], [-1, *range(7), 2, 8, 9]
    with evaluating(model):
        inputs = tree_inputs([(tokens, parents)], model).items()
        together = logits_of(call(model, {key: value.to(model.device) for key, value in inputs}))[0]
        for path in (first, second):
            row = torch.tensor([[tokens[node] for node in path]], device=model.device)
            if not _close(together[path], logits_of(call(model, {"input_ids": row}))[0]):
                raise ModelError(
                    f"{name}: this {model.config.model_type} model does not read several continuations of a "
                    "text in one row as it reads each alone; use adapt in place of translate"
                )


def require_paths(model: PreTrainedModel, paths: Collection[Path], *, name: str) -> None:
    """Check that the given paths reproduce the model's regular outputs.

    Results are cached in this process by the model's class, attention implementation and release. Raises
    ``ModelError``, which begins with ``name`` and has the family, the release, the reason and what to do.
    """
    implementation = str(model.config._attn_implementation)
    for path in sorted(paths):
        key = (type(model).__name__, model.config.model_type, implementation, transformers.__version__, path)
        if key in _works:
            continue
        trial = _TRIALS[path]
        reason = _failure(model, trial)
        if reason is not None:
            raise ModelError(
                f"{name}: {trial.what} this {model.config.model_type} model with transformers "
                f"{transformers.__version__} ({reason}); {trial.cure}, use another model, or install "
                "another release of transformers"
            )
        _works.add(key)


_works: set[tuple[str, str, str, str, Path]] = set()


@dataclass(frozen=True, slots=True)
class _Trial:
    """The check of a path, which raises the path's own error or ``_Differs``, and its error message."""

    run: Callable[[PreTrainedModel, Inputs], None]
    what: str
    cure: str


class _Differs(Exception):
    """A path's outputs differ from the regular forward pass."""


@torch.no_grad()
def _failure(model: PreTrainedModel, trial: _Trial) -> str | None:
    """Why a path fails; None if it works."""
    try:
        with evaluating(model):
            trial.run(model, _few_tokens(model))
    except Exception as error:  # changed internals may raise anything
        return f"{type(error).__name__}: {error}" if not isinstance(error, _Differs) else str(error)
    return None


def _try_blocks(model: PreTrainedModel, inputs: Inputs) -> None:
    """Run the model in two parts; also check that its logits depend on the state after the last block."""
    whole = logits_of(call(model, inputs))
    prepared = prepare(model, inputs)
    half = len(prepared.blocks) // 2
    middle, _ = prepared.run(stop=half)
    last, _ = prepared.run(middle, start=half)
    if not _close(logits_of(finish(model, last, inputs)), whole):
        raise _Differs("its logits differ between a run in parts and a whole run")
    if _close(logits_of(finish(model, last.roll(1, -1), inputs)), whole):
        raise _Differs("its logits do not depend on the state after its last block")
    needs = OutputSpec(logits=True, sites=frozenset({"last"}))
    width = finish_forward(model, inputs, last, needs).states["last"].shape[-1]
    if width != last.shape[-1]:
        raise _Differs(f"its last hidden states are {width} wide, and those of its blocks {last.shape[-1]}")


def _try_maps(model: PreTrainedModel, inputs: Inputs) -> None:
    """Compare the maps of all layers with those from transformers' eager attention."""
    layers = range(len(prepare(model, inputs).blocks))
    with _own_attention_afterwards(model, layers), kept_maps(model, layers) as maps:
        call(model, inputs)
    own = model.config._attn_implementation
    assert own is not None
    model.set_attn_implementation("eager")
    try:
        expected = call(model, _few_tokens(model), output_attentions=True)["attentions"]
    finally:
        model.set_attn_implementation(own)
    for layer in layers:
        if layer not in maps:
            raise _Differs(f"layer {layer} does not use the registered attention function")
        apart_BHTK = torch.nan_to_num(maps[layer].exp() - expected[layer].to(maps[layer].dtype)).abs()
        if _is_precise(expected[layer]) and float(apart_BHTK.max()) > 1e-4:
            raise _Differs(f"those of layer {layer} differ from eager attention")
        # In bf16 eager attention rounds its scores, and the error accumulates over layers.
        if layer == 0 and float(apart_BHTK.mean()) > 2e-2:
            raise _Differs("those of layer 0 differ from eager attention")


_TRIALS: Mapping[Path, _Trial] = {
    "blocks": _Trial(
        _try_blocks,
        "hidden states cannot be read and exchanged in",
        "remove losses on hidden states and attention maps, and interventions",
    ),
    "maps": _Trial(_try_maps, "attention maps cannot be read in", "remove losses on attention maps"),
}


@contextmanager
def _loud_head(model: PreTrainedModel) -> Iterator[None]:
    """Multiply the head's logits by ``LOUDER`` within the context, to reveal a cap on them."""
    head: nn.Module = model.get_output_embeddings()
    quiet = head.forward
    head.forward = lambda hidden: LOUDER * quiet(hidden)
    try:
        yield
    finally:
        del head.forward


@contextmanager
def _own_attention_afterwards(model: PreTrainedModel, layers: Collection[int]) -> Iterator[None]:
    """Undo ``install_maps`` at the end of the context."""
    modules = [attention_module(model, layer) for layer in layers]
    configs = [module.config for module in modules]
    try:
        yield
    finally:
        for module, config in zip(modules, configs, strict=True):
            module.config = config


def _few_tokens(model: PreTrainedModel) -> dict[str, Tensor]:
    """Inputs of one row: two documents, or one for a classifier."""
    if vocabulary_head(model) is not None:
        return model_inputs(_random_row(model, [3, 5]), model)
    row = _random_row(model, [8])
    return {"input_ids": row.input_ids, "attention_mask": row.attention_mask.long()}


def _projected(model: PreTrainedModel, hidden_BTD: Tensor) -> Tensor:
    """The head's logits, (B, T, V)."""
    head = head_of(model)
    return nn.functional.linear(hidden_BTD, head.weight, head.bias)


def _close(found: Tensor, expected: Tensor) -> bool:
    """Equal up to a fraction of the largest value; non-finite weights are reported by training instead."""
    tolerance = 1e-3 if _is_precise(expected) else 3e-2
    found, expected = (torch.nan_to_num(values.float(), 0.0, 0.0, 0.0) for values in (found, expected))
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def _is_precise(values: Tensor) -> bool:
    return values.dtype in (torch.float32, torch.float64)


def _random_row(model: PreTrainedModel, lengths: Sequence[int]) -> Batch:
    """One row of random documents, with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding), "checked when the model is loaded"
    ids_1T = torch.randint(0, embedding.num_embeddings, (1, sum(lengths)), generator=generator)
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    if isinstance(padding, int) and 0 <= padding < embedding.num_embeddings:
        # RoBERTa derives default positions from it
        ids_1T[ids_1T == padding] = (padding + 1) % embedding.num_embeddings
    documents = torch.cat([torch.full((n,), number) for number, n in enumerate(lengths, start=1)])
    positions = torch.cat([torch.arange(n) for n in lengths])
    return Batch(
        input_ids=ids_1T,
        attention_mask=torch.ones_like(ids_1T, dtype=torch.bool),
        labels=torch.full_like(ids_1T, IGNORED),
        document_ids=documents[None],
        position_ids=positions[None],
        example_ids=torch.zeros(1, dtype=torch.int64),
    ).to(model.device)
