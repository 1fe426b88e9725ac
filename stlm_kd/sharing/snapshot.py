"""Files of a repository at a commit, fetched into the Hub's cache and checked.

A model's folder holds what ``from_pretrained`` reads, so loading it sends no request. Weights are safetensors
only: neither pickles nor the conversions that services offer in pull requests are read.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath

from stlm_kd.artifacts.atomic import read_json
from stlm_kd.errors import MissingResourceError, ModelError, listed
from stlm_kd.notes import note
from stlm_kd.sharing import blobs
from stlm_kd.sharing.failures import HubUnreachable, fetch_options, hub_errors
from stlm_kd.sharing.hub import RepoInfo, remember_fetched, snapshots

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_SETTINGS = {".json", ".txt", ".model", ".jinja", ".tiktoken"}
"""Suffixes of configurations, tokenizers and chat templates."""

_NOT_READ = {INDEX, "adapter_config.json", "trainer_state.json", "LICENSE.txt"}
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack"}
_ANNOUNCED_BYTES = 50_000_000
_SEPARATE_FILES = 8


def model_folder(info: RepoInfo, *, weights: bool = True, code: bool = False, offline: bool = False) -> Path:
    """A local folder with a model's configuration, tokenizer and weights at its commit.

    Args:
        info: The model at its commit.
        weights: Whether the weights are needed.
        code: Whether the model's own Python code may be fetched, because the user trusts it.
        offline: Whether only the cache is used.

    Raises:
        HubUnreachable: Files are not in the cache, and the Hub does not answer.
        MissingResourceError: Refused by the Hub, or a file with another hash.
        ModelError: No safetensors weights, an index that names other files, or code of another repository.
    """
    if info.files is None:
        folder = _cached_folder(info, weights=weights)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    else:
        names = [*info.files]
    wanted = [name for name in names if _is_setting(name) or (code and name.endswith(".py"))]
    if weights:
        wanted += _weights(info, names, offline=offline)
        wanted += [INDEX] * (WEIGHTS not in names)
    if not wanted:
        fault = _only_gguf(info, names) or "neither config.json nor a tokenizer in the repository"
        raise ModelError(f"{info.pinned}: {fault}")
    fetch(info, wanted, offline=offline)
    folder = snapshots(info.pinned) / info.commit
    if code:
        _refuse_foreign_code(info, folder)
    remember_fetched(info)
    return folder


def fetch(info: RepoInfo, names: Iterable[str], *, offline: bool = False) -> list[Path]:
    """Files of a repository at its commit, downloaded unless they are cached, and checked.

    Raises:
        HubUnreachable: Not in the cache, and the Hub does not answer.
        MissingResourceError: Refused by the Hub, not in the repository, or with another hash.
    """
    from huggingface_hub import hf_hub_download

    names = sorted(set(names))
    missing = [name for name in names if not (snapshots(info.pinned) / info.commit / name).exists()]
    size = size_of(info, missing)
    if size > _ANNOUNCED_BYTES and not offline:
        note(f"{info.pinned}: fetching {len(missing)} files, {size / 1e6:,.0f} MB")
    one = partial(
        hf_hub_download, info.id, repo_type=info.kind, revision=info.commit, local_files_only=offline
    )
    with hub_errors(info.pinned):
        if len(names) == 1:  # threads of a pool keep a command from ending
            files = [Path(one(names[0]))]
        else:
            with ThreadPoolExecutor(_SEPARATE_FILES) as pool:
                files = [Path(path) for path in pool.map(one, names)]
    for name, file in zip(names, files, strict=True):
        if info.files is not None and name not in info.files:
            raise MissingResourceError(
                f"{info.pinned}: {name} is not one of the files of this commit, as they are known; check "
                "HF_ENDPOINT, and lock the recipe again if it was locked"
            )
        blobs.check(info.pinned, name, file, None if info.files is None else info.files[name])
    return files


def size_of(info: RepoInfo, names: Iterable[str]) -> int:
    """Bytes of files, as far as they are known before they are fetched."""
    known = info.files or {}
    return sum(known[name].size for name in names if name in known)


def _is_setting(name: str) -> bool:
    path = PurePosixPath(name)
    if path.parts[:-1] == ("additional_chat_templates",):
        return path.suffix == ".jinja"
    return len(path.parts) == 1 and path.suffix in _SETTINGS and name not in _NOT_READ and name[0] != "."


def _weights(info: RepoInfo, names: list[str], *, offline: bool) -> list[str]:
    """The safetensors files of a model.

    Raises:
        ModelError: There are none, or the index is unreadable or names other files.
    """
    if WEIGHTS in names:
        return [WEIGHTS]
    if INDEX not in names:
        raise ModelError(f"{info.pinned}: {_no_weights(info, names)}")
    (index,) = fetch(info, [INDEX], offline=offline)
    try:
        parts = sorted(set(read_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{info.pinned}: {INDEX} is not an index of weights ({error})") from error
    for part in parts:
        if not re.fullmatch(r"[\w.-]+\.safetensors", str(part)):
            raise ModelError(
                f"{info.pinned}: {INDEX} names {part!r}; only safetensors weights are read, never pickles"
            )
        if info.files is not None and part not in names:
            raise ModelError(f"{info.pinned}: {INDEX} names {part}, which is not in the repository")
    return parts


def _no_weights(info: RepoInfo, names: list[str]) -> str:
    pickled = sorted(name for name in names if PurePosixPath(name).suffix in _PICKLED)
    if pickled:
        return (
            f"pickled weights only ({pickled[0]}); only safetensors weights are read, never pickles or a "
            "service's conversion; convert what you trust by transformers: "
            "model.save_pretrained(FOLDER, safe_serialization=True), and give that folder"
        )
    if only_gguf := _only_gguf(info, names):
        return only_gguf
    others = sorted(name for name in names if name.endswith(".safetensors"))
    found = f"; found: {', '.join(others[:3])}" if others else ""
    return f"no {WEIGHTS} in the repository{found}; expected the weights of a transformers model"


def _only_gguf(info: RepoInfo, names: list[str]) -> str:
    """What to do with a repository of GGUF files, which are read from this machine only; "" for others."""
    files = sorted(name for name in names if name.lower().endswith(".gguf"))
    if not files:
        return ""
    more = f" and {len(files) - 8} more" if len(files) > 8 else ""
    return (
        f"no {WEIGHTS} in the repository, but GGUF files ({listed(files[:8])}{more}), which are read from "
        f"this machine; fetch one and give its path: hf download {info.id} {shlex.quote(files[0])} "
        f"--revision {info.commit} --local-dir FOLDER"
    )


def _cached_folder(info: RepoInfo, *, weights: bool) -> Path:
    """The folder of a commit whose list of files is not known, if it is complete as far as can be told."""
    folder = snapshots(info.pinned) / info.commit
    needed = [("config.json",), (WEIGHTS, INDEX)] if weights else [("config.json", "tokenizer.json")]
    absent = [names[0] for names in needed if not any((folder / name).exists() for name in names)]
    if absent:
        raise HubUnreachable(
            f"{info.pinned}: {absent[0]} is not in the cache, and the Hub cannot be reached; go online once "
            f"(hf download {info.id}{fetch_options(info.pinned)}), or give a folder"
        )
    return folder


def _refuse_foreign_code(info: RepoInfo, folder: Path) -> None:
    """Code that a configuration takes from another repository would be that of its main branch."""
    for file in sorted(folder.glob("*config.json")):
        try:
            foreign = re.search(r'"([\w.-]+/[\w.-]+)--[\w.]+"', file.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if foreign:
            raise ModelError(
                f"{info.pinned}: {file.name} takes code from {foreign[1]} at no fixed commit; put both into "
                "one folder, remove the prefix from its auto_map, and give that folder"
            )
