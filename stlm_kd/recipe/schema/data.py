"""The parts of a recipe that name the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from stlm_kd.errors import did_you_mean
from stlm_kd.recipe.schema.fields import Count, Flag, Part, Positive, Share, Text, fault, show, texts_of

SAMPLE_SIZE = 4_000_000
"""Bytes of generated text where a recipe does not say how many."""

LABELLED_SAMPLES = ("acceptability", "sentiment")
"""The tasks of generated text with labels."""

MASKED_SHARE = 0.15
"""Positions that a masked language model has to predict, of all, where a recipe does not say."""


def _columns(value: object) -> object:
    """One column or a list of columns."""
    return (value,) if isinstance(value, str) else value


class Separator(Part):
    """What stands between the documents of plain text."""

    called: ClassVar[str] = "a key of documents"
    separator: Text


_WAYS = ("article", "line", "blank-line", "file")


def _documents(value: object, info: ValidationInfo) -> object:
    """The name of a way to cut text, or a separator."""
    if isinstance(value, Mapping):
        return Separator.model_validate(value, context=info.context)
    if isinstance(value, Separator) or value in _WAYS:
        return value
    near = did_you_mean(value, _WAYS) if isinstance(value, str) else ""
    expected = f"expected one of {', '.join(_WAYS)}, or {{separator: TEXT}}"
    raise fault(f"{show(value)} found; {expected}{near if near.startswith(' (') else ''}")


class Source(Part):
    """Text from a file or folder, the Hub, or the built-in generator; for classifiers, labelled examples.

    Plain text is cut into documents at titles (``documents: article``), ends of lines (``line``), blank
    lines, not at all (``file``) or at a separator (``{separator: "<|endoftext|>"}``). A relative ``path``
    starts from the current folder, also in recipes that lie elsewhere. Where they are not given, ``split`` is
    ``train`` on the Hub and of labelled samples, and ``size`` 4M bytes of generated text.
    ``text`` (one column, or two for pairs; ``sentence`` where null) and ``label`` (``label``) are columns of
    labelled examples; of those, ``size`` counts generated ones.
    """

    called: ClassVar[str] = "a key of a source"
    one_of: ClassVar[tuple[str, ...]] = ("path", "hub", "sample")
    path: Text | None = None
    hub: Text | None = None
    sample: Literal["train", "validation", "acceptability", "sentiment"] | None = None
    name: Text | None = None
    split: Text | None = None
    column: Text = "text"
    text: Annotated[tuple[Text, ...] | None, BeforeValidator(_columns)] = None
    label: Text | None = None
    revision: Text | None = None
    documents: Annotated[
        Literal["article", "line", "blank-line", "file"] | Separator, BeforeValidator(_documents)
    ] = "article"
    size: Count | None = None
    domain: Text = "default"
    weight: Positive = 1.0

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_its_kind(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        labelled = given.get("sample") in LABELLED_SAMPLES
        split = {"split": "train"} if given.get("hub") is not None or labelled else {}
        size = {"size": SAMPLE_SIZE} if given.get("sample") is not None and not labelled else {}
        return {**split, **size, **given}


def _sources(value: object) -> object:
    """One source or a list; a path alone is a source."""
    if value is None or isinstance(value, Source):
        return value if value is None else (value,)
    if isinstance(value, (list, tuple)) and not value:
        raise fault("an empty list found; expected at least one source")
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    return [{"path": entry} if isinstance(entry, str) else entry for entry in entries]


class Data(Part):
    """The text; ``fraction`` is the share of the training text that the student sees.

    ``allow_overlap``: whether a file may be training and validation data at once, which is refused otherwise.
    ``masked_share``: of the positions of a step, those that a masked language model has to predict; 0.15
    where it is not given. ``labels``: the names of the classes in order; those found where null.
    """

    called: ClassVar[str] = "a key of data"
    train: Annotated[tuple[Source, ...], BeforeValidator(_sources)]
    validation: Annotated[tuple[Source, ...] | None, BeforeValidator(_sources)] = None
    fraction: Share = 1.0
    allow_overlap: Flag = False
    context: Annotated[Count, Field(ge=2)] = 512
    masked_share: Share | None = None
    labels: Annotated[tuple[Text, ...] | None, BeforeValidator(texts_of)] = None
