"""From a template to one HTML text that loads nothing: style, script and icon stand in it."""

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
from stvid.evaluation import text as notation
from stvid.report.tables import shade

HERE = Path(__file__).parent
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3.5" fill="#0b5cad"/>'
    '<path d="M6 4.4v7.2L12 8z" fill="#fff"/></svg>'
)
LINE_BREAKS = re.compile(r"(?<=[_/\\])(?=.)", re.DOTALL)  # places in a long name where a line may end


def breakable(name: str) -> Markup:
    """A name as HTML that can be broken behind `_` and `/`."""
    return Markup("<wbr>").join(LINE_BREAKS.split(name))


FILTERS = {
    "percent": notation.percent,
    "interval": notation.interval,
    "decimal": notation.decimal,
    "count": notation.count,
    "change": notation.change,
    "shade": shade,
    "p_value": notation.p_value,
    "breakable": breakable,
}


@functools.cache
def environment() -> jinja2.Environment:
    """This folder's templates. What is put into them is text, never markup."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= FILTERS
    return found


def render(template: str, data: Mapping, **content: object) -> bytes:
    """A page of this folder's templates, as UTF-8. Names in it are text, whatever they hold.

    Only the script that is the page's own can run, by its hash in the page's Content-Security-Policy, and nothing can
    be loaded, from wherever. What is no UTF-8 (names of files are bytes) is shown as `\\udc..`.

    Args:
        template: a file's name.
        data: plain data for the script.
        content: what the template asks for.
    """
    script = (HERE / "player.js").read_text(encoding="utf-8")
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = (
        environment()
        .get_template(template)
        .render(
            **content,
            data=data,
            style=(HERE / "style.css").read_text(encoding="utf-8"),
            script=script,
            script_hash=f"sha256-{hashed}",
            icon=base64.b64encode(ICON.encode()).decode(),
            version=__version__,
        )
    )
    return text.encode("utf-8", "backslashreplace")
