"""Rows of a new vocabulary's embedding and head, made from those of the old one.

Shapes: V old vocabulary (padding included), V' new vocabulary, D width. Everything is computed in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from stlm_kd.errors import ModelError
from stlm_kd.models.vocabulary import is_tied, plain_embedding, vocabulary_layers
from stlm_kd.registry import Registry
from stlm_kd.vocabulary.cooccurrence import Integers, Likeness, likeness, ppmi_vectors
from stlm_kd.vocabulary.mapping import Kind, VocabularyMapping, map_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class InitContext:
    """What an initialiser may use beside the old rows and the mapping.

    Attributes:
        generator: Of what is random, on the CPU.
        likeness: Of the initialisers in ``BY_TEXT``: which shared tokens each new token is used like.
    """

    generator: torch.Generator
    likeness: Likeness | None = None


class Initialiser(Protocol):
    """Old rows (V, D), the mapping of V' tokens onto them and aids → new rows (V', D)."""

    def __call__(self, old_VD: Tensor, mapping: VocabularyMapping, aids: InitContext, /) -> Tensor:
        """New rows, fp32, on the device of the old ones."""
        ...


INITIALISERS: Registry[Initialiser] = Registry("initialiser of a vocabulary")

BY_TEXT = frozenset({"overlap"})
"""The initialisers that look at a text in the new vocabulary."""

COPYING = frozenset({"subword-mean", "overlap"})
"""The initialisers that copy the row of a token that both vocabularies have."""


@INITIALISERS.register("random")
def random(old_VD: Tensor, mapping: VocabularyMapping, aids: InitContext, /) -> Tensor:
    """Rows drawn from a normal distribution with the old rows' mean and deviation in each dimension.

    The body was trained on rows of that place and size and stays as it is; a configuration's
    ``initializer_range`` says how training began, which may be many times smaller.
    """
    used_VD = _used(old_VD, mapping)
    noise_VD = torch.randn(len(mapping), old_VD.shape[1], generator=aids.generator).to(old_VD.device)
    return used_VD.mean(0) + noise_VD * used_VD.std(0, correction=0)


@INITIALISERS.register("mean")
def mean(old_VD: Tensor, mapping: VocabularyMapping, aids: InitContext, /) -> Tensor:
    """Every row is the mean of the old rows."""
    return _used(old_VD, mapping).mean(0).repeat(len(mapping), 1)


@INITIALISERS.register("subword-mean")
def subword_mean(old_VD: Tensor, mapping: VocabularyMapping, aids: InitContext, /) -> Tensor:
    """Each row is the mean of the old rows of its pieces; of all old rows where there is no piece.

    A token that the old vocabulary holds is its own single piece, so its row is copied bit for bit.
    """
    sources = torch.from_numpy(mapping.sources).to(old_VD.device)
    offsets = torch.from_numpy(mapping.offsets[:-1]).to(old_VD.device)
    rows_VD = nn.functional.embedding_bag(sources, old_VD.float(), offsets, mode="mean")
    lost = torch.from_numpy(mapping.ids_of(Kind.FALLBACK)).to(old_VD.device)
    rows_VD[lost] = _used(old_VD, mapping).mean(0)
    return rows_VD


@INITIALISERS.register("overlap")
def overlap(old_VD: Tensor, mapping: VocabularyMapping, aids: InitContext, /) -> Tensor:
    """Rows that both vocabularies share are copied; the others are mixes of shared ones that are used alike.

    Dobler and de Melo, "FOCUS: Effective Embedding Initialization for Monolingual Specialization of
    Multilingual Models", 2023, section 2. They train fastText on the text; here tokens are compared by
    ``vocabulary.cooccurrence.ppmi_vectors`` of it. Tokens that the text hardly has are made as by
    ``subword-mean``.
    """
    assert aids.likeness is not None, "made of the text for the initialisers that need it"
    rows_VD = subword_mean(old_VD, mapping, aids)
    found, device = aids.likeness, old_VD.device
    if not len(found.ids):
        return rows_VD
    anchors_VK = torch.from_numpy(mapping.sources[mapping.offsets[found.anchors]])
    rows_VD[torch.from_numpy(found.ids).to(device)] = nn.functional.embedding_bag(
        anchors_VK.to(device),
        old_VD.float(),
        per_sample_weights=torch.from_numpy(found.weights).to(device),
        mode="sum",
    )
    return rows_VD


@dataclass(frozen=True, slots=True)
class VocabularyInit:
    """Rows for a new vocabulary, in the teacher's dtype.

    Attributes:
        embedding: Input rows, (V', D).
        head: Output rows, (V', D); None where the teacher's embedding and head are one, and of a classifier.
        head_bias: Output bias, (V',); None where the teacher has none.
        counts: Tokens by how they were found: ``exact``, ``pieces``, ``role``, ``fallback``.
        copied: Ids whose rows are copies of old rows, ascending.
    """

    embedding: Tensor
    head: Tensor | None
    head_bias: Tensor | None
    counts: Mapping[str, int]
    copied: Integers


def new_rows(
    teacher: PreTrainedModel,
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_tokenizer: PreTrainedTokenizerBase,
    init: str,
    *,
    seed: int,
    text: Callable[[], tuple[Integers, Integers]] | None = None,
) -> VocabularyInit:
    """Embedding and head of the teacher for the student's vocabulary; the teacher is left as it is.

    Special tokens get the teacher's rows of the same role whatever the initialiser. Embedding, head and bias
    are made one after the other from one generator, so equal arguments give equal rows.

    Args:
        teacher: A classifier, or a model with a linear head over its own vocabulary, which may be padded.
        teacher_tokenizer: The vocabulary that it was trained with.
        student_tokenizer: The vocabulary that it shall get.
        init: A name in ``INITIALISERS``.
        seed: Of what is random in an initialiser.
        text: For an initialiser in ``BY_TEXT``: gives documents in the student's vocabulary, one after the
            other, and where each begins, with the end of the last.

    Raises:
        ModelError: A vocabulary cannot be mapped, or the teacher has fewer rows than its tokenizer has ids.
    """
    initialise = INITIALISERS[init]
    is_classifier = teacher.get_output_embeddings() is None
    embedding = plain_embedding(teacher) if is_classifier else vocabulary_layers(teacher)[0]
    mapping = map_vocabulary(teacher_tokenizer, student_tokenizer)
    _check_rows(embedding, mapping, str(teacher.config.model_type))
    aids = InitContext(torch.Generator().manual_seed(seed), _likeness(mapping, init, text))

    def make(old_VD: Tensor, how: VocabularyMapping) -> Tensor:
        old_VD = old_VD.detach()
        rows_VD = _with_roles(initialise(old_VD.float(), how, aids), old_VD.float(), how)
        return rows_VD.to(old_VD.dtype)

    rows_VD = make(embedding.weight, mapping)
    kinds = (Kind.ROLE, Kind.EXACT) if init in COPYING else (Kind.ROLE,)
    copied = mapping.ids_of(*kinds)
    if is_classifier:
        return VocabularyInit(rows_VD, None, None, mapping.counts, copied)
    head = vocabulary_layers(teacher)[1]
    head_VD = None if is_tied(teacher) else make(head.weight, mapping.for_output())
    bias_V = None if head.bias is None else make(head.bias[:, None], mapping.for_output())[:, 0]
    return VocabularyInit(rows_VD, head_VD, bias_V, mapping.counts, copied)


def _likeness(
    mapping: VocabularyMapping, init: str, text: Callable[[], tuple[Integers, Integers]] | None
) -> Likeness | None:
    if init not in BY_TEXT:
        return None
    assert text is not None, f"{init} looks at a text"
    others = mapping.ids_of(Kind.PIECES, Kind.FALLBACK)
    return likeness(ppmi_vectors(*text(), len(mapping)), others, mapping.ids_of(Kind.EXACT))


def _with_roles(rows_VD: Tensor, old_VD: Tensor, mapping: VocabularyMapping) -> Tensor:
    ids = mapping.ids_of(Kind.ROLE)
    sources = torch.from_numpy(mapping.sources[mapping.offsets[ids]]).to(old_VD.device)
    rows_VD[torch.from_numpy(ids).to(old_VD.device)] = old_VD[sources]
    return rows_VD


def _used(old_VD: Tensor, mapping: VocabularyMapping) -> Tensor:
    """The rows that stand for a token of the old vocabulary, fp32."""
    return old_VD.float()[torch.from_numpy(mapping.teacher_ids).to(old_VD.device)]


def _check_rows(embedding: nn.Embedding, mapping: VocabularyMapping, name: str) -> None:
    needed = int(mapping.teacher_ids[-1]) + 1
    if embedding.num_embeddings < needed:
        raise ModelError(
            f"{name}: its embedding has {embedding.num_embeddings} rows, but its tokenizer has ids "
            f"up to {needed - 1}; expected the tokenizer that the model was trained with"
        )
