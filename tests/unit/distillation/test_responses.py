"""Whole objectives over the table of losses: N tokens, D width, V outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from stlm_kd.data.batch import IGNORED
from stlm_kd.distillation.logit_terms import direct_losses, projected_losses
from stlm_kd.distillation.terms import Term
from stlm_kd.distillation.token_table import TokenTable
from stlm_kd.losses import GRADIENTS, LABELS, LOSSES, SPARSE_LOSSES, TopKTail, chunked, forward_kl
from stlm_kd.models.forward import Head
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.combination import TeacherMixture
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.targets import Dense, Logits
from tests.support.loss_checks import CASES, case_name

N, V = 37, 61
cases = pytest.mark.parametrize(("name", "options"), CASES, ids=case_name)
NAMES = list(LOSSES)


def normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HIDDEN, HEAD = normal(0, N, 7), Head(normal(1, V, 7), normal(2, V))
LABELS_N = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(3))
TEACHERS = {
    "a": Dense(normal(4, N, 5), Head(normal(5, V, 5), normal(6, V)), V),
    "b": Dense(
        normal(7, N, 6), Head(normal(8, V + 3, 6), None), 55
    ),  # padded by its head and to the student's
    "c": Logits(normal(9, N, V, scale=2.0)),
}
SOME, OTHERS = (normal(seed, N) > -0.5 for seed in (10, 11))
EVERY = torch.ones(N, dtype=torch.bool)


def term_of(name: str, options: dict[str, object] | None = None, teacher: str = "b") -> Term:
    return Term(name, name, teacher=None if name == LABELS else teacher, options=options or {})


def rows_of(
    terms: Sequence[Term], masks: Sequence[Tensor] | None = None, how: Combination | None = None
) -> TokenTable:
    masks = [EVERY] * len(terms) if masks is None else masks
    return TokenTable(
        terms, TeacherMixture(how or Combination(), tuple(TEACHERS)), LABELS_N, masks, TEACHERS, V
    )


def found(
    rows: TokenTable, scales: Sequence[float], hidden: Tensor = HIDDEN, head: Head = HEAD, method="chunked"
) -> list[Tensor]:
    """Total, sums, and the gradients of states, weight and bias."""
    leaves = [part.clone().requires_grad_() for part in (hidden, head.weight, head.bias)]
    total, sums = projected_losses(rows, leaves[0], Head(*leaves[1:]), scales, method=method)
    total.backward()
    return [total.detach(), sums, *(leaf.grad for leaf in leaves)]


def same(one: Sequence[Tensor], other: Sequence[Tensor], atol: float = 1e-12) -> bool:
    return all(torch.allclose(a, b, rtol=1e-12, atol=atol) for a, b in zip(one, other, strict=True))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three chunks of sixteen tokens or fewer, in blocks of four."""
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 16 * V)
    monkeypatch.setattr(chunked, "BLOCK_ELEMENTS", 4 * V)


@cases
@pytest.mark.parametrize("teacher", ["b", COMBINED])
def test_chunks_equal_dense_autograd_on_a_plain_loss(
    name: str, options: dict[str, object], teacher: str
) -> None:
    rows = rows_of([term_of(name, options, teacher)])
    assert same(found(rows, [0.3]), found(rows, [0.3], method="dense"))


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_without_an_analytic_gradient_gets_autograds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of([term_of(name)], [SOME])
    expected = found(rows, [0.3])
    monkeypatch.delitem(GRADIENTS._rows, name)
    assert same(found(rows, [0.3]), expected)


def mixed_terms() -> tuple[list[Term], list[Tensor], list[float]]:
    """Every loss, against teachers alone and combined, at several temperatures, on tokens of its own."""
    soft = [name for name in NAMES if "temperature" in LOSSES.options(name)]
    terms = [Term(name, name, teacher=None if name == LABELS else "a") for name in NAMES]
    terms += [Term(f"{n}-b", n, teacher="b", options={"temperature": 1.5}) for n in soft]
    terms += [Term(f"{n}-mixed", n, teacher=COMBINED, options={"temperature": 2.0}) for n in soft]
    masks = [(SOME, OTHERS, EVERY)[i % 3] for i in range(len(terms))]
    return terms, masks, [0.1 * (i % 4) for i in range(len(terms))]


