"""The data part of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from stlm_kd.errors import did_you_mean
from stlm_kd.recipe.schema.fields import Count, Flag, Part, Positive, Share, Text, fault, show, texts_of

SAMPLE_SIZE = 4_000_000
"""Default size of generated text, in bytes."""

LABELLED_SAMPLES = ("acceptability", "sentiment")
"""The tasks of generated text with labels."""

MASKED_SHARE = 0.15
"""Default fraction of positions that a masked language model has to predict."""


def _columns(value: object) -> object:
    """One column or a list of columns."""
    return (value,) if isinstance(value, str) else value


class Separator(Part):
    """The text between the documents of plain text."""

    called: ClassVar[str] = "a key of documents"
    separator: Text


CuttingRule = Literal["article", "line", "blank-line", "file"]


def _documents(value: object, info: ValidationInfo) -> object:
    """The name of a cutting rule, or a separator."""
    rules = get_args(CuttingRule)
    if isinstance(value, Mapping):
        return Separator.model_validate(value, context=info.context)
    if isinstance(value, Separator) or value in rules:
        return value
    near = did_you_mean(value, rules) if isinstance(value, str) else ""
    expected = f"expected one of {', '.join(rules)}, or {{separator: TEXT}}"
    raise fault(f"{show(value)} found; {expected}{near if near.startswith(' (') else ''}")


class Source(Part):
    """Text from a file or folder, the Hub, or the built-in generator; for classifiers, labelled examples.

    Plain text is cut into documents at titles (``documents: article``), line ends (``line``), blank lines,
    not at all (``file``) or at a separator (``{separator: "<|endoftext|>"}``). A relative ``path`` starts
    from the current folder, wherever the recipe is. By default ``split`` is ``train`` for the Hub and
    labelled samples, and ``size`` 4M bytes of generated text. ``text`` (one column, or two for pairs; default
    ``sentence``) and ``label`` (default ``label``) are columns of labelled examples; for labelled samples
    ``size`` is the number of examples.
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
    documents: Annotated[CuttingRule | Separator, BeforeValidator(_documents)] = "article"
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
    """One source or a list; a bare path is a source."""
    if value is None:
        return None
    entries = value if isinstance(value, (list, tuple)) else [value]
    if not entries:
        raise fault("an empty list found; expected at least one source")
    return [{"path": entry} if isinstance(entry, str) else entry for entry in entries]


class Data(Part):
    """The data; ``fraction`` is the fraction of the training data that the student reads.

    ``allow_overlap``: allow a file to be both training and validation data. ``masked_share``: the fraction
    of a step's positions that a masked language model has to predict; default 0.15. ``labels``: the class
    names in order; by default those found.
    """

    called: ClassVar[str] = "a key of data"
    train: Annotated[tuple[Source, ...], BeforeValidator(_sources)]
    validation: Annotated[tuple[Source, ...] | None, BeforeValidator(_sources)] = None
    fraction: Share = 1.0
    allow_overlap: Flag = False
    context: Annotated[Count, Field(ge=2)] = 512
    masked_share: Share | None = None
    labels: Annotated[tuple[Text, ...] | None, BeforeValidator(texts_of)] = None
