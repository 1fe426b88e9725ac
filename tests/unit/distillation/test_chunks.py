"""Whatever is computed in pieces is the same for every size of a piece, dividing or not."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stlm_kd.distillation import metrics
from stlm_kd.distillation.logit_terms import projected_losses
from stlm_kd.distillation.terms import Term
from stlm_kd.distillation.token_table import TokenTable
from stlm_kd.eval.language_modeling import masked_windows
from stlm_kd.losses import chunked, spans
from stlm_kd.losses.spans import log_likelihoods
from stlm_kd.models.forward import Head
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.cache import merge, writer
from stlm_kd.teachers.cache.format import Layout
from stlm_kd.teachers.cache.merge import merge_caches
from stlm_kd.teachers.combination import TeacherMixture
from stlm_kd.teachers.combination.gate import GATE
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.targets import Dense, Distribution
from stlm_kd.vocabulary import cooccurrence
from tests.integration import test_cache_merging
from tests.unit.distillation import test_counterfactuals, test_ensembles
from tests.unit.teachers import test_cache_files

WIDTH, SCALES = 5, [0.3, 0.7]
TERMS = [
    Term("kl", "forward_kl", teacher=COMBINED, options={"temperature": 2.0}),
    Term(GATE, GATE, teacher=COMBINED, options={"temperature": 2.0}),
]
sizes = st.integers(1, 40)


def normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def found(
    tokens: int, outcomes: int, masks: list[Tensor], method: str, *, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Of two teachers that a gate weighs: the total, the sums, the gradients of student and gate."""
    wide = [normal(seed, tokens, WIDTH).to(dtype) for seed in (4, 7)]
    heads = [Head(normal(seed, outcomes, WIDTH).to(dtype), None) for seed in (5, 8)]
    teachers: dict[str, Distribution] = {
        name: Dense(hidden, head, outcomes - i)  # the second one's tokenizer is one smaller
        for i, (name, hidden, head) in enumerate(zip("ab", wide, heads, strict=True))
    }
    shapes = [(tokens, WIDTH), (outcomes, WIDTH), (outcomes,), (tokens, 2)]
    leaves = [normal(seed, *shape).to(dtype).requires_grad_() for seed, shape in enumerate(shapes)]
    labels = torch.arange(tokens) * 7 % (outcomes - 1)
    mixing = TeacherMixture(Combination("learned", {}), ("a", "b"), gate=leaves[3])
    rows = TokenTable(TERMS, mixing, labels, masks, teachers, outcomes)
    total, sums = projected_losses(rows, leaves[0], Head(*leaves[1:3]), SCALES, method=method)  # type: ignore[arg-type]
    total.backward()
    return [total.detach(), sums, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@given(
    tokens=st.integers(1, 50),
    outcomes=st.integers(2, 40),
    chunk=sizes,
    block=sizes,
    data=st.data(),
)
@settings(deadline=None, max_examples=25)
def test_a_gate_learns_the_same_whatever_the_vocabulary_and_the_chunks(
    tokens: int, outcomes: int, chunk: int, block: int, data: st.DataObject
) -> None:
    """Both terms count all tokens, or each of them some."""
    every = torch.ones(tokens, dtype=torch.bool)
    some = st.lists(st.booleans(), min_size=tokens, max_size=tokens).map(torch.tensor)
    masks = [data.draw(st.just(every) | some) for _ in TERMS]
    expected = found(tokens, outcomes, masks, "dense")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "chunk_rows", lambda weight, share: chunk)
        patch.setattr("stlm_kd.distillation.token_table.block_rows", lambda logits: block)
        values = found(tokens, outcomes, masks, "chunked")
    assert len(values) == 6
    assert all(torch.allclose(*pair, rtol=1e-11, atol=1e-11) for pair in zip(values, expected, strict=True))


@pytest.mark.parametrize("vocabulary", [700, 32_000, 50_257, 151_646])
def test_a_gate_learns_with_vocabularies_as_they_are(vocabulary: int) -> None:
    """A chunk and a bit, in chunks and blocks of the sizes of a training on a CPU."""
    tokens = int(chunked.CHUNK_ELEMENTS * 2 / 3) // vocabulary + 3
    masks = [torch.ones(tokens, dtype=torch.bool)] * 2
    values = found(tokens, vocabulary, masks, "chunked", dtype=torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "chunk_rows", lambda weight, share: tokens)
        patch.setattr("stlm_kd.distillation.token_table.block_rows", lambda logits: tokens)
        expected = found(tokens, vocabulary, masks, "chunked", dtype=torch.float32)
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-4) for pair in zip(values, expected, strict=True))


@given(length=st.integers(0, 60), size=sizes)
def test_pieces_cover_every_row_once_and_none_beyond(length: int, size: int) -> None:
    found = list(chunked.pieces(length, size))
    assert [row for piece in found for row in range(piece.start, piece.stop)] == list(range(length))
    assert all(piece.stop - piece.start == size for piece in found[:-1])


@given(chunk=sizes, block=sizes)
@settings(deadline=None, max_examples=4)
def test_what_teachers_say_beside_one_another_is_measured_alike(chunk: int, block: int) -> None:
    def measured() -> dict[str, float]:
        step = test_ensembles.step_of([test_ensembles.random_logits(seed) for seed in range(3)])
        return test_ensembles.measured(step, slice(0, 4))

    expected = measured()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "chunk_rows", lambda *_: chunk)
        patch.setattr("stlm_kd.distillation.token_table.block_rows", lambda logits: block)
        assert measured() == pytest.approx(expected, rel=1e-9)


