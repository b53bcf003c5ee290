"""Markdown to HTML that cannot run or load anything."""

from __future__ import annotations

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

_TAGS = {
    *("p", "h3", "h4", "h5", "h6", "ul", "ol", "li", "em", "strong", "code", "pre", "blockquote"),
    *("a", "table", "thead", "tbody", "tr", "th", "td", "hr", "br", "s"),
}
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def to_html(text: str, *, first_heading: int) -> Markup:
    """Return Markdown as sanitised HTML, its top heading at level ``first_heading``.

    Raw HTML is shown as text, pictures are dropped, and links keep web and mail addresses only.

    Examples
    --------
    >>> str(to_html("# A <b>", first_heading=4)).strip()
    '<h4>A &lt;b&gt;</h4>'
    """
    tokens = _PARSER.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            level = int(token.tag[1:]) + first_heading - 1
            token.tag = f"h{min(level, 6)}"
    rendered = _PARSER.renderer.render(tokens, _PARSER.options, {})
    return Markup(
        nh3.clean(
            rendered,
            tags=_TAGS,
            attributes={"a": {"href", "title"}},
            url_schemes={"http", "https", "mailto"},
        )
    )
