"""A config as plain data: the dotted places of its values, references between them, and text with `${`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def to_plain(config: DictConfig, *, resolve: bool = True) -> dict:
    """A config as plain data; `resolve`: with the values that interpolations refer to."""
    plain: Any = OmegaConf.to_container(config, resolve=resolve)  # its type allows a list or a text too
    return plain


def places(node: object, place: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted place and value of plain data and of everything in it: `clip`, `clip.mean`, `clip.mean[0]`.

    Args:
        node: the data.
        place: where it lies.
    """
    yield place, node
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from places(child, f"{place}.{key}".lstrip("."))
    elif isinstance(node, list | tuple):
        for i, child in enumerate(node):
            yield from places(child, f"{place}[{i}]")


def targets(config: Mapping) -> Iterator[tuple[str, dict]]:
    """Place and content of every section with a `_target_`."""
    return ((place, node) for place, node in places(config) if isinstance(node, dict) and "_target_" in node)


def references(node: object, place: str = "") -> dict[str, str]:
    """Place -> key, for every value `${key}` in plain data that is not resolved."""
    texts = ((at, text) for at, text in places(node, place) if isinstance(text, str))
    return {at: match[1] for at, text in texts if (match := REFERENCE.fullmatch(text))}


def is_in(place: str, section: str) -> bool:
    """Whether a dotted place is a section or lies in it."""
    return place == section or place.startswith((f"{section}.", f"{section}["))


def escape_interpolations(node: object) -> Any:
    """Plain data whose texts OmegaConf reads as they are: `${x}` in a class name is no interpolation."""
    if isinstance(node, dict):
        return {key: escape_interpolations(child) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return [escape_interpolations(child) for child in node]
    if isinstance(node, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\${", node)
    return node