@given(chunk=sizes)
@settings(deadline=None, max_examples=3)
def test_what_interventions_do_is_measured_alike(chunk: int) -> None:
    step, batch = test_counterfactuals.step_of("bert", on="labels")

    def measured() -> list[float]:
        counts = {name: float(count) for name, count in step.count(batch).items()}
        return [float(part) for measure in step(batch, counts).measures.values() for part in measure]

    expected = measured()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "chunk_rows", lambda *_: chunk)
        assert measured() == pytest.approx(expected, rel=1e-9)


@given(tokens=st.integers(1, 30), size=sizes)
@settings(deadline=None, max_examples=20)
def test_likelihoods_of_spans_are_those_of_all_tokens_at_once(tokens: int, size: int) -> None:
    hidden, weight, labels = normal(0, tokens, WIDTH), normal(1, 11, WIDTH), torch.arange(tokens) % 11
    expected = (hidden @ weight.T).log_softmax(-1)[torch.arange(tokens), labels]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "chunk_rows", lambda weight: size)
        assert torch.allclose(log_likelihoods(hidden, weight, None, labels), expected, rtol=1e-12)


@given(tokens=st.integers(1, 60), elements=st.integers(1, 1000))
@settings(deadline=None, max_examples=20)
def test_masked_tokens_cost_what_they_cost_all_at_once(tokens: int, elements: int) -> None:
    states, head = normal(0, tokens, WIDTH), Head(normal(1, 11, WIDTH), None)
    targets = torch.arange(tokens) % 11
    log_probs = (states @ head.weight.T).log_softmax(-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "CHUNK_ELEMENTS", elements)
        nats, top, behind = masked_windows.against_vocabulary(states, targets, head)
    assert torch.allclose(nats, -log_probs[torch.arange(tokens), targets], rtol=1e-10)
    assert torch.equal(top, log_probs.argmax(-1))
    expected = log_probs.max(-1).values - log_probs[torch.arange(tokens), targets]
    assert torch.allclose(behind, expected, rtol=1e-8, atol=1e-12)


@given(micro_batch=st.integers(1, 9), per_shard=st.integers(1, 40), elements=st.integers(1, 3000))
@settings(deadline=None, max_examples=3)
def test_a_cache_holds_the_same_whatever_its_shards_and_micro_batches(
    micro_batch: int, per_shard: int, elements: int
) -> None:
    """Each row's items, wherever they lie, and read in ranges that cross shards."""
    rows, layout = test_cache_files.packed(), Layout(test_cache_files.VOCABULARY, 6, 3, 2.0)
    plain = test_cache_files.work(rows, layout)
    other = writer.Work(layout, len(rows), 1, min(per_shard, len(rows)), 3, micro_batch, plain.batch)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        expected = test_cache_files.cached(Path(folder) / "one", plain, test_cache_files.teacher())
        patch.setattr(writer, "CHUNK_ELEMENTS", elements)
        cache = test_cache_files.cached(Path(folder) / "other", other, test_cache_files.teacher())
        for begin in range(0, len(rows), 4):
            wanted = range(begin, min(begin + 4, len(rows)))
            one, two = expected.items(wanted), cache.items(wanted)
            assert one.lengths.tolist() == two.lengths.tolist() and one.checks.tolist() == two.checks.tolist()
            for name, column in one.columns.items():
                assert np.allclose(column, two.columns[name], rtol=2e-3, atol=1e-3), name


@given(first=st.integers(1, 8), second=st.integers(1, 8), tokens=st.integers(1, 25))
@settings(deadline=None, max_examples=8)
def test_merged_caches_hold_the_same_whatever_their_shards_and_pieces(
    first: int, second: int, tokens: int
) -> None:
    def merged(folder: Path, shards: tuple[int, int]) -> list[Tensor]:
        folders = [
            test_cache_merging.cached(folder / name, name, seed, per_shard=min(size, 7))
            for name, seed, size in zip("ab", (1, 2), shards, strict=True)
        ]
        said = test_cache_merging.said(merge_caches(folders, how="mean", options={}, output=folder / "m"))
        return [said.log_probs, said.tail, said.entropy]

    with TemporaryDirectory() as one, TemporaryDirectory() as other, pytest.MonkeyPatch.context() as patch:
        expected = merged(Path(one), (7, 7))
        patch.setattr(merge, "PIECE_TOKENS", tokens)
        values = merged(Path(other), (first, second))
    assert all(torch.allclose(*pair, rtol=1e-6) for pair in zip(values, expected, strict=True))


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9), size=sizes)
@settings(deadline=None, max_examples=30)
def test_tokens_keep_the_same_company_whatever_is_counted_at_once(lengths: list[int], size: int) -> None:
    offsets = np.cumsum([0, *lengths])
    tokens = np.random.default_rng(0).integers(0, 7, offsets[-1])
    expected = np.zeros((7, 7))
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for i in range(begin, end):
            for j in range(begin, end):
                expected[tokens[i], tokens[j]] += 0 < abs(i - j) <= cooccurrence.WINDOW
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "_CHUNK", size)
        assert np.array_equal(cooccurrence.company(tokens, offsets, 7).toarray(), expected)


@given(elements=st.integers(1, 400))
@settings(deadline=None, max_examples=20)
def test_mixes_of_anchors_are_the_same_whatever_is_compared_at_once(elements: int) -> None:
    vectors = normal(0, 30, 6).numpy().astype(np.float32)
    ids, anchors = np.arange(17), np.arange(17, 30)
    expected = cooccurrence.likeness(vectors, ids, anchors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "_CHUNK", elements)
        values = cooccurrence.likeness(vectors, ids, anchors)
    assert np.allclose(values.weights, expected.weights, atol=1e-6)
    assert np.array_equal(np.sort(values.anchors, 1), np.sort(expected.anchors, 1))
