"""The page `/docs`: what the addresses take and answer, from the OpenAPI description. It loads nothing from elsewhere.

The page that FastAPI brings loads its script from another host.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2

TEMPLATE = Path(__file__).with_name("api.html")
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # Content-Security-Policy of the page
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A row of the page: a value that an address takes."""

    name: str
    place: str
    kind: str
    description: str


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An address: what it takes, and the fields of its answer, name -> kind."""

    method: str
    path: str
    summary: str
    parameters: list[Parameter]
    answer: dict[str, str]


def api_page(description: Mapping, *, token: str | None) -> str:
    """The page as HTML.

    Args:
        description: OpenAPI, as `FastAPI.openapi` returns it.
        token: that was in the address of the page, and so comes into its link; None: none.
    """
    info = description["info"]
    return _template().render(
        endpoints=list(_endpoints(description)),
        title=info["title"],
        version=info["version"],
        query="" if token is None else f"?token={quote(token, safe='')}",
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _endpoints(description: Mapping) -> Iterator[Endpoint]:
    schemas = description.get("components", {}).get("schemas", {})
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            content = operation["responses"]["200"].get("content", {}).get("application/json", {})
            name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
            fields = schemas.get(name, {}).get("properties", {})
            yield Endpoint(
                method=method.upper(),
                path=path,
                summary=operation.get("summary", ""),
                parameters=list(_parameters(operation)),
                answer={field: _kind(schema) for field, schema in fields.items()},
            )


def _parameters(operation: Mapping) -> Iterator[Parameter]:
    for parameter in operation.get("parameters", []):
        description = parameter.get("description", "")
        kind = _kind(parameter["schema"])
        yield Parameter(name=parameter["name"], place=parameter["in"], kind=kind, description=description)
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        for name, schema in body["schema"]["properties"].items():
            description = schema.get("description", "")
            yield Parameter(name=name, place=kind, kind=_kind(schema), description=description)


def _kind(schema: Mapping) -> str:
    """A schema in a few words: `number, above 0, at most 1`, `json, srt or vtt; else json`."""
    if "anyOf" in schema:
        return ", or ".join(_kind(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "enum" in schema:
        text = " or ".join(map(str, schema["enum"]))
    elif schema.get("type") == "array":
        text = f"list of {_kind(schema.get('items', {}))}"
    else:
        text = "file" if schema.get("format") == "binary" else schema.get("type", "any")
    bounds = [f"{words} {schema[name]}" for name, words in BOUNDS.items() if name in schema]
    default = f"; else {schema['default']}" if schema.get("default") not in (None, [], "") else ""
    return ", ".join([text, *bounds]) + default
