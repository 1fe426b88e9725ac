"""Initialise embedding and head of a new vocabulary from those of the old one.

Shapes: V old vocabulary (padding included), V' new vocabulary, D width. All computations are in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stlm_kd.errors import ModelError
from stlm_kd.lazy import functional, nn, torch
from stlm_kd.models.vocabulary import is_tied, plain_embedding, vocabulary_layers
from stlm_kd.registry import Extension, Registry, registering
from stlm_kd.vocabulary.cooccurrence import Integers, Likeness, likeness, ppmi_vectors
from stlm_kd.vocabulary.mapping import Kind, VocabularyMapping, map_vocabulary

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class InitContext:
    """Inputs of an initialiser besides the old rows and the mapping.

    Attributes:
        generator: Random generator on the CPU.
        likeness: For initialisers with ``needs_text``: similarity of each new token to shared tokens.
    """

    generator: torch.Generator
    likeness: Likeness | None = None


@dataclass(frozen=True, eq=False)
class Initialiser(Extension):
    """An initialiser: ``initialiser(old_VD, mapping, context, /)`` → new rows (V', D) in fp32.

    Attributes:
        needs_text: Whether it needs ``context.likeness``, computed from a text in the new vocabulary.
        copies: Whether it copies the rows of tokens in both vocabularies.
    """

    needs_text: bool = False
    copies: bool = False


def _fault(found: Any, arguments: tuple[Any, ...]) -> str | None:
    """What is wrong with the rows of an initialiser."""
    expected = (len(arguments[1]), arguments[0].shape[1])
    if isinstance(found, torch.Tensor) and found.shape == expected:
        return None
    shape = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
    return f"{shape} found; expected a row for each token of the new vocabulary, shape {expected}"


INITIALISERS: Registry[Initialiser] = Registry(
    "initialiser of a vocabulary", 3, has_options=False, fault=_fault
)

AUTO = "auto"
"""In recipes: the initialiser with the lowest loss on held-out data."""

register_initialiser = registering(
    INITIALISERS,
    Initialiser,
    """Register a function ``initialiser(old_VD, mapping, context, /)`` of a teacher's new embedding and head.

    ``old_VD`` are the old rows in fp32, shape (V, D), ``mapping`` gives the old tokens of each new token
    (``VocabularyMapping``), and ``context`` is an ``InitContext`` with a random generator. The function
    returns the rows of the new vocabulary, shape (V', D), in fp32 on the same device, without changing the
    old ones. It has no options. It is called for the embedding, an untied head, and its bias as (V, 1).
    Recipes name it in ``adapt: {init: NAME}``.

    >>> @register_initialiser("zeros")
    ... def zeros(old_VD, mapping, context, /):
    ...     return old_VD.new_zeros(len(mapping), old_VD.shape[1])
    >>> INITIALISERS["zeros"].copies
    False
    """,
)


@register_initialiser("random")
def random(old_VD: Tensor, mapping: VocabularyMapping, aids: InitContext, /) -> Tensor:
    """Rows drawn from a normal distribution with the old rows' mean and deviation per dimension.

    The unchanged body was trained on rows of this mean and scale; a configuration's ``initializer_range`` is
    the scale before training and may be many times smaller.
    """
    used_VD = _used(old_VD, mapping)
    noise_VD = torch.randn(len(mapping), old_VD.shape[1], generator=aids.generator).to(old_VD.device)
    return used_VD.mean(0) + noise_VD * used_VD.std(0, correction=0)


@register_initialiser("mean")
def mean(old_VD: Tensor, mapping: VocabularyMapping, aids: InitContext, /) -> Tensor:
    """Every row is the mean of the old rows."""
    return _used(old_VD, mapping).mean(0).repeat(len(mapping), 1)


@register_initialiser("subword-mean", copies=True)
def subword_mean(old_VD: Tensor, mapping: VocabularyMapping, aids: InitContext, /) -> Tensor:
    """Each row is the mean of the old rows of its pieces, or of all old rows if it has none.

    A token of the old vocabulary is its own single piece, so its row is copied exactly.
    """
    sources = torch.from_numpy(mapping.sources).to(old_VD.device)
    offsets = torch.from_numpy(mapping.offsets[:-1]).to(old_VD.device)
    rows_VD = functional.embedding_bag(sources, old_VD.float(), offsets, mode="mean")
    lost = torch.from_numpy(mapping.ids_of(Kind.FALLBACK)).to(old_VD.device)
    rows_VD[lost] = _used(old_VD, mapping).mean(0)
    return rows_VD


@register_initialiser("overlap", needs_text=True, copies=True)
def overlap(old_VD: Tensor, mapping: VocabularyMapping, aids: InitContext, /) -> Tensor:
    """Copy the rows of shared tokens; other rows are weighted sums of similar shared tokens.

    Dobler and de Melo, "FOCUS: Effective Embedding Initialization for Monolingual Specialization of
    Multilingual Models", 2023, section 2. They train fastText on the text; here similarity comes from
    ``vocabulary.cooccurrence.ppmi_vectors`` of the text. Tokens that are too rare in the text are initialised
    as by ``subword-mean``.
    """
    assert aids.likeness is not None, "computed for initialisers with needs_text"
    rows_VD = subword_mean(old_VD, mapping, aids)
    found, device = aids.likeness, old_VD.device
    if not len(found.ids):
        return rows_VD
    anchors_VK = torch.from_numpy(mapping.sources[mapping.offsets[found.anchors]])
    rows_VD[torch.from_numpy(found.ids).to(device)] = functional.embedding_bag(
        anchors_VK.to(device),
        old_VD.float(),
        per_sample_weights=torch.from_numpy(found.weights).to(device),
        mode="sum",
    )
    return rows_VD


@dataclass(frozen=True, slots=True)
class VocabularyInit:
    """Initial rows of a new vocabulary, in the teacher's dtype: embedding and head (V', D), bias (V',).

    ``head`` is None for a tied model and a classifier, ``head_bias`` if the teacher has none. ``counts`` are
    the tokens by kind of mapping (``exact``, ``pieces``, ``role``, ``fallback``); ``copied`` are the ids
    whose rows are copies of old rows, ascending.
    """

    embedding: Tensor
    head: Tensor | None
    head_bias: Tensor | None
    counts: Mapping[str, int]
    copied: Integers

    @property
    def is_exact(self) -> bool:
        """Whether the teacher has a row of its own for every token."""
        return len(self.copied) == len(self.embedding)


def new_rows(
    teacher: PreTrainedModel,
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_tokenizer: PreTrainedTokenizerBase,
    init: str,
    *,
    seed: int,
    text: Callable[[], tuple[Integers, Integers]] | None = None,
) -> VocabularyInit:
    """Initialise the teacher's embedding and head for the student's vocabulary; the teacher is unchanged.

    The teacher is a classifier, or a model with a linear head over its own, possibly padded vocabulary.
    Special tokens get its rows of the same role with every initialiser. Embedding, head and bias are computed
    in this order from one generator, so the result is deterministic.

    An initialiser with ``needs_text`` calls ``text`` for concatenated documents in the student's vocabulary,
    and their start offsets with the end of the last.

    Raises ModelError if a vocabulary cannot be mapped, or the teacher has fewer rows than its tokenizer has
    ids.
    """
    is_classifier = teacher.get_output_embeddings() is None
    embedding = plain_embedding(teacher) if is_classifier else vocabulary_layers(teacher)[0]
    mapping = map_vocabulary(teacher_tokenizer, student_tokenizer)
    _check_rows(embedding, mapping, str(teacher.config.model_type))
    initialise = INITIALISERS[init]
    aids = InitContext(torch.Generator().manual_seed(seed), _likeness(mapping, init, text))

    def make(old_VD: Tensor, how: VocabularyMapping) -> Tensor:
        old_VD = old_VD.detach()
        rows_VD = _with_roles(initialise(old_VD.float(), how, aids), old_VD.float(), how)
        return rows_VD.to(old_VD.dtype)

    rows_VD = make(embedding.weight, mapping)
    kinds = (Kind.ROLE, Kind.EXACT) if initialise.copies else (Kind.ROLE,)
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
    if not INITIALISERS[init].needs_text:
        return None
    assert text is not None, f"{init} needs a text"
    others = mapping.ids_of(Kind.PIECES, Kind.FALLBACK)
    return likeness(ppmi_vectors(*text(), len(mapping)), others, mapping.ids_of(Kind.EXACT))


def _with_roles(rows_VD: Tensor, old_VD: Tensor, mapping: VocabularyMapping) -> Tensor:
    ids = mapping.ids_of(Kind.ROLE)
    sources = torch.from_numpy(mapping.sources[mapping.offsets[ids]]).to(old_VD.device)
    rows_VD[torch.from_numpy(ids).to(old_VD.device)] = old_VD[sources]
    return rows_VD


def _used(old_VD: Tensor, mapping: VocabularyMapping) -> Tensor:
    """The old rows without padding, fp32."""
    return old_VD.float()[torch.from_numpy(mapping.teacher_ids).to(old_VD.device)]


def _check_rows(embedding: nn.Embedding, mapping: VocabularyMapping, name: str) -> None:
    needed = int(mapping.teacher_ids[-1]) + 1
    if embedding.num_embeddings < needed:
        raise ModelError(
            f"{name}: its embedding has {embedding.num_embeddings} rows, but its tokenizer has ids "
            f"up to {needed - 1}; expected the tokenizer that the model was trained with"
        )
