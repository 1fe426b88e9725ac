"""Data sets of the Hub at their commit, by the ``datasets`` library.

Where the library cannot reach the Hub it takes any cached version, and where there is a folder of the same
name, that folder. Here it gives the commit or an error. What it prepared once is read without a request.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stlm_kd.errors import DataError, MissingResourceError, StlmKdError, first_line, foreign_errors
from stlm_kd.sharing import blobs, pins
from stlm_kd.sharing.failures import HubUnreachable, hub_errors
from stlm_kd.sharing.hub import RepoInfo, is_offline, remember_fetched, snapshots
from stlm_kd.sharing.names import HubName
from stlm_kd.sharing.snapshot import fetch

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder


def read_split(info: RepoInfo, configuration: str | None, split: str) -> Dataset:
    """One split of a data set as a memory-mapped table.

    Raises:
        MissingResourceError: As ``read_splits``.
        DataError: As ``read_splits``; or no such split, with the list of splits.
    """
    splits = read_splits(info, configuration)
    if split not in splits:
        raise DataError(f"{info.id}: no split {split!r}; it has {', '.join(sorted(splits))}")
    return splits[split]


def read_splits(info: RepoInfo, configuration: str | None) -> dict[str, Dataset]:
    """All splits of a data set, by name.

    Args:
        info: The data set at its commit.
        configuration: Its configuration; None if it has one only.

    Raises:
        HubUnreachable: Not in the cache, and the Hub does not answer.
        MissingResourceError: Refused by the Hub, or a file with another hash.
        DataError: No such configuration, with the list of configurations; or unreadable content.
    """
    from datasets.exceptions import DatasetGenerationError

    found = _prepared(info, configuration)
    if found is not None:
        check_downloads(info, Path(found.cache_dir))
    else:
        found = builder(info, configuration)
        fetch(info, _files(info, found))
    with _quiet(), hub_errors(info.pinned), _data_errors(info, DatasetGenerationError):
        found.download_and_prepare()
        splits: dict[str, Dataset] = found.as_dataset()
    remember_fetched(info)
    return splits


def is_available(name: HubName, configuration: str | None) -> bool:
    """Whether a data set can be read, as ``require`` finds."""
    try:
        require(name, configuration)
    except MissingResourceError:
        return False
    return True


def require(name: HubName, configuration: str | None, *, as_table: bool = True) -> None:
    """Check that a data set can be read: it is prepared in the cache, or the Hub answers for it.

    Args:
        name: The data set.
        configuration: Its configuration.
        as_table: Whether what is prepared is enough.

    Raises:
        HubUnreachable: Neither.
        MissingResourceError: Refused by the Hub.
    """
    here = pins.current()
    info = here.resolve(name)
    if not as_table or _prepared(info, configuration) is None:
        _require_hub(info, configuration)
        here.require_answer(info)


def _require_hub(info: RepoInfo, configuration: str | None) -> None:
    if pins.current().failure or is_offline():
        name = f" (configuration {configuration})" if configuration else ""
        raise HubUnreachable(
            f"{info.pinned}{name}: not in the cache, and the Hub cannot be reached; run this command "
            "online once, or give the path of a copy"
        )


def prepared(info: RepoInfo) -> dict[str, str]:
    """The configurations of which the library keeps tables at this commit, with their versions."""
    from datasets import config, naming

    owner, _, name = info.id.rpartition("/")
    folder = "___".join(part for part in (owner, naming.camelcase_to_snakecase(name)) if part)
    found = (Path(config.HF_DATASETS_CACHE) / folder).glob(f"*/*/{info.commit}/dataset_info.json")
    return {path.parts[-4]: path.parts[-3] for path in found}


def prepared_by(info: RepoInfo, configuration: str | None) -> str | None:
    """The library's reader that made its table of this configuration, which is read without a request.

    None if there is no table.
    """
    found = _prepared(info, configuration)
    return None if found is None else found.info.builder_name or ""


def builder(info: RepoInfo, configuration: str | None) -> DatasetBuilder:
    """The library's builder of a data set at its commit, which knows its files and has fetched none.

    Raises:
        HubUnreachable: Not in the cache, and the Hub does not answer.
        MissingResourceError: Refused by the Hub.
        DataError: No such configuration; the message lists them.
    """
    from datasets import load_dataset_builder

    _require_hub(info, configuration)
    # The library hides why it was refused, so its first file is fetched here.
    fetch(info, [name for name in ("README.md", ".gitattributes") if name in (info.files or {})][:1])
    card(info)
    is_hidden = Path(info.id).exists()  # by a folder that the library would read
    place = f"hf://datasets/{info.id}" if is_hidden else info.id
    with _quiet(), hub_errors(info.pinned), _data_errors(info):
        try:
            found: DatasetBuilder = load_dataset_builder(place, configuration, revision=info.commit)
        except FileNotFoundError as error:
            if not is_hidden:
                raise
            raise MissingResourceError(
                f"{info.id}: {Path(info.id).absolute()} hides it from this release of the datasets library; "
                "update datasets, or run the command in another folder"
            ) from error
    if found.hash != info.commit:
        raise HubUnreachable(
            f"{info.pinned}: the datasets library offers {found.hash} in its place, as it does when the Hub "
            "fails; run the command again"
        )
    return found


def _prepared(info: RepoInfo, configuration: str | None) -> DatasetBuilder | None:
    """The builder of what the library prepared at this commit; None if it did not."""
    from datasets.packaged_modules.cache.cache import Cache

    versions = prepared(info)
    chosen = configuration or ("default" if "default" in versions else _only(versions, info))
    if chosen is None or chosen not in versions:
        return None
    with _quiet():
        return Cache(
            dataset_name=info.id.rpartition("/")[2],
            repo_id=info.id,
            config_name=chosen,
            version=versions[chosen],
            hash=info.commit,
        )


def _only(names: Collection[str], info: RepoInfo) -> str | None:
    """The only configuration that was prepared, if the data set has no others."""
    configs = card(info).get("configs")
    others = isinstance(configs, list) and len(configs) > 1
    return next(iter(names)) if len(names) == 1 and not others else None


def card(info: RepoInfo) -> Mapping[str, Any]:
    """The metadata of a data set's card in the cache; none without one. DataError if it is malformed."""
    from huggingface_hub import DatasetCard

    readme = snapshots(info.pinned) / info.commit / "README.md"
    if not readme.is_file():
        return {}

    def as_ours(error: BaseException) -> StlmKdError:
        return DataError(
            f"{info.pinned}: README.md has malformed metadata ({first_line(error)}); name another revision "
            "of the data set, or give the path of a copy"
        )

    with foreign_errors(as_ours):
        found: dict[str, Any] = DatasetCard.load(readme).data.to_dict()
    return found


