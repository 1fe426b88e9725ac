"""Merge the caches of several teachers into one: their mixture at each token, at a fixed size.

Heads and draws of all teachers together are an unbiased estimate of the mixture. The new head consists of the
top tokens of the teachers' heads: exact for a teacher whose head contains the token, 0 for others. The rest
is resampled, so the result stays unbiased. A draw never enters the head: it represents a large part of a tail
and would pass for a likely token. The ``entropy`` is Σ w H of the teachers' entropies, as for teachers
combined during training: forward KL then has the value Σ w KL(p || q) and the gradient of KL(Σ w p || q).

Shapes: n tokens, M teachers, E entries of all teachers, H of the head.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from stlm_kd.artifacts.atomic import clear_abandoned_for, storage_as_error, written_whole
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.errors import CheckpointError, UsageError
from stlm_kd.losses.sampled import TargetMixture, TopKTail
from stlm_kd.teachers.cache.format import OF_ONE_CACHE, WORDS, Json, Layout, Manifest, shard_name
from stlm_kd.teachers.cache.reader import Found, Items, TeacherCache, distribution
from stlm_kd.teachers.cache.sampling import drawn, uniforms
from stlm_kd.teachers.cache.shards import write_shard
from stlm_kd.teachers.cache.writer import Work, complete, estimated_bytes, require_space
from stlm_kd.teachers.combination import COMBINERS, WeightingFeatures, weighting_features

WAYS = ("mean", "weighted", "confidence", "entropy", "label-likelihood")
"""Combiners whose features a cache provides."""

PIECE_TOKENS = 1 << 14
"""Approximate number of tokens of each teacher that are processed at a time."""


def merge_caches(
    folders: Sequence[str | PathLike[str]],
    *,
    output: str | PathLike[str],
    how: str = "mean",
    options: Mapping[str, Json] = MappingProxyType({}),
) -> Path:
    """Write the mixture of several caches into a new folder, atomically.

    Args:
        folders: Caches of the same data.
        output: The new folder.
        how: One of ``WAYS``.
        options: Options of the combiner; weights by teacher name, or by index of the cache from 0.

    Raises:
        UsageError: Fewer than two caches, a duplicate, an unsupported combiner, or an existing folder.
        CheckpointError: A damaged cache, or caches of different data or temperatures.
        MissingResourceError: A cache is missing, or the disk is too small.
    """
    places, target = [Path(folder) for folder in folders], Path(output)
    _check_words(places, how, options, target)
    caches = [TeacherCache.open(place) for place in places]
    names = names_of([cache.manifest for cache in caches])
    _check_same(caches, names)
    options = {**options, **_weights_by_name(how, options, names)}
    first = caches[0].manifest
    layout = _layout(caches)
    key = [how, dict(options), *(cache.manifest.fingerprint for cache in caches)]
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
    work = Work(layout, first.rows, first.variants, first.items_per_shard, seed, 1, _no_batch)
    target.parent.mkdir(parents=True, exist_ok=True)
    require_space(target.parent, estimated_bytes(layout, first.tokens, first.items), why=str(target))
    teachers: list[Json] = [cache.manifest.made_of["teacher"] for cache in caches]
    merged: dict[str, Json] = {"merged": teachers, "how": how, "options": dict(options)}
    made_of = {
        **first.made_of,
        **{name: _of_all(caches, name) for name in ("precision", "weights")},
        "teacher": merged,
        "top": layout.head,
        "draws": layout.draws,
        "states": [],
    }
    known = [cache.manifest.flops for cache in caches if cache.manifest.flops is not None]
    flops = sum(known) if len(known) == len(caches) else None
    source: dict[str, Json] = {"merged": [str(place) for place in places], "names": list(names)}
    clear_abandoned_for(target)
    with storage_as_error(target), written_whole(target) as unfinished:
        unfinished.mkdir()
        for shard in range(work.num_shards):
            pieces = _pieces(work.items_of(shard), first)
            parts = [_merged(piece, caches, work, how, options, names) for piece in pieces]
            lengths = np.concatenate([part.lengths for part in parts])
            checks = np.concatenate([part.checks for part in parts])
            columns = {
                name: np.concatenate([part.columns[name] for part in parts]) for name in layout.columns()
            }
            write_shard(unfinished / shard_name(shard), layout, lengths, checks, columns)
        complete(unfinished, work, made_of=made_of, source=source, flops=flops)
    return target


def names_of(manifests: Sequence[Manifest]) -> list[str]:
    """Name of each cache: its teacher's name, or its index if that is ambiguous."""
    own = [_own_name(manifest) for manifest in manifests]
    return [
        str(number) if own.count(name) > 1 or name.isdecimal() else name for number, name in enumerate(own)
    ]