def test_many_terms_together_are_their_sum() -> None:
    terms, masks, scales = mixed_terms()
    whole = found(rows_of(terms, masks), scales)
    alone = [found(rows_of([t], [m]), [s]) for t, m, s in zip(terms, masks, scales, strict=True)]
    assert torch.allclose(whole[0], torch.stack([one[0] for one in alone]).sum())
    assert torch.allclose(whole[1], torch.cat([one[1] for one in alone]), rtol=1e-12)
    for i in (2, 3, 4):
        assert torch.allclose(whole[i], torch.stack([one[i] for one in alone]).sum(0), rtol=0, atol=1e-10)
    assert same(whole, found(rows_of(terms, masks), scales, method="dense"), atol=1e-10)


@given(size=st.integers(1, 64), block=st.integers(1, 64))
@example(size=1, block=1)  # several masks cover a chunk
@settings(deadline=None, max_examples=8)
def test_the_size_of_chunks_and_blocks_changes_nothing(size: int, block: int) -> None:
    terms, masks, scales = mixed_terms()
    expected = found(rows_of(terms, masks), scales)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "chunk_rows", lambda weight, share: size)
        patch.setattr(chunked, "BLOCK_ELEMENTS", block * V)
        assert same(found(rows_of(terms, masks), scales), expected)


@pytest.mark.parametrize("method", ["chunked", "dense"])
def test_the_order_of_tokens_changes_nothing(method: str) -> None:
    terms, masks, scales = mixed_terms()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    expected = found(rows_of(terms, masks), scales, method=method)
    shuffled = found(rows_of(terms, masks).only(order), scales, HIDDEN[order], method=method)
    expected[2] = expected[2][order]
    assert same(shuffled, expected, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["chunked", "dense"])
def test_tokens_that_do_not_count_have_no_influence_even_if_they_are_nan(
    name: str, bad: float, method: str
) -> None:
    spoilt = {
        "b": replace(TEACHERS["b"], hidden=TEACHERS["b"].hidden.masked_fill(~SOME[:, None], bad)),
        "c": Logits(TEACHERS["c"].values.masked_fill(~SOME[:, None], bad)),
    }
    labels = LABELS_N.masked_fill(~SOME, IGNORED)
    terms = [term_of(name), term_of(name, teacher="c")]
    rows = rows_of(terms, [SOME, SOME])
    expected = found(rows, [0.3, 0.2], method=method)
    rows = replace(rows, teachers=spoilt, labels=labels)
    hidden = HIDDEN.masked_fill(~SOME[:, None], bad)
    values = found(rows, [0.3, 0.2], hidden, method=method)
    assert all(torch.equal(*pair) for pair in zip(values, expected, strict=True))
    assert values[2][~SOME].abs().max() == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["chunked", "dense"])
def test_a_token_that_another_term_counts_has_no_influence_either(name: str, method: str) -> None:
    """A teacher's NaN where only the labels count."""
    spoilt = {"b": replace(TEACHERS["b"], hidden=TEACHERS["b"].hidden.masked_fill(~SOME[:, None], torch.nan))}
    terms = [Term("all", LABELS), term_of(name)]
    rows = rows_of(terms, [EVERY, SOME])
    expected = found(rows, [0.3, 0.2], method=method)
    values = found(replace(rows, teachers=spoilt), [0.3, 0.2], method=method)
    assert all(torch.equal(*pair) for pair in zip(values, expected, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["chunked", "dense"])
def test_where_no_token_counts_everything_is_zero(name: str, method: str) -> None:
    for value in found(rows_of([term_of(name)], [~EVERY]), [0.3], method=method):
        assert torch.equal(value, torch.zeros_like(value))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["chunked", "dense"])
