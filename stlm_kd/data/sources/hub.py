"""The source ``hub``: data sets of the Hugging Face Hub; what is cached, and whether the Hub is reachable."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from stlm_kd.data.sources.files import Text, first_line
from stlm_kd.data.sources.sources import register_data_source
from stlm_kd.data.sources.tables import Row, column_texts, dataset_rows
from stlm_kd.errors import DataError, MissingResourceError

if TYPE_CHECKING:
    from datasets import DatasetBuilder

_COMMIT = re.compile("[0-9a-f]{40}")


def rows(
    dataset: Text,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    *,
    name: Text | None = None,
    split: Text = "train",
    revision: Text | None = None,
) -> Iterator[tuple[str, Row]]:
    """Stream the rows of one split with their locations, as ``stlm_kd.data.sources.tables.read_rows``.

    The library keeps the data set as a memory-mapped file in its cache.

    Raises:
        MissingResourceError: Not on the Hub, or the Hub cannot be reached and the data set is not cached.
        DataError: No such configuration, split or column.
    """
    builder = _builder(dataset, name=name, revision=revision)
    with _hub_errors(dataset):
        builder.download_and_prepare()  # unless it is cached
        table = builder.as_dataset(split=split)
    yield from dataset_rows(table, _described(dataset, split=split), columns, optional)


def version(dataset: str, *, name: str | None, revision: str | None) -> str:
    """The data set's version as the library identifies it: a commit, or a hash of its files.

    Raises:
        MissingResourceError: As ``rows``.
        DataError: No such configuration.
    """
    return str(_builder(dataset, name=name, revision=revision).hash)


def _builder(dataset: str, *, name: str | None, revision: str | None) -> DatasetBuilder:
    """The library's builder at the requested commit; offline, the library itself takes any cached one."""
    from datasets import load_dataset_builder

    with _hub_errors(dataset):
        builder = load_dataset_builder(dataset, name, revision=revision)
    if revision is not None and _COMMIT.fullmatch(revision) and builder.hash != revision:
        raise MissingResourceError(
            f"{dataset}: revision {revision} cannot be reached, and the cache has {builder.hash}; "
            "go online once, or use that revision"
        )
    return builder


@contextmanager
def _hub_errors(dataset: str) -> Iterator[None]:
    """Raise the library's errors as ours."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    try:
        yield
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise MissingResourceError(
            f"{dataset}: not found on the Hub ({first_line(error)}); check the id, log in if it is private"
        ) from error
    except ConnectionError as error:
        raise MissingResourceError(
            f"{dataset}: the Hub cannot be reached and the data set is not in the cache; "
            "go online once, or give the path of a local copy"
        ) from error
    except OSError as error:
        raise MissingResourceError(f"{dataset}: cannot be read ({first_line(error)})") from error
    except (ValueError, RuntimeError, DatasetGenerationError) as error:
        raise DataError(f"{dataset}: {first_line(error)}") from error


def data_set_is_cached(name: str, configuration: str | None = None) -> bool:
    """Whether the ``datasets`` library has a data set in its cache, in this configuration or in any."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    return (folder / configuration if configuration is not None else folder).is_dir()


def file_is_cached(repository: str, *names: str) -> bool:
    """Whether the Hub's cache has one of these files of a model repository.

    Raises:
        ValueError: The name is not a Hub id.
    """
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


@cache
def hub_answers() -> bool:
    """Whether the Hub is reachable; tested once, and never in offline mode.

    Raises:
        MissingResourceError: Its address (``HF_ENDPOINT``) is invalid, or the server there is not HTTP.
    """
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    import datasets
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        return False
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=5).close()
    except HTTPError:
        return True  # the Hub refused the request, so it is reachable
    except OSError:
        return False
    except (ValueError, HTTPException) as error:
        raise MissingResourceError(
            f"the environment variable HF_ENDPOINT: {constants.ENDPOINT!r} found ({error!r}); expected the "
            "address of a Hub, such as https://huggingface.co; correct or unset it"
        ) from error
    return True


def _described(dataset: str, /, *, split: str, **_: object) -> str:
    return f"{dataset}, split {split}"


def _identity(
    dataset: str, /, *, name: str | None, split: str, revision: str | None, column: str | None = None
) -> list[object]:
    """Its id, split and commit; for text, also the column."""
    read = [] if column is None else [column]
    return ["hub", dataset, name, split, *read, version(dataset, name=name, revision=revision)]


def _require(dataset: str, /, *, name: str | None = None, **_: object) -> None:
    if not data_set_is_cached(dataset, name) and not hub_answers():
        raise MissingResourceError(
            f"{dataset}: not in the cache of data sets, and the Hub cannot be reached; go online once, or "
            "name a local copy by path"
        )


@register_data_source(
    "hub",
    identity=_identity,
    rows=rows,
    require=_require,
    described=_described,
    reading={"column"},
    noun="text from the Hub",
)
def texts(
    dataset: Text,
    /,
    *,
    name: Text | None = None,
    split: Text = "train",
    column: Text = "text",
    revision: Text | None = None,
) -> Iterator[str]:
    """A data set on the Hugging Face Hub, by its id.

    Args:
        dataset: The id.
        name: The configuration, if there are several.
        split: The split.
        column: The column that holds the text.
        revision: A branch, tag or commit.
    """
    return column_texts(rows(dataset, columns=[column], name=name, split=split, revision=revision), column)
