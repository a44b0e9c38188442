"""Renders the templates to a single HTML file that contains its style, script and icon, and loads nothing."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import jinja2
from markupsafe import Markup

from stvid import __version__
from stvid.evaluation import text
from stvid.report.tables import shade

HERE = Path(__file__).parent
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3.5" fill="#0b5cad"/>'
    '<path d="M6 4.4v7.2L12 8z" fill="#fff"/></svg>'
)
LINE_BREAKS = re.compile(r"(?<=[_/\\])(?=.)", re.DOTALL)  # positions in a long name where a line may break


def breakable(name: str) -> Markup:
    """A name as HTML, with possible line breaks after `_` and `/`."""
    return Markup("<wbr>").join(LINE_BREAKS.split(name))


FILTERS = {
    "percent": text.percent,
    "interval": text.interval,
    "decimal": text.decimal,
    "count": text.count,
    "change": text.change,
    "shade": shade,
    "p_value": text.p_value,
    "breakable": breakable,
}


@functools.cache
def environment() -> jinja2.Environment:
    """The templates of this package; variables are escaped."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= FILTERS
    return templates


def render(template: str, data: Mapping, **content: object) -> bytes:
    """Renders a page as UTF-8.

    All names are escaped. The Content-Security-Policy of the page only allows its own script, identified by its hash,
    and forbids to load anything. Bytes of file names that are not valid UTF-8 are shown as `\\udc..`.

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
