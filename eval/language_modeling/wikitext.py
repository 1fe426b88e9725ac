"""The test text of WikiText-2 (raw), identical to that of WikiText-103: a fixed held-out text.

Merity et al., "Pointer Sentinel Mixture Models", 2016.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stlm_kd.data.sources.sources import Source, documents, fingerprint
from stlm_kd.errors import MissingResourceError
from stlm_kd.eval.pins import SuiteData, benchmark, benchmark_name, data_of, require_named
from stlm_kd.sharing.data_sets.named import DATA, found_files, layout_of, mirror_folder

HUB = ("Salesforce/wikitext", "wikitext-2-raw-v1")
_SPLITS = ("test",)


def local_file() -> Path | None:
    """The file in a mirror (``stlm_kd.sharing.data_sets.named``), if it exists."""
    return found_files(*HUB, _SPLITS).get(_SPLITS[0])


def is_reachable(hub: str | None = None) -> bool:
    """Whether the text is in a mirror or the Hub's cache, or the Hub answers; see ``articles``."""
    source = _source(hub)
    try:
        source.entry.require(source.value, **source.options)
    except MissingResourceError:
        return False
    return True


def articles(hub: str | None = None) -> list[str]:
    """The articles, from a mirror, or from the Hub or its cache.

    Args:
        hub: The data set at a revision, in place of the mirror and the default commit.

    Raises:
        MissingResourceError: Available in neither.
    """
    identity(hub)
    return list(documents(_source(hub)))


def data(hub: str | None = None) -> SuiteData:
    """The text as ``articles`` would read it; errors as there."""
    require_named({HUB[0]}, hub, suite="perplexity on wikitext")
    path = local_file() if hub is None else None
    found = data_of(hub or HUB[0], [] if path is None else [path])
    return replace(found, reads=(hub or HUB[0], HUB[1], _SPLITS))


def identity(hub: str | None = None) -> str:
    """The version of the text: a hash of the mirror's file, or of the commit on the Hub; see ``articles``.

    Raises:
        MissingResourceError: Available in neither.
    """
    try:
        if hub is not None or local_file() is None:
            benchmark(hub or HUB[0])  # says so if it is unpinned
        return fingerprint(_source(hub))
    except MissingResourceError as error:
        place = mirror_folder(*HUB) or f"set {DATA} to a folder with {layout_of(*HUB).folder}/"
        raise MissingResourceError(f"wikitext: no test.txt[.gz] ({place}); {error}") from error


def _source(hub: str | None) -> Source:
    path = local_file() if hub is None else None
    if path is not None:
        return Source(path=str(path))
    name = str(benchmark_name(hub or HUB[0]))
    return Source(hub=name, name=HUB[1], split=_SPLITS[0], lines="article")
