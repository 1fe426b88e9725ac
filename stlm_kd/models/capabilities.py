"""Whether a model can be run the ways this library runs models: each is tried against the whole model.

They rest on what transformers does not promise: that a head is one module, that a mask may say of each
position what it sees, that a body calls the modules of its list of blocks one after the other, that attention
looks its function up by name. A release may change any of these without an error.

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
from stlm_kd.errors import ModelError
from stlm_kd.models.attention_maps import attention_module, kept_maps
from stlm_kd.models.forward import head_of, last_hidden, model_inputs, vocabulary_head
from stlm_kd.models.outputs import logits_of
from stlm_kd.models.partial_forward import Inputs, call, finish, prepare

Path = Literal["blocks", "maps"]
"""A way into a model that only some objectives take: its blocks one by one, or its attention maps."""

LOUDER = 1024.0
"""A power of two, so that it changes no digit of a logit; untrained models' own logits lie below any cap."""


@torch.no_grad()
def check_forward(model: PreTrainedModel, *, context: int, name: str) -> None:
    """Refuse a language model that cannot be run up to its head, or on rows of several documents.

    Such are models that cap their logits, causal ones that look both ways or look back less far than
    ``context`` (a sliding window), and models that carry a state over to the next document or do not take
    its positions.

    Args:
        model: As loaded or built.
        context: Positions of a row of the data.
        name: What messages call it.

    Raises:
        ModelError: It is one of these.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise ModelError(
            f"{name}: this {model.config.model_type} model has no embedding of tokens with a linear head "
            f"({type(embedding).__name__}, {type(head).__name__} found); use another model"
        )
    with _evaluating(model):
        row = _random_row(model, [context])
        with _loud_head(model):
            whole = call(model, {"input_ids": row.input_ids})["logits"]
        try:
            parts = LOUDER * _projected(model, last_hidden(model, row))
        except (ModelError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"{name}: this {model.config.model_type} model cannot be told which positions see each other "
                f"({error}); use a model with attention alone"
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
                f"{name}: in this {model.config.model_type} model a document sees the one before it in its "
                "row, or counts its positions on from there; only models with attention alone keep packed "
                "documents apart"
            )


def require_paths(model: PreTrainedModel, paths: Collection[Path], *, name: str) -> None:
    """Refuse a model that does not give by a path what it gives when it is run whole.

    What worked is not tried again in this process with a model of the same class, attention and release.

    Args:
        model: Of a family that ``architectures.py`` lists, with whatever head.
        paths: Those that objectives take.
        name: What messages call it.

    Raises:
        ModelError: One of them fails; the message has the family, the release, the reason and what to do.
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
    """How a path is tried: raises what the path raises, or ``_Differs``; and how its failure is told."""

    run: Callable[[PreTrainedModel, Inputs], None]
    what: str
    cure: str


class _Differs(Exception):
    """A path gives something else than the whole model."""


@torch.no_grad()
def _failure(model: PreTrainedModel, trial: _Trial) -> str | None:
    """Why a path does not work; None where it does."""
    try:
        with _evaluating(model):
            trial.run(model, _few_tokens(model))
    except Exception as error:  # whatever a library's private part raises once it has changed is the answer
        return f"{type(error).__name__}: {error}" if not isinstance(error, _Differs) else str(error)
    return None


def _try_blocks(model: PreTrainedModel, inputs: Inputs) -> None:
    """The model in two parts, and that what stands behind its last block is made of the state given to it."""
    whole = logits_of(call(model, inputs))
    prepared = prepare(model, inputs)
    half = len(prepared.blocks) // 2
    middle, _ = prepared.run(stop=half)
    last, _ = prepared.run(middle, start=half)
    if not _close(logits_of(finish(model, last, inputs)), whole):
        raise _Differs("run in parts it has other logits than run whole")
    if _close(logits_of(finish(model, last.roll(1, -1), inputs)), whole):
        raise _Differs("another state after its last block does not change its logits")


def _try_maps(model: PreTrainedModel, inputs: Inputs) -> None:
    """The maps of all layers against those that transformers' own eager attention returns."""
    layers = range(len(prepare(model, inputs).blocks))
    with _own_attention_afterwards(model, layers), kept_maps(model, layers) as maps:
        call(model, inputs)
    with _eager(model):
        said = call(model, _few_tokens(model), output_attentions=True)["attentions"]
    for layer in layers:
        if layer not in maps:
            raise _Differs(f"layer {layer} computes its attention without the function that it is given")
        apart_BHTK = torch.nan_to_num(maps[layer].exp() - said[layer].to(maps[layer].dtype)).abs()
        if _is_precise(said[layer]) and float(apart_BHTK.max()) > 1e-4:
            raise _Differs(f"those of layer {layer} are not those of eager attention")
        # In bf16 eager attention rounds its scores, and each layer adds to what that makes of its input.
        if layer == 0 and float(apart_BHTK.mean()) > 2e-2:
            raise _Differs("those of layer 0 are not those of eager attention")


_TRIALS: Mapping[Path, _Trial] = {
    "blocks": _Trial(
        _try_blocks,
        "hidden states cannot be read and exchanged in",
        "leave out losses on hidden states and attention maps and interventions",
    ),
    "maps": _Trial(_try_maps, "attention maps cannot be read in", "leave out losses on attention maps"),
}


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def _loud_head(model: PreTrainedModel) -> Iterator[None]:
    """While it is entered, the head gives ``LOUDER`` times its logits, so that a cap on them shows."""
    head: nn.Module = model.get_output_embeddings()
    quiet = head.forward
    head.forward = lambda hidden: LOUDER * quiet(hidden)
    try:
        yield
    finally:
        del head.forward


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """While it is entered, the model computes with transformers' eager attention."""
    own = model.config._attn_implementation
    assert own is not None
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(own)


@contextmanager
def _own_attention_afterwards(model: PreTrainedModel, layers: Collection[int]) -> Iterator[None]:
    """Undo what ``install_maps`` does meanwhile."""
    modules = [attention_module(model, layer) for layer in layers]
    configs = [module.config for module in modules]
    try:
        yield
    finally:
        for module, config in zip(modules, configs, strict=True):
            module.config = config


def _few_tokens(model: PreTrainedModel) -> dict[str, Tensor]:
    """A row of two documents, or for a classifier of one."""
    if vocabulary_head(model) is not None:
        return model_inputs(_random_row(model, [3, 5]), model)
    row = _random_row(model, [8])
    return {"input_ids": row.input_ids, "attention_mask": row.attention_mask.long()}


def _projected(model: PreTrainedModel, hidden_BTD: Tensor) -> Tensor:
    """The head's logits, (B, T, V)."""
    head = head_of(model)
    return nn.functional.linear(hidden_BTD, head.weight, head.bias)


def _close(found: Tensor, expected: Tensor) -> bool:
    """Equal up to a share of the largest value; weights that are not finite are for training to report."""
    tolerance = 1e-3 if _is_precise(expected) else 3e-2
    found, expected = (torch.nan_to_num(values.float(), 0.0, 0.0, 0.0) for values in (found, expected))
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def _is_precise(values: Tensor) -> bool:
    return values.dtype in (torch.float32, torch.float64)


def _random_row(model: PreTrainedModel, lengths: Sequence[int]) -> Batch:
    """One row of random documents, always the same."""
    generator = torch.Generator().manual_seed(0)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding), "checked when the model is loaded"
    ids_1T = torch.randint(0, embedding.num_embeddings, (1, sum(lengths)), generator=generator)
    padding = model.config.get_text_config().pad_token_id
    if padding is not None:  # from which RoBERTa tells positions, where it is not given them
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
