"""Pieces of HTML, in which everything that comes from outside is escaped."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Sequence
from typing import Any


class Markup(str):
    """Text that is HTML already, and is not escaped again."""

    __slots__ = ()


def escaped(value: object) -> Markup:
    """Return a value as HTML; `Markup` stays as it is.

    Example:
        >>> escaped("<b> & \\"c\\"")
        '&lt;b&gt; &amp; &quot;c&quot;'
    """
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def element(tag: str, /, *children: object, **attributes: object) -> Markup:
    """Return an element; children and attributes are escaped.

    Args:
        tag: the name of the element.
        children: what is inside.
        attributes: by name; ``class_`` stands for ``class``, and an attribute that is
            None is left out.

    Example:
        >>> element("p", "a < b", class_="note")
        '<p class="note">a &lt; b</p>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if tag in ("img", "meta", "br"):
        return Markup(f"<{tag}{given}>")
    return Markup(f"<{tag}{given}>{joined(children)}</{tag}>")


def joined(parts: Iterable[Any], between: str = "") -> Markup:
    """Return parts one after another."""
    return Markup(between.join(escaped(part) for part in parts))


def section(title: str, *children: object) -> Markup:
    """Return a section with a heading; empty if nothing is inside."""
    if not any(children):
        return Markup("")
    return element("section", element("h2", title), *children)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    """Return a table whose first column names the rows."""
    lines = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell) for cell in row[1:]),
        )
        for row in rows
    ]
    heading = [element("th", name, scope="col") for name in head]
    top = [element("thead", element("tr", *heading))] if head else []
    inner = element("table", *top, element("tbody", *lines))
    return element("div", inner, class_="wide", tabindex="0")


def picture(data: bytes, alt: str) -> Markup:
    """Return a PNG with its alternative text, inlined."""
    source = Markup("data:image/png;base64," + base64.b64encode(data).decode())
    return element("figure", element("img", src=source, alt=alt), class_="picture")


def data_script(name: str, value: object) -> Markup:
    """Return JSON that a script of the page reads, which cannot end its element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(f'<script type="application/json" id="{name}">{text}</script>')