def test_a_measured_term_has_its_sum_and_no_gradient(name: str, method: str) -> None:
    rows = rows_of([term_of(name)])
    total, sums, *grads = found(rows, [0.0], method=method)
    assert total == 0
    assert torch.allclose(sums, found(rows, [1.0])[1])
    assert all(grad.abs().sum() == 0 for grad in grads)


@pytest.mark.parametrize("method", ["chunked", "dense"])
def test_a_total_multiplied_afterwards_has_a_gradient_multiplied(method: str) -> None:
    rows = rows_of([term_of("forward_kl")])
    hidden, weight = HIDDEN.clone().requires_grad_(), HEAD.weight.clone().requires_grad_()
    total, _ = projected_losses(rows, hidden, Head(weight, HEAD.bias), [0.3], method=method)
    (total * 1024 / 4).backward()
    expected = found(rows, [0.3 * 256])
    assert torch.allclose(hidden.grad, expected[2], atol=1e-12)
    assert torch.allclose(weight.grad, expected[3], atol=1e-12)


@pytest.mark.parametrize("method", ["chunked", "dense"])
def test_the_heads_weight_gets_one_gradient_however_many_chunks_and_terms(method: str) -> None:
    terms, masks, scales = mixed_terms()
    weight, arrived = HEAD.weight.clone().requires_grad_(), []
    weight.register_post_accumulate_grad_hook(lambda parameter: arrived.append(parameter))
    hidden = HIDDEN.clone().requires_grad_()
    projected_losses(rows_of(terms, masks), hidden, Head(weight, None), scales, method=method)[0].backward()
    assert len(arrived) == 1


