"""HTML and SVG that cannot forget to escape: text is escaped unless it was made here."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from tracefill.audit.document import plain


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def element(name: str, *children: str | float, **attributes: str | float | None) -> Markup:
    """One element with its children; attributes that are None are left out, ``aria_label`` is ``aria-label``.

    >>> element("b", "<shop>", class_="name", title='"')
    '<b class="name" title="&quot;">&lt;shop&gt;</b>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_readable(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[str | float]) -> Markup:
    """The children one after another, escaped where they are plain text."""
    return Markup("".join(child if isinstance(child, Markup) else escape(_readable(child)) for child in children))


def _readable(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else plain(value)
