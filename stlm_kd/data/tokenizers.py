"""Tokenizers: loading from a folder or the Hub, training on text, document start and end tokens, hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from stlm_kd.errors import DataError, MissingResourceError, ModelError, first_line, foreign_errors
from stlm_kd.notes import note
from stlm_kd.sharing.names import expanded, hub_name_or_path
from stlm_kd.sharing.pins import local_folder

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
START, END, MASK = "<|start|>", "<|end|>", "<|mask|>"
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_NUM_BYTES = 256
LARGEST_SIZE = 1_000_000
"""Maximum number of tokens of a trained tokenizer; the tokenizers library ends the process at 10⁹."""
_LARGEST_FILE, _LARGEST_ID = 2**28, 10_000_000
Learn: TypeAlias = "Callable[[PreTrainedTokenizerFast, Iterable[str], int], Sequence[tuple[str, str]]]"
_TRIAL = ["The cat, 42.", " naïve\n日本"]


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a folder or of a model on the Hub, exactly as its ``tokenizer.json`` defines it.

    ``transformers`` 5 rebuilds the steps of some families (Llama) from their vocabulary and then splits text
    differently from the file. Where there is a file, it takes precedence; the family's class only defines
    the roles of special tokens.

    Raises:
        MissingResourceError: No such folder, or the Hub and its cache do not have it.
        ModelError: No tokenizer found, one that needs untrusted custom code, or one that the ``tokenizers``
            library cannot run.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = local_folder(name, weights=False, code=trust_remote_code)
    if not folder.is_dir():
        found = "a file; expected" if folder.is_file() else "no such folder; give"
        raise MissingResourceError(f"{name}: {found} a folder with a tokenizer.json, or an id on the Hub")
    file = folder / "tokenizer.json"
    with (
        _warnings_silenced(),
        foreign_errors(lambda error: ModelError(_unusable(name, error, file)), is_quiet=True),
    ):
        if file.is_file():
            _check_limits(file)
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)  # nosec B615  # a folder
        if not isinstance(loaded, PreTrainedTokenizerFast):
            kind = type(loaded).__name__
            raise ModelError(f"{name}: {kind} found, expected a tokenizer with a tokenizer.json")
        if type(loaded) is not PreTrainedTokenizerFast and file.is_file():
            loaded = _with_file_steps(loaded, folder)
        loaded(_TRIAL, verbose=False)
        if getattr(loaded.backend_tokenizer.model, "dropout", None):
            loaded.backend_tokenizer.model.dropout = None
            note(f"{file}: splits tokens at random (dropout); here it always gives the same tokens")
    loaded.name_or_path = name if hub_name_or_path(name) is not None else str(expanded(name))
    return loaded


@contextmanager
def _warnings_silenced() -> Iterator[None]:
    """Keep transformers from printing what a configuration says, escapes included."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_limits(file: Path) -> None:
    """Refuse a tokenizer.json that the tokenizers library would read for minutes: in size, or by its ids."""
    if (size := file.stat().st_size) > _LARGEST_FILE:
        raise ModelError(f"{file}: {size:,} bytes found; expected at most {_LARGEST_FILE:,}; fetch it again")
    try:
        vocabulary = json.loads(file.read_bytes())["model"]["vocab"]
        largest = max((found for found in vocabulary.values() if isinstance(found, int)), default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return  # a list, in which places are ids; or what the library refuses
    if largest > _LARGEST_ID:
        raise ModelError(f"{file}: id {largest:,} found; expected at most {_LARGEST_ID:,}; fetch it again")


def _with_file_steps(loaded: PreTrainedTokenizerFast, folder: Path) -> PreTrainedTokenizerFast:
    """The same tokenizer with the steps of its tokenizer.json."""
    from transformers import PreTrainedTokenizerFast

    filed: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(str(folder))  # nosec B615
    known = filed.get_vocab()
    roles: dict[str, str | AddedToken | Sequence[str | AddedToken]] = {
        role: str(token)
        for role in _ROLES
        if (token := getattr(loaded, role)) is not None
        and getattr(filed, role) is None
        and str(token) in known
    }
    filed.add_special_tokens(roles)
    return filed


def _unusable(name: str, error: BaseException, file: Path) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"{name}: its tokenizer runs custom code, which is not trusted; "
            "read that code, then pass --trust-remote-code"
        )
    if not file.is_file():
        return f"{name}: no usable tokenizer in it; expected a folder with a tokenizer.json"
    from tokenizers import Tokenizer

    def of_file(fault: BaseException) -> ModelError:
        why = first_line(fault)
        return ModelError(f"{file}: cannot be read as a tokenizer ({why}); fetch or copy it again")

    try:
        with foreign_errors(of_file, is_quiet=True):
            Tokenizer.from_file(str(file)).encode_batch(_TRIAL)
    except ModelError as fault:
        return str(fault)
    reason = f"{type(error).__name__}: {first_line(error)}"
    return f"{name}: the tokenizer cannot be loaded ({reason}); check its tokenizer_config.json"


def smallest_size(*, masked: bool) -> int:
    """The fewest tokens that a trained tokenizer can have: the special ones and the bytes."""
    return _NUM_BYTES + len(set(roles_of_trained(masked).values()))


