"""Self-distillation over another vocabulary: what is compared, and what it does to a model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.adaptation.initialisers import new_rows
from stlm_kd.adaptation.span_distillation import AlignedTokenisations, SpanTeacher
from stlm_kd.adaptation.step import SPANS, SpanStep
from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.batches import PackedRows
from stlm_kd.data.synthetic import sample_documents
from stlm_kd.data.text.store_builder import build_store
from stlm_kd.data.token_store import TokenStore
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.models.vocabulary import freeze_body, replace_vocabulary
from tests.support.pico import pico_model

Stores = dict[str, TokenStore]
CONTEXT = 24
TEXTS = [*sample_documents("train", size=4_000, seed=3), "naïve 猫 and 🐈 sat", "a"]
OWN, OTHER = (train_tokenizer(TEXTS, "bpe", size) for size in (280, 330))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenStore]:
    folder = tmp_path_factory.mktemp("stores")
    return {name: build_store(TEXTS, t, folder / name) for name, t in (("own", OWN), ("other", OTHER))}


def paired(stores: Stores, new: str, old: str, *, most_old: int = 64) -> AlignedTokenisations:
    tokenizers = {"own": OWN, "other": OTHER}
    rows = [PackedRows(stores[new], CONTEXT)]
    return AlignedTokenisations(rows, [stores[old]], tokenizers[new], tokenizers[old], most_old=most_old)


def model_of(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return pico_model("llama", vocabulary=len(tokenizer), seed=5).eval()


def whole_log_probs(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """Of each id after the first, by the model's own forward."""
    logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    return logits[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


@torch.no_grad()
def test_a_span_is_as_likely_as_its_old_tokens_after_the_old_tokens_before_it(
    stores: Stores,
) -> None:
    text, model = paired(stores, "own", "other"), model_of(OTHER)
    teacher = SpanTeacher(model, text)
    rows = torch.tensor([2, -1, 0])
    found = teacher.log_probabilities(rows)
    expected = []
    for row in rows.tolist():
        for spans in text.stretches_of(row):
            if spans.count:
                each = whole_log_probs(model, spans.old_ids.tolist())
                expected += [
                    each[torch.from_numpy(spans.of_old) == span].sum() for span in range(spans.count)
                ]
    assert len(expected) == teacher.spans(rows).count > 20
    assert torch.allclose(found, torch.stack(expected), atol=1e-4)


def test_a_teacher_with_few_positions_reads_no_more_than_it_has(stores: Stores) -> None:
    text = paired(stores, "own", "other", most_old=5)
    lengths = [len(spans.old_ids) - 1 for row in range(text.num_rows) for spans in text.stretches_of(row)]
    assert max(lengths) == 5
    assert 0 < text.share_in_spans() < paired(stores, "own", "other").share_in_spans() < 1


def test_what_is_remembered_is_what_is_said(stores: Stores) -> None:
    text = paired(stores, "own", "other")
    live, remembering = (SpanTeacher(model_of(OTHER), text) for _ in range(2))
    remembering.remember(3)
    rows = torch.tensor([3, 1, -1])
    assert torch.allclose(remembering.log_probabilities(rows), live.log_probabilities(rows), atol=1e-5)


def batch_of(stores: Stores, name: str) -> Batch:
    return PackedRows(stores[name], CONTEXT).batch([0, 1, 2, 3])


def test_the_same_vocabulary_and_rows_have_nothing_to_learn(stores: Stores) -> None:
    model = model_of(OWN)
    rows = new_rows(model, OWN, OWN, "subword-mean", seed=0)
    replace_vocabulary(model, rows.embedding, rows.head, tokenizer=OWN)
    step = SpanStep(model, SpanTeacher(model_of(OWN), paired(stores, "own", "own")), {SPANS: 1.0})
    batch = batch_of(stores, "own")
    counts = step.count(batch)
    output = step(batch, counts)
    output.loss.backward()
    assert counts[SPANS] == counts["labels"] > 50, "each token is a span"
    assert abs(float(output.sums[SPANS])) < 1e-4
    assert output.loss.item() < 1e-5


def test_both_terms_are_weighed_and_divided_by_what_they_count(stores: Stores) -> None:
    model = model_of(OWN)
    step = SpanStep(
        model, SpanTeacher(model_of(OTHER), paired(stores, "own", "other")), {SPANS: 0.5, "labels": 2.0}
    )
    batch = batch_of(stores, "own")
    output = step(batch, {SPANS: 7.0, "labels": 3.0})
    expected = 0.5 * output.sums[SPANS] / 7 + 2 * output.sums["labels"] / 3
    assert output.loss.item() == pytest.approx(float(expected), rel=1e-5)
    step.eval()
    own = step(batch, {"labels": 1.0}).sums
    assert list(own) == ["labels"]
    assert float(own["labels"]) == pytest.approx(float(output.sums["labels"]), rel=1e-5)
    assert step.count(batch) == {"labels": int((batch.labels != IGNORED).sum())}


def test_training_on_spans_brings_a_model_nearer_to_itself(stores: Stores) -> None:
    original, model = model_of(OTHER), model_of(OTHER)
    rows = new_rows(model, OTHER, OWN, "subword-mean", seed=0)
    replace_vocabulary(model, rows.embedding, rows.head, tokenizer=OWN)
    freeze_body(model)
    step = SpanStep(model, SpanTeacher(original, paired(stores, "own", "other")), {SPANS: 1.0}).train()
    trained = [weight for weight in step.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.01)
    batch, found = batch_of(stores, "own"), []
    for _ in range(30):
        output = step(batch, step.count(batch))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        found.append(output.loss.item())
    assert found[-1] < 0.5 * found[0]
    assert all(weight.grad is None for weight in original.parameters())
