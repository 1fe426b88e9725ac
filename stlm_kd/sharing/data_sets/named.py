"""Where a named data set is found: in a mirror below ``$STLM_KD_DATA``, or on the Hub at its commit.

A mirror that holds the same rows goes first, so that a command gives the same with and without a network. It
is the data set at a commit only if a file ``hub.json`` says so; otherwise its files' hashes identify it. A
name with a revision means that commit: on the Hub, or in a mirror that says it is this commit. What is not
the same, a part of the examples or rows in another form, is never read in place of the Hub unless the caller
asks for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stlm_kd.artifacts.atomic import read_json
from stlm_kd.errors import DataError
from stlm_kd.sharing.names import HubName

DATA = "STLM_KD_DATA"
"""The environment variable with the folder of mirrors."""

MIRROR = "hub.json"
"""Beside a mirror's files, or in a folder above: ``{"id": …, "commit": …}`` of the data set that it is."""

TRAIN = "train"
_SUBSET = "train_subset"
"""In a mirror: a part of the training examples."""

_ENDINGS = (
    ".jsonl", ".jsonl.gz", ".jsonl.xz", ".parquet", ".csv", ".tsv", ".txt", ".txt.gz", ".txt.xz",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layout:
    """How a mirror holds a data set.

    Attributes:
        folder: Its folder below ``$STLM_KD_DATA``.
        names: Names of a split's file, without endings; default: the split's.
        empty: The line of a text for which the Hub has an empty row.
        keeps_ends: Whether the Hub's rows are lines with their ends; by default without, as the library reads
            a text.
        is_same: Whether the rows are those of the Hub, rather than the same examples in another form.
    """

    folder: str
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    empty: str = "\n"
    keeps_ends: bool = False
    is_same: bool = True


_GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
LAYOUTS: Mapping[tuple[str, str | None], Layout] = {
    **{("nyu-mll/glue", task): Layout(f"glue/{task}") for task in _GLUE},
    ("lhoestq/conll2003", None): Layout("conll2003"),
    ("rajpurkar/squad", None): Layout("squad_v1.1"),
    **{
        ("Salesforce/wikitext", f"{name}-v1"): Layout(
            f"lm/{name}", {"validation": ("validation", "valid")}, empty=" \n", keeps_ends=True
        )
        for name in ("wikitext-2", "wikitext-2-raw", "wikitext-103", "wikitext-103-raw")
    },
    ("nyu-mll/blimp", "adjunct_island"): Layout("lm_eval/blimp", is_same=False),
    ("Rowan/hellaswag", "default"): Layout("lm_eval/hellaswag", is_same=False),
    ("allenai/ai2_arc", "ARC-Easy"): Layout("lm_eval/arc_easy", is_same=False),
    ("allenai/winogrande", "winogrande_xl"): Layout("lm_eval/winogrande", is_same=False),
    ("cais/mmlu", "abstract_algebra"): Layout("lm_eval/mmlu", is_same=False),
}
"""The mirrors' folders, by id and configuration. Other data sets: ``ID[/CONFIGURATION]/SPLIT.jsonl``."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """Files that hold splits of a data set.

    Attributes:
        files: The file of each split.
        commit: That of the data set, if a file ``MIRROR`` says that it is this one.
        layout: How it is held.
    """

    files: Mapping[str, Path]
    commit: str | None
    layout: Layout


def layout_of(id: str, configuration: str | None) -> Layout:
    """How a mirror holds a configuration of a data set."""
    own = LAYOUTS.get((id, configuration))
    return own or Layout("/".join(part for part in (id, configuration) if part))


def mirror_folder(id: str, configuration: str | None) -> Path | None:
    """The folder in which a mirror is looked for; None if ``$STLM_KD_DATA`` is not set."""
    data = os.environ.get(DATA)
    return Path(data) / layout_of(id, configuration).folder if data else None


def found_files(
    id: str, configuration: str | None, splits: Sequence[str], *, subset: bool = False
) -> dict[str, Path]:
    """The files here of those splits of a data set that there are, of any revision.

    ``subset``: also a part of the training examples, if the whole is not there.
    """
    folder, names = mirror_folder(id, configuration), layout_of(id, configuration).names
    if folder is None or not all(map(_is_safe, (configuration or "default", *splits))):
        return {}
    found: dict[str, Path] = {}
    for split in splits:
        stems = [*names.get(split, (split,)), *([_SUBSET] if subset and split == TRAIN else [])]
        paths = (folder / f"{stem}{ending}" for stem in stems for ending in _ENDINGS)
        if (path := next((path for path in paths if path.is_file()), None)) is not None:
            found[split] = path
    return found


def _is_safe(name: str) -> bool:
    """Whether a name of a recipe, which may be a stranger's, stays in the folder that it is looked for in."""
    return re.fullmatch(r"[\w.+-]+", name) is not None and not name.startswith(".")


def mirror(name: HubName, configuration: str | None, splits: Sequence[str]) -> Mirror | None:
    """The mirror that is read in place of the Hub; None if there is none.

    Args:
        name: The data set, perhaps at a revision, which the mirror has to say that it is.
        configuration: Its configuration.
        splits: The splits that it has to have.

    Raises:
        DataError: A file ``MIRROR`` is malformed.
    """
    layout, files = layout_of(name.id, configuration), found_files(name.id, configuration, splits)
    if not layout.is_same or len(files) < len(splits):
        return None
    named = named_by(next(iter(files.values())).parent)
    commit = named.revision if named is not None and named.id == name.id else None
    return None if name.revision not in (None, commit) else Mirror(files, commit, layout)


def named_by(folder: Path) -> HubName | None:
    """The data set at its commit that a folder of a mirror says it is.

    Raises:
        DataError: A file ``MIRROR`` is malformed.
    """
    folder, root = folder.absolute(), Path(os.environ.get(DATA, "")).absolute()
    within = [one for one in (folder, *folder.parents) if one.is_relative_to(root)]
    file = next((one / MIRROR for one in within if (one / MIRROR).is_file()), None)
    if file is None:
        return None
    try:
        found = read_json(file)
        name = HubName("dataset", str(found["id"]), str(found["commit"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: {error!r}; expected an object with the id and commit of a data set"
        ) from error
    if not name.is_commit:
        raise DataError(f"{file}: commit {name.revision!r} found; expected 40 hexadecimal digits")
    return name