def _own_name(manifest: Manifest) -> str:
    names = manifest.source.get("names")  # of a merged cache
    return "+".join(map(str, names)) if isinstance(names, list) else str(manifest.source.get("teacher"))


def _check_words(folders: Sequence[Path], how: str, options: Mapping[str, Json], output: Path) -> None:
    if len(folders) < 2:
        raise UsageError(f"{len(folders)} cache given; expected at least two")
    if output.exists():
        raise UsageError(f"--output {output}: exists already; name a new folder, or delete it")
    if how not in WAYS:
        raise UsageError(f"--how {how}: expected one of {', '.join(WAYS)}")
    for name in options:
        if name not in COMBINERS.options(how):
            takes = ", ".join(f"--{option}" for option in COMBINERS.options(how)) or "no options"
            raise UsageError(f"--{name}: not an option of {how}, which takes {takes}")
    sharpness = options.get("sharpness", 1.0)
    if not isinstance(sharpness, (int, float)) or not 0 < sharpness < math.inf:
        raise UsageError(f"--sharpness {sharpness}: expected a number above 0")


def _weights_by_name(how: str, options: Mapping[str, Json], names: Sequence[str]) -> dict[str, Json]:
    """The weights of ``weighted``, by teacher name."""
    if how != "weighted":
        return {}
    given = options.get("weights")
    weights = given if isinstance(given, dict) else {}
    numbered = {str(number): name for number, name in enumerate(names)}
    named = {
        numbered.get(name, name): float(weight)
        for name, weight in weights.items()
        if isinstance(weight, (int, float)) and 0 <= weight < math.inf
    }
    if len(named) < len(weights) or set(named) != set(names) or not any(named.values()):
        expected = ",".join(f"{name}=1" for name in names)
        raise UsageError(f"--weights: expected one number for each cache, not all 0, such as {expected}")
    return {"weights": {name: named[name] for name in names}}


def _places(caches: Sequence[TeacherCache], names: Sequence[str], number: int) -> str:
    """Folders and names of the first cache and another one, for a message."""
    return " and ".join(f"{caches[own].folder} ({names[own]})" for own in (0, number))


def _check_same(caches: Sequence[TeacherCache], names: Sequence[str]) -> None:
    """Reject caches of different tokens, and duplicates."""
    first = caches[0].manifest
    given: dict[str, Path] = {}
    compared = [name for name in WORDS if name not in OF_ONE_CACHE]
    for place, cache in enumerate(caches):
        other = cache.manifest
        apart = [WORDS[name] for name in compared if first.made_of.get(name) != other.made_of.get(name)]
        numbers = (first.rows, first.variants, first.tokens, first.layout.vocabulary)
        if not apart and numbers != (other.rows, other.variants, other.tokens, other.layout.vocabulary):
            apart = ["the rows"]
        if other.layout.logits:
            raise CheckpointError(f"{cache.folder}: contains classifiers' logits, which cannot be merged")
        if other.fingerprint in given:
            places = f"{given[other.fingerprint]} and {cache.folder}"
            raise UsageError(f"{places} are the same cache; give it once, or weight it by --how weighted")
        given[other.fingerprint] = cache.folder
        if apart:
            places = _places(caches, names, place)
            raise CheckpointError(f"{places} differ in {', '.join(apart)}; build them from one recipe")


def _of_all(caches: Sequence[TeacherCache], name: str) -> Json:
    """The common value of a manifest field, or a list of the values if they differ."""
    values = [cache.manifest.made_of.get(name) for cache in caches]
    return values[0] if all(value == values[0] for value in values) else values


def _layout(caches: Sequence[TeacherCache]) -> Layout:
    first = caches[0].layout
    head = min(cache.layout.head for cache in caches)  # guaranteed in every cache
    draws = max(cache.layout.draws for cache in caches)
    draws = draws or (1 if head < first.vocabulary else 0)
    return Layout(first.vocabulary, head, draws, first.temperature, first.positions)