def train_tokenizer(
    texts: Iterable[str],
    kind: Literal["bpe"] = "bpe",
    size: int = 8192,
    *,
    masked: bool = False,
    place: str = "size",
    learn: Learn | None = None,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of exactly ``size`` tokens on a stream of texts.

    The special tokens come first, then the 256 bytes, so every text can be encoded, then the merges in the
    order of training (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016;
    on bytes as in GPT-2). The same texts give the same tokenizer.

    Args:
        texts: Read once.
        kind: The tokenizer's algorithm.
        size: Vocabulary size, special tokens included.
        masked: For a causal model, ids 0 and 1 are ``<|endoftext|>`` (bos, eos) and ``<|pad|>``. For a masked
            one, ids 0 to 3 are ``<|start|>`` (cls), ``<|end|>`` (sep), ``<|pad|>`` and ``<|mask|>``, and the
            tokenizer adds start and end to a text by default.
        place: The name of the size in messages.
        learn: Learns the merges from the tokenizer without any, the texts and the number of tokens to make;
            default: the most frequent pairs.

    Raises:
        ModelError: ``size`` has no room for the bytes.
        DataError: The text has too few different words for so many tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    assert kind == "bpe", kind
    special = roles_of_trained(masked)
    if size < (smallest := smallest_size(masked=masked)):
        raise ModelError(
            f"{place}: {size} found; expected at least {smallest}: the special tokens and 256 bytes"
        )
    if size > LARGEST_SIZE:
        raise ModelError(f"{place}: {size:,} found; expected at most {LARGEST_SIZE:,} tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size if learn is None else smallest,
        special_tokens=list(dict.fromkeys(special.values())),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts if learn is None else (), trainer)
    if learn is not None:
        base = _with_roles(tokenizer, special, masked=masked)
        tokenizer.model = _with_merges(base, learn(base, texts, size - smallest))
    if tokenizer.get_vocab_size() != size:
        raise DataError(
            f"{place}: {size} found, but the text yields only {tokenizer.get_vocab_size()} tokens; "
            "set a smaller size or give more text"
        )
    return _with_roles(tokenizer, special, masked=masked)


def _with_merges(base: PreTrainedTokenizerFast, merges: Sequence[tuple[str, str]]) -> BPE:
    """A model of a tokenizer's tokens and those that the merges make, in their order."""
    from tokenizers import models

    ids: dict[str, int] = base.get_vocab()
    for first, second in merges:
        ids.setdefault(first + second, len(ids))
    return models.BPE(ids, list(merges))


def _with_roles(
    tokenizer: Tokenizer, special: dict[str, str | AddedToken], *, masked: bool
) -> PreTrainedTokenizerFast:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if not masked:
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        pair=f"{START} $A {END} $B {END}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        # Not every masked model accepts token_type_ids.
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **special,
    )


def roles_of_trained(masked: bool) -> dict[str, str | AddedToken]:
    """The special tokens of a trained tokenizer by role, in the order of their ids from 0."""
    if not masked:
        return {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PAD}
    from tokenizers import AddedToken

    # It absorbs the space before it, as when ids are masked in training.
    mask = AddedToken(MASK, lstrip=True, normalized=False, special=True)
    return {"cls_token": START, "sep_token": END, "pad_token": PAD, "mask_token": mask}


def same_vocabulary(a: PreTrainedTokenizerFast, b: PreTrainedTokenizerFast) -> bool:
    """Whether both have the same token at every id, so distributions over ids can be compared."""
    vocabulary: dict[str, int] = a.get_vocab()
    return vocabulary == b.get_vocab()


def document_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The start and end ids of a document.

    The start is bos, or cls without bos; the end is eos, or sep without eos. Without bos and cls, the end id
    is also the start.

    Raises:
        ModelError: Neither eos nor sep.
    """
    start, end = _named_ends(tokenizer)
    if end is None:
        name = tokenizer.name_or_path or "the tokenizer"
        raise ModelError(
            f"{name}: no eos token and no sep token, one of which has to end every document; "
            "set eos_token (sep_token for a masked language model) in its tokenizer_config.json"
        )
    return end if start is None else start, end


def ids_from_start(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text as the beginning of a document, as in the training of causal models.

    The start token comes first. Nothing else of the tokenizer's template is added: the end of a text to
    continue or score is not the end of a document.

    Raises:
        ModelError: As ``document_ends``.
    """
    start, _ = document_ends(tokenizer)
    if not texts:
        return []
    with encoding_errors(tokenizer):
        rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [[start, *row] for row in rows]


@contextmanager
def encoding_errors(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Raise a failure or panic of a tokenizer on a text as ModelError with the tokenizer's name."""

    def as_ours(error: BaseException) -> ModelError:
        name = tokenizer.name_or_path or "the tokenizer"
        return ModelError(
            f"{name}: its tokenizer fails on a text ({first_line(error)}); correct the regular expressions "
            "and the model in its tokenizer.json, or use another tokenizer"
        )

    with foreign_errors(as_ours, is_quiet=True):
        yield


def _named_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return (
        tokenizer.cls_token_id if start is None else start,
        tokenizer.sep_token_id if end is None else end,
    )


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash (hex) of everything that determines a document's ids: steps, vocabulary, start and end ids.

    This includes whether special tokens in a text are split, but not truncation and padding, which every
    call sets.
    """
    steps = json.loads(tokenizer.backend_tokenizer.to_str())
    steps.pop("truncation", None)
    steps.pop("padding", None)
    facts = [steps, *_named_ends(tokenizer)]
    if tokenizer.split_special_tokens:
        facts.append("special tokens are split")
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def tokenizer_identity(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash (hex) of ``tokenizer_hash`` and of every special token's role.

    Roles change no document, but they determine which rows of a model are mapped to which, and the padding.
    """
    roles = {role: getattr(tokenizer, f"{role}_id") for role in _ROLES}
    content = json.dumps([tokenizer_hash(tokenizer), roles, sorted(tokenizer.all_special_ids)])
    return hashlib.sha256(content.encode()).hexdigest()
