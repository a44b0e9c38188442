"""Renders the templates to a single HTML file that contains its style, script and icon, and loads nothing."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from stvid import __version__
from stvid.evaluation import text
from stvid.report.tables import shade
from stvid.terminal import visible, visible_lines

HERE = Path(__file__).parent
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3.5" fill="#0b5cad"/>'
    '<path d="M6 4.4v7.2L12 8z" fill="#fff"/></svg>'
)
LINE_BREAKS = re.compile(r"(?<=[_/\\])(?=.)", re.DOTALL)  # positions in a long name where a line may break


def breakable(name: str) -> Markup:
    """A name as HTML, with possible line breaks after `_` and `/`."""
    return Markup("<wbr>").join(LINE_BREAKS.split(visible(name)))


def show_hidden(value: object) -> object:
    """A variable of a template with its hidden characters visible; markup stays as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def text_lines(content: str) -> Markup:
    """A text of several lines as HTML, for `<pre>`."""
    return escape(visible_lines(content))


FILTERS = {
    "percent": text.percent,
    "interval": text.interval,
    "decimal": text.decimal,
    "count": text.count,
    "change": text.change,
    "shade": shade,
    "p_value": text.p_value,
    "breakable": breakable,
    "text_lines": text_lines,
}


@functools.cache
def environment() -> jinja2.Environment:
    """The templates of this package; variables are escaped, and hidden characters in them made visible."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        finalize=show_hidden,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= FILTERS
    return templates


def render(template: str, data: Mapping, **content: object) -> bytes:
    """Renders a page as UTF-8.

    All names are escaped, and hidden characters in them made visible. The Content-Security-Policy of the page only
    allows its own script, identified by its hash, and forbids to load anything.

    Args:
        template: file name of the template.
        data: plain data for the script.
        content: variables of the template.
    """
    script = (HERE / "player.js").read_text(encoding="utf-8")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (
        environment()
        .get_template(template)
        .render(
            **content,
            data=data,
            style=(HERE / "style.css").read_text(encoding="utf-8"),
            script=script,
            script_hash=f"sha256-{script_hash}",
            icon=base64.b64encode(ICON.encode()).decode(),
            version=__version__,
        )
    )
    return page.encode("utf-8", "backslashreplace")