def _pieces(items: range, first: Manifest) -> Iterator[range]:
    """The items in pieces of about ``PIECE_TOKENS`` tokens."""
    size = max(1, first.items * PIECE_TOKENS // max(first.tokens, 1))
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def _merged(
    items: range,
    caches: Sequence[TeacherCache],
    work: Work,
    how: str,
    options: Mapping[str, Json],
    names: Sequence[str],
) -> Items:
    """The merged columns of some items, in the layout's dtypes."""
    found = [cache.items(items) for cache in caches]
    first, layout = found[0], work.layout
    for number, other in enumerate(found):
        if (other.checks != first.checks).any() or (other.lengths != first.lengths).any():
            places = _places(caches, names, number)
            raise CheckpointError(f"{places} contain different rows; build them from one recipe")
    tokens = int(first.lengths.sum())
    item_of = np.repeat(np.asarray(items), first.lengths)
    begins = np.cumsum(first.lengths) - first.lengths
    place = np.arange(tokens) - np.repeat(begins, first.lengths)
    numbers = torch.from_numpy(uniforms(work.seed, item_of, place, layout.draws))
    targets = []
    for cache, own in zip(caches, found, strict=True):
        target = distribution(Found(torch.ones(tokens, dtype=torch.bool), own.columns), cache.layout)
        assert isinstance(target, TopKTail)
        targets.append(target)
    made = mixed(targets, numbers, layout.head, how, options, names)
    columns = {name: made[name].numpy().astype(dtype) for name, (dtype, _) in layout.columns().items()}
    return Items(first.lengths, first.checks, columns)


def mixed(
    targets: Sequence[TopKTail],
    uniforms_nM: Tensor,
    head: int,
    how: str,
    options: Mapping[str, Json],
    names: Sequence[str],
) -> Mapping[str, Tensor]:
    """Compute the columns of the mixture, as ``head_and_tail`` does for one teacher."""
    weights_nM = _weights(targets, how, options, names)
    heads, draws = zip(
        *(_parts(t, w) for t, w in zip(targets, weights_nM.unbind(-1), strict=True)), strict=True
    )
    known = _once(*(torch.cat(part, dim=-1) for part in zip(*heads, strict=True)))
    top = known[1].topk(head, dim=-1)
    rest_nE = torch.cat([known[1].scatter(-1, top.indices, 0.0), *(masses for _, masses in draws)], dim=-1)
    ids_nE = torch.cat([known[0], *(ids for ids, _ in draws)], dim=-1)
    tail_n1 = rest_nE.sum(-1, keepdim=True).log()
    ids_nH = known[0].gather(-1, top.indices)
    drawn_nM = ids_nE.gather(-1, drawn(rest_nE.log(), tail_n1, uniforms_nM))
    labels_nM = torch.stack([_labels(target) for target in targets], dim=-1)
    return {
        "ids": torch.cat([ids_nH, torch.where(tail_n1.isneginf(), ids_nH[:, :1], drawn_nM)], dim=-1),
        "log_probs": top.values.log(),
        "tail": tail_n1.squeeze(-1),
        "entropy": TargetMixture(targets, weights_nM).entropy,
        "label_log_probs": (weights_nM.log() + labels_nM).logsumexp(-1),
    }


def _parts(target: TopKTail, weight_n: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Token ids and weighted masses of a teacher's head, and of its draws."""
    head, masses_nE = target.log_probs.shape[-1], target.masses() * weight_n[:, None]
    return (target.ids[:, :head], masses_nE[:, :head]), (target.ids[:, head:], masses_nE[:, head:])


def _weights(
    targets: Sequence[TopKTail], how: str, options: Mapping[str, Json], names: Sequence[str]
) -> Tensor:
    """The teachers' weights, (n, M)."""
    tokens = len(targets[0].ids)
    no_label_n = torch.zeros(tokens, dtype=torch.int64)
    features = weighting_features(
        targets, no_label_n, COMBINERS[how].needs_with(options), targets[0].temperature
    )
    evidence = WeightingFeatures(
        teachers=tuple(names),
        blank=torch.zeros(tokens, len(targets)),
        labelled=torch.ones(tokens, dtype=torch.bool),  # without a label, all caches store 0
        confidence=features.confidence,
        entropy=features.entropy,
        label_log_prob=features.label_log_prob,
    )
    weights_nM: Tensor = COMBINERS[how](evidence, **options)
    return weights_nM


def _labels(target: TopKTail) -> Tensor:
    assert target.label_log_probs is not None
    return target.label_log_probs


def _once(ids_nE: Tensor, masses_nE: Tensor) -> tuple[Tensor, Tensor]:
    """Merge duplicate ids and sum their masses; unused entries have mass 0."""
    ids_nE, order_nE = ids_nE.sort(dim=-1)
    masses_nE = masses_nE.gather(-1, order_nE)
    is_new_nE = torch.ones_like(ids_nE, dtype=torch.bool)
    is_new_nE[:, 1:] = ids_nE[:, 1:] != ids_nE[:, :-1]
    place_nE = is_new_nE.cumsum(-1) - 1
    summed_nE = torch.zeros_like(masses_nE).scatter_add_(-1, place_nE, masses_nE)
    return torch.zeros_like(ids_nE).scatter_(-1, place_nE, ids_nE), summed_nE


def _no_batch(rows: Sequence[int], variants: Sequence[int]) -> AnyBatch:
    raise AssertionError("merging runs no teacher")
