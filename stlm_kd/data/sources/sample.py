"""The source ``sample``: text and labelled examples of the built-in generator of synthetic English."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from stlm_kd.data.sources.files import Count, Text
from stlm_kd.data.sources.sources import register_data_source
from stlm_kd.data.sources.tables import Row
from stlm_kd.data.synthetic import SPLITS, VERSION, sample_documents, sample_rows
from stlm_kd.errors import DataError

EXAMPLES: Mapping[str, int] = {"train": 6000, "validation": 1000}
"""Default number of labelled examples."""

_SEED = 0


def _check(sample: str, /, *, size: int | None, split: str = "train") -> None:
    if split not in SPLITS:
        raise DataError(
            f"{_described(sample, split=split)}: split {split} found; a sample has the splits "
            f"{' and '.join(SPLITS)}"
        )
    if size is not None and size <= 0:
        raise DataError(f"sample {sample}: size {size} found, expected a positive number")


def _described(sample: str, /, *, size: int | None = None, split: str | None = None) -> str:
    return f"sample {sample}" if split is None else f"sample {sample}, split {split}"


def _identity(sample: str, /, *, size: int | None, split: str | None = None) -> list[object]:
    """The arguments and version of the generator."""
    arguments = [sample, size] if split is None else [sample, split, size or EXAMPLES[split]]
    return ["sample", *arguments, _SEED, VERSION]


def _rows(
    task: Literal["acceptability", "sentiment"],
    columns: Sequence[str],
    optional: Sequence[str],
    /,
    *,
    split: Text = "train",
    size: Count | None = None,
) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(
        sample_rows(task, split, count=size or EXAMPLES[split], seed=_SEED), start=1
    ):
        yield f"{_described(task, split=split)}: row {number}", row


@register_data_source(
    "sample",
    identity=_identity,
    rows=_rows,
    check=_check,
    described=_described,
    reading={"size"},
    noun="generated text",
)
def sample(split: Literal["train", "validation"], /, *, size: Count = 4_000_000) -> Iterator[str]:
    """Generated text of ``size`` bytes; the splits have different documents."""
    return sample_documents(split, size=size, seed=_SEED)