def test_tied_embeddings_get_the_gradient_of_both_uses() -> None:
    slopes = []
    for method in ("chunked", "dense"):
        weight = normal(1, V, 5).requires_grad_()
        hidden = functional.embedding(LABELS_N, weight).tanh()
        rows = rows_of([term_of("jensen_shannon")])
        projected_losses(rows, hidden, Head(weight, None), [0.3], method=method)[0].backward()
        slopes.append(weight.grad)
    assert torch.allclose(*slopes, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_under_bf16_autocast_gradients_stay_near_and_sum_in_float32(name: str) -> None:
    rows = rows_of([term_of(name, teacher="a")])
    exact = found(rows, [1.0])
    hidden, weight, bias = (p.float().requires_grad_() for p in (HIDDEN, HEAD.weight, HEAD.bias))
    single = replace(
        TEACHERS["a"], hidden=TEACHERS["a"].hidden.float(), head=TEACHERS["a"].head.to(torch.float32)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = replace(rows, teachers={"a": single.rows(EVERY)})
        total, _ = projected_losses(rows, hidden, Head(weight, bias), [1.0])
    total.backward()
    assert {total.dtype, weight.grad.dtype, hidden.grad.dtype} == {torch.float32}
    assert (weight.grad - exact[3]).norm() / exact[3].norm() < 0.03
    assert torch.allclose(total.double(), exact[0], rtol=0.03)


@pytest.mark.parametrize(
    "how", [Combination(), Combination("weighted", {"weights": {"a": 1, "b": 3, "c": 0}})]
)
def test_combined_teachers_are_one_target(how: Combination) -> None:
    weights = dict.fromkeys(TEACHERS, 1.0) if how.how == "mean" else how.options["weights"]
    told = {name: said.logits(slice(0, None), V) for name, said in TEACHERS.items()}
    mixed = sum(weights[n] * (told[n] / 2).softmax(-1) for n in told) / sum(weights.values())
    logits = functional.linear(HIDDEN, HEAD.weight, HEAD.bias)
    expected = forward_kl(logits, 2 * mixed.log(), temperature=2.0).sum()
    rows = rows_of([term_of("forward_kl", {"temperature": 2.0}, COMBINED)], how=how)
    assert torch.allclose(found(rows, [1.0])[0], expected, rtol=1e-12)


def test_direct_losses_on_few_outcomes_are_the_plain_sums() -> None:
    logits = normal(20, N, 3).requires_grad_()
    labels, told = LABELS_N % 3, normal(21, N, 3)
    terms = [Term("ce", LABELS), Term("kl", "forward_kl", teacher="t")]
    mixing = TeacherMixture(Combination(), ("t",))
    rows = TokenTable(terms, mixing, labels, [EVERY, SOME], {"t": Logits(told)}, 3)
    total, sums = direct_losses(rows, logits, [0.5, 2.0])
    cross = functional.cross_entropy(logits, labels, reduction="sum")
    kl = functional.kl_div(
        logits[SOME].log_softmax(-1), told[SOME].log_softmax(-1), log_target=True, reduction="sum"
    )
    assert torch.allclose(sums, torch.stack([cross, kl]))
    slope, expected = (torch.autograd.grad(value, logits)[0] for value in (total, 0.5 * cross + 2 * kl))
    assert torch.allclose(slope, expected, atol=1e-12)


def test_a_teachers_logits_are_not_written_to() -> None:
    before = TEACHERS["c"].values.clone()
    terms, masks, scales = mixed_terms()
    found(rows_of(terms, masks), scales)
    assert torch.equal(TEACHERS["c"].values, before)


def test_a_sparse_target_that_holds_everything_is_the_dense_one() -> None:
    log_probs = (TEACHERS["c"].values / 2).log_softmax(-1)
    top = log_probs.topk(V)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    sparse = TopKTail(top.indices, top.values, torch.full((N,), -torch.inf).double(), entropy, 2.0, V)
    soft = [name for name in NAMES if "temperature" in LOSSES.options(name)]
    for terms in (
        [term_of(name, {"temperature": 2.0}, "c") for name in soft],
        [term_of(name, {"temperature": 2.0}, COMBINED) for name in soft],
    ):
        rows, masks = rows_of(terms), [SOME, *[EVERY] * (len(terms) - 1)]
        rows = replace(rows, masks=masks)
        given_sparse = replace(rows, teachers={**TEACHERS, "c": sparse})
        expected = found(rows, [0.3] * len(terms))
        for method in ("chunked", "dense"):
            total, sums, *slopes = found(given_sparse, [0.3] * len(terms), method=method)
            if terms[0].teacher == COMBINED:  # logged: Σ w KL(p || q), a constant above KL(Σ w p || q)
                linear = [term.loss in SPARSE_LOSSES for term in terms]
                above = (sums - expected[1]) * torch.tensor(linear)
                assert (above[linear] > 0).all()
                total, sums = total - 0.3 * above.sum(), sums - above
            assert same([total, sums, *slopes], expected, 1e-10)


def test_a_sparse_target_at_another_temperature_is_refused() -> None:
    one = torch.zeros(N, 1, dtype=torch.int64)
    zero = torch.zeros(N).double()
    teachers = {"c": TopKTail(one, zero[:, None], zero - torch.inf, zero, 2.0, V)}
    for name in ("forward_kl", "reverse_kl"):
        for teacher in ("c", COMBINED):
            rows = replace(
                rows_of([term_of(name, {"temperature": 1.5}, teacher)]),
                teachers=teachers,
                mixing=TeacherMixture(Combination(), ("c",)),
            )
            with pytest.raises(ValueError, match="temperature 2 cannot serve"):
                found(rows, [1.0])


def test_no_tensor_of_all_logits_is_made() -> None:
    largest = 0

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own is untyped
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, (tuple, list)) else (made,):
                if isinstance(tensor, Tensor) and tensor.shape[-1:] == (V,):
                    largest = max(largest, tensor.numel())
            return made

    terms, masks, scales = mixed_terms()
    dense = {name: TEACHERS[name] for name in ("a", "b")}
    rows = replace(
        rows_of(terms, masks), teachers=dense, mixing=TeacherMixture(Combination("entropy"), tuple(dense))
    )
    with Noting():
        found(rows, scales)
    assert largest <= 16 * V
