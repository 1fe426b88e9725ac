"""Teachers that keep their vocabulary: distributions over the student's tokens against a slower formula.

The formula reads each beginning of a text alone, as the teacher's tokenizer splits it, and looks at all of
the teacher's tokens for those that go on from each place in it.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.data.batch import Batch
from stlm_kd.distillation.entries import batch_of
from stlm_kd.errors import ModelError
from stlm_kd.models.capabilities import check_trees
from stlm_kd.models.outputs import OutputSpec
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.translated import TranslatedTeacher
from stlm_kd.teachers.translated_targets import FLOOR
from stlm_kd.vocabulary.translation import Translation
from stlm_kd.vocabulary.trim import trim_tokenizer
from tests.support.pico import CAUSAL, pico_model
from tests.support.vocab_pico import TEXT, byte_level

HEAD = OutputSpec(head_input=True)


@pytest.fixture(scope="module")
def whole() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture(scope="module")
def trimmed(whole: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return trim_tokenizer(whole, ["the cat"], 262)


@pytest.fixture(scope="module")
def model(whole: PreTrainedTokenizerFast) -> PreTrainedModel:
    torch.manual_seed(0)
    config = pico_model(vocabulary=len(whole)).config
    config.initializer_range = 0.5
    return LlamaForCausalLM(config).eval()


def said(teacher: LiveTeacher, batch: Batch) -> Tensor:
    """Log-probabilities at the batch's tokens, (N, V)."""
    distribution = teacher(batch, HEAD).distribution
    assert distribution is not None and not isinstance(distribution, tuple)
    rows = distribution.rows(batch.attention_mask)
    assert teacher.vocabulary is not None
    return rows.logits(slice(None), teacher.vocabulary).log_softmax(-1)  # type: ignore[union-attr]


def slowly(
    text: str,
    model: PreTrainedModel,
    own: PreTrainedTokenizerFast,
    student: PreTrainedTokenizerFast,
) -> Tensor:
    """Probabilities of the student's token after each of a word's, for a student cut from the teacher's."""
    pieces = student(text)["input_ids"]
    surfaces = student.convert_ids_to_tokens(pieces)
    of_token = {
        i: [one.id for one in student.backend_tokenizer.model.tokenize(token)]
        for token, i in own.get_vocab().items()
        if i not in own.all_special_ids
    }
    ends, found = [*accumulate(map(len, surfaces), initial=0)], []
    for count in range(1, len(pieces) + 1):
        begun = "".join(surfaces[:count])
        reading = [one.id for one in own.backend_tokenizer.model.tokenize(begun)]
        with torch.no_grad():
            probs = model(torch.tensor([[0, *reading]])).logits[0].softmax(-1).double()
        boundaries = [*accumulate(map(len, own.convert_ids_to_tokens(reading)), initial=0)]
        mass, weight = torch.zeros(len(student), dtype=torch.float64), 1.0
        for place, end in enumerate(boundaries):
            if end in ends:
                read = pieces[ends.index(end) : count]
                for token, parts in of_token.items():
                    if len(parts) > len(read) and parts[: len(read)] == read:
                        mass[parts[len(read)]] += weight * probs[place, token]
                if not read:
                    mass[0] += weight * probs[place, 0]
            if place < len(reading):
                weight *= float(probs[place, reading[place]])
        found.append(mass / mass.sum())
    return torch.stack(found).float()


@settings(max_examples=12, deadline=None)
@given(word=st.text("thecatnsor", min_size=1, max_size=11))
def test_a_word_is_translated_as_by_the_slow_formula(
    word: str,
    whole: PreTrainedTokenizerFast,
    trimmed: PreTrainedTokenizerFast,
    model: PreTrainedModel,
) -> None:
    teacher = TranslatedTeacher(model, len(whole), Translation(whole, trimmed))
    batch = batch_of({"input_ids": torch.tensor([[0, *trimmed(word)["input_ids"]]])}, model)
    found = said(teacher, batch)[1:].exp()
    expected = slowly(word, model, whole, trimmed)
    torch.testing.assert_close(found, expected * (1 - FLOOR) + FLOOR / len(trimmed), rtol=1e-3, atol=1e-6)


