"""The test text of WikiText-2 (raw), identical to that of WikiText-103: a fixed held-out text.

Merity et al., "Pointer Sentinel Mixture Models", 2016.
"""

from __future__ import annotations

from pathlib import Path

from stlm_kd.data.sources.document_files import cut
from stlm_kd.data.sources.sources import Source, documents, fingerprint
from stlm_kd.errors import MissingResourceError
from stlm_kd.eval.pins import SuiteData, benchmark, benchmark_name, data_of, require_named
from stlm_kd.sharing.data_sets import tables
from stlm_kd.sharing.data_sets.named import DATA, found_files, layout_of, mirror_folder

HUB = ("Salesforce/wikitext", "wikitext-2-raw-v1")


def local_file() -> Path | None:
    """The file in a mirror (``stlm_kd.sharing.data_sets.named``), if it exists."""
    return found_files(*HUB, ("test",)).get("test")


def is_reachable(hub: str | None = None) -> bool:
    """Whether the text is in a mirror or the Hub's cache, or the Hub answers; see ``articles``."""
    if hub is None and local_file() is not None:
        return True
    return tables.is_available(benchmark_name(hub or HUB[0]), HUB[1])


def articles(hub: str | None = None) -> list[str]:
    """The articles, from a mirror, or from the Hub or its cache.

    Args:
        hub: The data set at a revision, in place of the mirror and the default commit.

    Raises:
        MissingResourceError: Available in neither.
    """
    path = local_file() if hub is None else None
    if path is not None:
        return list(documents(Source(path=str(path))))
    dataset, name = HUB
    try:
        rows = tables.read_split(benchmark(hub or dataset), name, "test")
        return list(cut(map(str, rows["text"]), documents="article", place=dataset))
    except MissingResourceError as error:
        raise _absent(error) from error


def data(hub: str | None = None) -> SuiteData:
    """The text as ``articles`` would read it; errors as there."""
    require_named({HUB[0]}, hub, suite="perplexity on wikitext")
    path = local_file() if hub is None else None
    return data_of(hub or HUB[0], [] if path is None else [path])


def identity(hub: str | None = None) -> str:
    """The version of the text: a hash of the mirror's file, or the commit on the Hub; see ``articles``.

    Raises:
        MissingResourceError: Available in neither.
    """
    path = local_file() if hub is None else None
    if path is not None:
        return fingerprint(Source(path=str(path)))
    try:
        return benchmark(hub or HUB[0]).commit
    except MissingResourceError as error:
        raise _absent(error) from error


def _absent(error: MissingResourceError) -> MissingResourceError:
    place = mirror_folder(*HUB) or f"set {DATA} to a folder with {layout_of(*HUB).folder}/"
    return MissingResourceError(f"wikitext: no test.txt[.gz] ({place}); {error}")
