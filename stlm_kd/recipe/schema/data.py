"""The data part of a recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from inspect import Parameter
from typing import Annotated, Any, ClassVar, Literal, cast, get_args

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationInfo, WrapValidator, create_model

from stlm_kd.data.chats import ChatFormat
from stlm_kd.data.sources import document_files, filters, limits
from stlm_kd.data.sources.document_files import CuttingRule, Documents
from stlm_kd.data.sources.limits import Unit
from stlm_kd.data.sources.sources import DATA_SOURCES, MODULES, TEXT_KEYS, DataSource, source_names
from stlm_kd.errors import did_you_mean
from stlm_kd.recipe.schema.fields import (
    KEEPS_PATH,
    Count,
    Flag,
    Part,
    PathText,
    Positive,
    Seed,
    Share,
    Text,
    fault,
    parse_count,
    show,
    texts_of,
)
from stlm_kd.recipe.schema.options import strict

MASKED_SHARE = 0.15
"""Default fraction of positions that a masked language model has to predict."""


def _columns(value: object) -> object:
    """One column or a list of columns."""
    return (value,) if isinstance(value, str) else value


class Separator(Part):
    """The text between the documents of plain text."""

    called: ClassVar[str] = "a key of documents"
    separator: Text


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


def _where(value: object) -> object:
    """Columns with the values that rows must have; nothing if none is given."""
    if value is not None and not isinstance(value, Mapping):
        raise fault(f"{show(value)} found; expected columns with their values, such as {{language: en}}")
    for column, values in (value or {}).items():
        listed = values if isinstance(values, list) else [values]
        wrong = [one for one in listed if not isinstance(one, (str, int, float)) or one != one]
        if wrong or not listed or not isinstance(column, str):
            found = f"{column}: {show(wrong[0] if wrong else values)}"
            raise fault(f"{found} found; expected a text, a number, true or false, or a list of these")
    return value


class Limit(Part):
    """How much is read of a source of text; a number alone is one of tokens."""

    called: ClassVar[str] = "a key of limit"
    one_of: ClassVar[tuple[str, ...]] = get_args(Unit)
    tokens: Count | None = None
    documents: Count | None = None
    bytes: Count | None = None

    def __str__(self) -> str:
        return str(self.given)

    @property
    def given(self) -> limits.Limit:
        """The limit for the data layer."""
        (unit,) = (unit for unit in get_args(Unit) if getattr(self, unit) is not None)
        return limits.Limit(unit, getattr(self, unit))


def _limit(value: object) -> object:
    """A mapping with a unit; a bare number is one of tokens."""
    return value if value is None or isinstance(value, (Mapping, Limit)) else {"tokens": value}


class Subsample(Part):
    """The random part of the documents of a source of text that is read; a number alone is the rate."""

    called: ClassVar[str] = "a key of subsample"
    rate: Share
    seed: Seed = 0

    def __str__(self) -> str:
        return str(self.given)

    @property
    def given(self) -> filters.Subsample:
        """The part for the data layer."""
        return filters.Subsample(self.rate, self.seed)


def _subsample(value: object) -> object:
    """A mapping; a bare number is the rate."""
    return value if value is None or isinstance(value, (Mapping, Subsample)) else {"rate": value}


class Chat(Part):
    """How rows are read as chats; a text alone is the template.

    ``template``: chatml, student (that of its tokenizer), a file, or a model's name.
    """

    called: ClassVar[str] = "a key of chat"
    template: PathText
    messages: Text = "messages"

    @property
    def given(self) -> ChatFormat:
        """The format for the data layer."""
        return ChatFormat(self.template, self.messages)


def _chat(value: object) -> object:
    """A mapping; a text is the template."""
    return {"template": value} if isinstance(value, str) else value


def _or_none(value: object) -> object:
    """Nothing in place of false, which is the same."""
    return None if value is False else value


OptionalFlag = Annotated[Flag | None, BeforeValidator(_or_none)]
"""A flag that is off unless given, and then not part of a recipe's hash."""


class Source(Part):
    """A data source with its options, which are fields beside its key; see ``source_class``.

    A relative ``path`` starts in the recipe's folder (``recipe.paths``). ``text`` (one column, or two
    for pairs; default ``sentence``) and ``label`` (default ``label``) are columns of labelled examples.
    The others are for text; see ``stlm_kd.data.sources.sources.Source``.
    """

    called: ClassVar[str] = "a key of a source"
    kind: ClassVar[str]
    """The name of the source: the key of its value."""
    text: Annotated[tuple[Text, ...] | None, BeforeValidator(_columns)] = None
    label: Text | None = None
    domain: Text = "default"
    weight: Positive = 1.0
    share: Share | None = None
    limit: Annotated[Limit | None, BeforeValidator(_limit)] = None
    shuffle: Seed | None = None
    subsample: Annotated[Subsample | None, BeforeValidator(_subsample)] = None
    min_characters: Count | None = None
    deduplicate: OptionalFlag = None
    chat: Annotated[Chat | None, BeforeValidator(_chat)] = None

    @property
    def value(self) -> Any:
        """The value of its key."""
        return getattr(self, self.kind)

    @property
    def entry(self) -> DataSource:
        """The registered source."""
        return DATA_SOURCES[self.kind]

    def options(self, *, labelled: bool) -> dict[str, Any]:
        """The options for text, or for labelled examples."""
        values = {name: getattr(self, name) for name in self.entry.options(labelled)}
        return {
            name: document_files.Separator(value.separator) if isinstance(value, Separator) else value
            for name, value in values.items()
        }

    def require(self, *, labelled: bool) -> None:
        """Raise MissingResourceError if something is missing that is read; data are not read."""
        options = self.options(labelled=labelled or self.chat is not None)
        if self.kind == "hub":
            options["is_limited"] = self.limit is not None
        self.entry.require(self.value, **options)

    def chosen(self) -> dict[str, Any]:
        """What is given of the keys that change which documents of a text are read."""
        found = {name: getattr(self, name) for name in TEXT_KEYS if getattr(self, name) is not None}
        return {
            name: value.given if isinstance(value, (Limit, Subsample, Chat)) else value
            for name, value in found.items()
        }