def _files(info: RepoInfo, found: DatasetBuilder) -> list[str]:
    """The files of a configuration, by their paths in the repository."""
    prefix = f"hf://datasets/{info.id}@{info.commit}/"
    urls = (str(url) for split in (found.config.data_files or {}).values() for url in split)
    return [url.removeprefix(prefix) for url in urls if url.startswith(prefix)]


def check_downloads(info: RepoInfo, prepared: Path | None = None) -> None:
    """Check the files of a data set that are in the cache, and name the table that was made from them.

    Raises:
        MissingResourceError: One has another hash.
    """
    folder = snapshots(info.pinned) / info.commit
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        try:
            blobs.check(info.pinned, name, file, (info.files or {}).get(name))
        except MissingResourceError as error:
            if not file.is_file():  # removed meanwhile, as a wrong one that was fetched ahead is
                continue
            if prepared is None:
                raise
            raise MissingResourceError(f"{error}; delete {prepared} too, which was made from it") from error


@contextmanager
def _data_errors(info: RepoInfo, *kinds: type[Exception]) -> Iterator[None]:
    """Raise what the library says of the content as our error; its errors about the Hub go on."""
    expected: tuple[type[Exception], ...] = (ValueError, RuntimeError, TypeError, LookupError, *kinds)
    try:
        yield
    except expected as error:
        names = re.search(r"\[(.*)\]", str(error))
        if "onfig" in str(error) and names:
            listed = names[1].replace("'", "")
            asked = re.search(r"'(\S+)' not found", str(error))
            found = f"no configuration {asked[1]!r}" if asked else "a configuration must be named (name)"
            raise DataError(f"{info.id}: {found}; it has {listed}") from error
        raise DataError(f"{info.pinned}: {first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's warnings on which version it takes, since it is the one that was asked for."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
