"""HTML fragments with escaping: a plain string becomes ``Html`` only through ``text``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NewType

from rich.table import Table
from rich.text import Text

Html = NewType("Html", str)
"""Safe HTML; a type checker refuses a plain string in its place."""

NO_ATTRIBUTES: Mapping[str, str] = {}


def text(value: str) -> Html:
    """Escape any text.

    >>> text("<b> & 'c'")
    '&lt;b&gt; &amp; &#x27;c&#x27;'
    """
    written = value.encode(errors="replace").decode()  # lone surrogates cannot be encoded
    return Html(escape("".join(sign for sign in written if sign >= " " or sign in "\n\t")))


def tag(
    name: str, content: Html | Iterable[Html] = Html(""), attributes: Mapping[str, str] = NO_ATTRIBUTES
) -> Html:
    """An element; attribute values are escaped.

    >>> tag("a", text("x<y"), {"title": '"'})
    '<a title="&quot;">x&lt;y</a>'
    """
    given = "".join(f' {key}="{text(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>{joined(content)}</{name}>")


def joined(parts: Html | Iterable[Html]) -> Html:
    """Concatenated fragments."""
    return Html(parts if isinstance(parts, str) else "".join(parts))


def paragraph(value: str) -> Html:
    """A paragraph of text."""
    return tag("p", text(value))


def listed(values: Sequence[str]) -> Html:
    """Texts as a list; empty if there are none."""
    return tag("ul", [tag("li", text(value)) for value in values]) if values else Html("")


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """A definition list of names and values, without empty values."""
    return tag(
        "dl", [joined([tag("dt", text(name)), tag("dd", text(value))]) for name, value in pairs if value]
    )


def folded(title: str, content: Html) -> Html:
    """A collapsed section."""
    return tag("details", [tag("summary", text(title)), content])


def preformatted(value: str) -> Html:
    """Text with its lines and spaces preserved."""
    return tag("pre", text(value.rstrip("\n")))


def section(title: str, content: Iterable[Html], *, level: int = 2) -> Html:
    """A section of the page under a heading."""
    return tag("section", [tag(f"h{level}", text(title)), *content])


def table(made: Table) -> Html:
    """A table as in the terminal, with its caption below; a wide one scrolls horizontally."""
    columns = made.columns
    sides = [{"class": "number"} if column.justify == "right" else NO_ATTRIBUTES for column in columns]
    head = [
        tag("th", text(_plain(column.header)), {**side, "scope": "col"})
        for column, side in zip(columns, sides, strict=True)
    ]
    rows = []
    for cells in zip(*(column.cells for column in columns), strict=True):
        first, *others = (text(_plain(cell)) for cell in cells)
        rest = [tag("td", cell, side) for cell, side in zip(others, sides[1:], strict=True)]
        rows.append(tag("tr", [tag("th", first, {"scope": "row"}), *rest]))
    body = tag("table", [tag("thead", tag("tr", head)), tag("tbody", rows)])
    box = tag("div", body, {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": "table"})
    caption = _plain(made.caption or "")
    return joined([box, *(tag("p", text(line), {"class": "note"}) for line in caption.splitlines() if line)])


def _plain(cell: object) -> str:
    """The displayed text of a cell: strings contain Rich markup, ``Text`` does not."""
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