_CONSTANT = {"column": "text", "documents": "article"}
"""Options that resolved recipes, and so their hashes, have for all sources of this package."""


def source_class(kind: str, value: object = None) -> type[Source]:
    """``Source`` with the keys of all sources, and the options of the one of this name.

    Options of other sources are fields that refuse all values. If the value can only name text, or only
    labelled examples, the options are those of that.
    """
    entries = tuple(DATA_SOURCES[name] for name in source_names())
    entry = DATA_SOURCES[kind]
    forms = tuple(form for form in (True, False) if entry.has(value, form))
    return _class_of(entry, forms if len(forms) == 1 else (True, False), entries)


@cache
def _class_of(entry: DataSource, forms: tuple[bool, ...], entries: tuple[DataSource, ...]) -> type[Source]:
    choices = (*entry.choices(labelled=False), *entry.choices(labelled=True))
    value_type = Literal[choices] if choices else entry.value_type(labelled=False)
    fields: dict[str, Any] = {other.name: (Any, None) for other in entries}
    fields[entry.name] = (Annotated[_field_type(value_type) | None, KEEPS_PATH], None)
    options = {name: option for form in forms for name, option in entry.options(form).items()}
    for name in dict.fromkeys(name for other in entries for name in other.all_options()):
        assert name not in {*fields, *Source.model_fields}, f"{name}: an option and a key of a source"
        if name in options:
            annotation, default = options[name]
            fields[name] = (_field_type(annotation), ... if default is Parameter.empty else default)
        else:
            default = _CONSTANT.get(name) if entry.name in MODULES else None
            fields[name] = (Annotated[Any, BeforeValidator(_refusal(name, default, entries))], default)
    keys = create_model("Keys", __base__=Part, **fields)
    bases = cast("tuple[type[Source], ...]", (Source, keys))  # the fields of the last base come first
    made = create_model(f"Source[{entry.name}]", __base__=bases)
    made.kind, made.one_of = entry.name, tuple(other.name for other in entries)
    return made


def _field_type(annotation: Any) -> Any:
    """The type in strict mode; counts may have suffixes, and a separator is a part of its own."""
    if annotation == filters.Where | None:
        return Annotated[Any, BeforeValidator(_where)]
    if annotation == Documents:
        return Annotated[Any, BeforeValidator(_documents)]
    typed = strict(annotation)
    return Annotated[typed, BeforeValidator(parse_count)] if re.search(r"\bint\b", str(annotation)) else typed


def _refusal(name: str, allowed: object, entries: tuple[DataSource, ...]) -> Callable[[object], object]:
    """A validator that refuses an option of other sources, except for its constant."""
    owners = []
    for entry in entries:
        if name in entry.options(labelled=False):
            owners.append(f"{entry.noun or 'text'} ({entry.name}: …)")
        elif name in entry.options(labelled=True):
            owners.append(
                f"labelled examples ({entry.name}: {' or '.join(entry.choices(labelled=True)) or '…'})"
            )
    words = " and ".join(owners)

    def refuse(value: object) -> object:
        if value is not None and value != allowed:
            raise fault(f"only for {words}")
        return allowed

    return refuse


def _source(given: object, handler: Callable[[object], Source], info: ValidationInfo) -> Source:
    """The source whose key is given, or nearest to a given one."""
    if isinstance(given, Source):
        return given
    names, keys = source_names(), given if isinstance(given, Mapping) else {}
    named = [name for name in names if keys.get(name) is not None]
    near = [name for key in keys for name in get_close_matches(str(key), names, n=1)]
    kind = (*named, *near, *names)[0]
    return source_class(kind, keys.get(kind)).model_validate(given, context=info.context)


AnySource = Annotated[SerializeAsAny[Source], WrapValidator(_source)]


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
    names in order; by default those found. ``remove_overlap``: leave out training documents that are held
    out.
    """

    called: ClassVar[str] = "a key of data"
    train: Annotated[tuple[AnySource, ...], BeforeValidator(_sources)]
    validation: Annotated[tuple[AnySource, ...] | None, BeforeValidator(_sources)] = None
    fraction: Share = 1.0
    allow_overlap: Flag = False
    remove_overlap: OptionalFlag = None
    context: Annotated[Count, Field(ge=2, le=10**6)] = 512
    masked_share: Share | None = None
    labels: Annotated[tuple[Text, ...] | None, BeforeValidator(texts_of)] = None