def test_the_same_vocabulary_is_translated_to_the_same_distribution(
    whole: PreTrainedTokenizerFast, model: PreTrainedModel
) -> None:
    """Also in rows of several documents, the second of which begins within a character, and padding."""
    ids = [0, *whole("the naïve thesis 12 \n  é")["input_ids"]]
    beginning = whole("é theory")["input_ids"][1:]
    batch = two_documents(ids, beginning)
    teacher = TranslatedTeacher(model, len(whole), Translation(whole, whole))
    live = LiveTeacher(model, len(whole))
    found, expected = said(teacher, batch), said(live, batch)
    torch.testing.assert_close(found[: len(ids)], expected[: len(ids)], rtol=1e-3, atol=1e-4)
    after = batch_of({"input_ids": torch.tensor([[0, *beginning]])}, model)
    torch.testing.assert_close(found[len(ids) :], said(live, after)[1:], rtol=1e-3, atol=1e-4)


def two_documents(first: list[int], second: list[int]) -> Batch:
    """One row with two documents and padding."""
    padding = 3
    sizes = (len(first), len(second), padding)
    ids = torch.tensor([[*first, *second, *[0] * padding]])
    documents = torch.tensor([[1] * sizes[0] + [2] * sizes[1] + [0] * padding])
    positions = torch.cat([torch.arange(size) for size in sizes])[None]
    nothing = torch.full_like(ids, -100)
    return Batch(ids, documents > 0, nothing, documents, positions, torch.zeros(1, dtype=torch.int64))


def test_a_row_says_the_same_alone_and_beside_a_longer_one(
    whole: PreTrainedTokenizerFast, trimmed: PreTrainedTokenizerFast, model: PreTrainedModel
) -> None:
    teacher = TranslatedTeacher(model, len(whole), Translation(whole, trimmed))
    rows = [[0, *trimmed(text)["input_ids"]] for text in ("the other cats sat", "nothing naïve")]
    length = max(map(len, rows))
    alone = [two_documents(row, []) for row in rows]
    padded = [one.input_ids[:, : len(row)] for one, row in zip(alone, rows, strict=True)]
    together = [torch.nn.functional.pad(one, (0, length - one.shape[1])) for one in padded]
    masks = torch.tensor([[place < len(row) for place in range(length)] for row in rows])
    batch = replace(
        alone[0],
        input_ids=torch.cat(together),
        attention_mask=masks,
        labels=torch.full((2, length), -100),
        document_ids=masks.long(),
        position_ids=torch.arange(length).expand(2, -1),
        example_ids=torch.arange(2),
    )
    expected = torch.cat([said(teacher, one) for one in alone])
    torch.testing.assert_close(said(teacher, batch), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(expected.exp().sum(-1), torch.ones(len(expected)))


def test_a_token_of_the_students_own_gets_its_share_in_the_text(
    trimmed: PreTrainedTokenizerFast, whole: PreTrainedTokenizerFast
) -> None:
    """A teacher with fewer tokens than the student, whose ``the`` is none of its own."""
    rows = [(ids, [1] * len(ids)) for ids in whole(TEXT)["input_ids"]]
    unlearned, learned = Translation(trimmed, whole), Translation(trimmed, whole, rows)
    assert learned.exact_share < 1 == unlearned.exact_share
    assert learned.nodes_per_token > 1
    torch.manual_seed(0)
    teacher = pico_model(vocabulary=len(trimmed))
    ids = whole("the theatre and the cathedral")["input_ids"]
    batch = batch_of({"input_ids": torch.tensor([[0, *ids]])}, teacher)
    nats = [
        -said(TranslatedTeacher(teacher, len(trimmed), one), batch)[:-1]
        .gather(1, torch.tensor(ids)[:, None])
        .mean()
        for one in (unlearned, learned)
    ]
    assert nats[1] < nats[0]


def test_a_teacher_without_positions_for_its_tokens_says_so(
    trimmed: PreTrainedTokenizerFast, whole: PreTrainedTokenizerFast
) -> None:
    teacher = pico_model("gpt2", vocabulary=len(trimmed))
    most = teacher.config.n_positions
    ids = whole("the theatre " * most)["input_ids"][:most]
    batch = batch_of({"input_ids": torch.tensor([ids])}, pico_model(vocabulary=len(whole)))
    translated = TranslatedTeacher(teacher, len(trimmed), Translation(trimmed, whole), name="small")
    with pytest.raises(ModelError, match=r"teacher small needs .* positions .* has .*; shorten data.context"):
        translated(batch, HEAD)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_each_family_reads_trees(family: str, attention: str) -> None:
    check_trees(pico_model(family, attention=attention), name=family)
