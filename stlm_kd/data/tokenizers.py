"""Tokenizers: loaded from a folder or the Hub, or trained on text; and what training asks of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stlm_kd.data.files import expanded
from stlm_kd.errors import DataError, EnvironmentFault, ModelError

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_NUM_BYTES = 256


def load_tokenizer(name_or_folder: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or of a model on the Hub, exactly as its ``tokenizer.json`` says.

    ``transformers`` 5 rebuilds the steps of some families (Llama) from their vocabulary and then splits text
    otherwise than the file does; where there is a file, it decides, and the family's class only says which
    tokens play the special roles.

    Raises:
        EnvironmentFault: No such folder; or on the Hub, which cannot be reached, and not in its cache.
        ModelError: No tokenizer in it, one that needs its own code while that is not trusted, or one that
            the ``tokenizers`` library cannot run.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = str(expanded(name_or_folder))
    name = place if Path(place).exists() else name_or_folder
    try:
        loaded = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise EnvironmentFault(_not_there(name_or_folder)) from error
    except (ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(_unusable(name_or_folder, error)) from error
    if not isinstance(loaded, PreTrainedTokenizerFast):
        raise ModelError(
            f"{name_or_folder}: {type(loaded).__name__} found, expected a tokenizer with a tokenizer.json"
        )
    return loaded if type(loaded) is PreTrainedTokenizerFast else _as_filed(loaded, name)


def _as_filed(loaded: PreTrainedTokenizerFast, name: str) -> PreTrainedTokenizerFast:
    """The same tokenizer with the steps that its tokenizer.json holds, if it has one."""
    from huggingface_hub import try_to_load_from_cache
    from transformers import PreTrainedTokenizerFast

    local = Path(name) / "tokenizer.json"
    file = str(local) if Path(name).exists() else try_to_load_from_cache(name, "tokenizer.json")
    if not isinstance(file, str) or not Path(file).is_file():
        return loaded
    filed: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(str(Path(file).parent))
    known = filed.get_vocab()
    roles: dict[str, str | AddedToken | Sequence[str | AddedToken]] = {
        role: str(token)
        for role in _ROLES
        if (token := getattr(loaded, role)) is not None
        and getattr(filed, role) is None
        and str(token) in known
    }
    filed.add_special_tokens(roles)
    filed.name_or_path = loaded.name_or_path
    return filed


def _not_there(name: str) -> str:
    if Path(name).expanduser().is_absolute() or name.startswith("."):
        return f"{name}: no such folder; give a folder with a tokenizer.json, or an id on the Hub"
    return (
        f"{name}: no such folder here, and as an id on the Hub it cannot be reached or does not exist, nor "
        "is it in the cache; go online once, or give the path of a local copy"
    )


def _unusable(name: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"{name}: its tokenizer runs code of its own, which was not trusted; "
            "read that code, then pass --trust-remote-code"
        )
    return f"{name}: no usable tokenizer in it; expected a folder with a tokenizer.json"


def train_tokenizer(
    texts: Iterable[str], kind: Literal["bpe"] = "bpe", size: int = 8192
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of exactly ``size`` tokens, trained on texts as they come.

    Ids 0 and 1 are ``<|endoftext|>`` (bos, eos) and ``<|pad|>``, then come the 256 bytes, so every text can
    be spelt, then the merges in the order in which they were found (Sennrich et al., "Neural Machine
    Translation of Rare Words with Subword Units", 2016; on bytes as in GPT-2). The same texts give the same
    tokenizer.

    Raises:
        ModelError: ``size`` has no room for the bytes.
        DataError: The text has too few different words for so many tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    assert kind == "bpe", kind
    smallest = _NUM_BYTES + 2
    if size < smallest:
        raise ModelError(f"a tokenizer of {size} tokens: a byte-level BPE needs at least {smallest}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != size:
        raise DataError(
            f"a tokenizer of {size} tokens: the text yields only {tokenizer.get_vocab_size()}; "
            "ask for fewer tokens or give more text"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def same_vocabulary(a: PreTrainedTokenizerFast, b: PreTrainedTokenizerFast) -> bool:
    """Whether every id stands for the same token in both, so that distributions over ids can be compared."""
    vocabulary: dict[str, int] = a.get_vocab()
    return vocabulary == b.get_vocab()


def document_ends(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """The ids before and after a document: bos, or eos where there is no bos, and eos.

    Raises:
        ModelError: No eos.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        name = tokenizer.name_or_path or "the tokenizer"
        raise ModelError(
            f"{name}: no eos token, which a causal language model needs at the end of a document; "
            "set eos_token in its tokenizer_config.json"
        )
    start = tokenizer.bos_token_id
    return int(eos if start is None else start), int(eos)


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash (hex) of all that decides the ids of a document: steps, vocabulary, bos and eos.

    Truncation and padding, which every call sets anew, do not count.
    """
    steps = json.loads(tokenizer.backend_tokenizer.to_str())
    steps.pop("truncation", None)
    steps.pop("padding", None)
    content = json.dumps([steps, tokenizer.bos_token_id, tokenizer.eos_token_id], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def tokenizer_identity(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash (hex) of what ``tokenizer_hash`` counts and of every special token's role.

    Roles change no document, but they decide which rows of a model are mapped to which, and which is padding.
    """
    roles = {role: getattr(tokenizer, f"{role}_id") for role in _ROLES}
    content = json.dumps([tokenizer_hash(tokenizer), roles, sorted(tokenizer.all_special_ids)])
    return hashlib.sha256(content.encode()).hexdigest()
