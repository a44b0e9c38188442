"""Which values a config key takes, known without importing the code that it configures.

Types are the annotations in the source of stvid's classes and functions. Ranges are those that the comments in
`configs/` state, which `--help` shows: `from 1`, `above 0`, `in [0, 1)`.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stvid.run.config_help import config_files, config_groups, own_entries, package_of, read_yaml

CHOICES = {  # of keys with a fixed set of values; a test compares them with those in the code
    "data.features": ("auto", "off"),
    "data.balance": ("none", "classes", "loss"),
    "data.probe": ("decode", "count"),
    "data.backend": ("pyav", "decord", "torchcodec"),
    "data.num_crops": (1, 3, 5),
    "model.recurrent": ("lstm", "gru", "none"),
    "model.pooling": ("last", "mean", "max", "attention"),
    "optimizer.schedule": ("cosine", "linear", "constant", "multi_step", "one_cycle", "plateau"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.precision": ("auto", "32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16", 32, 16),
    "compile": (None, "default", "reduce-overhead", "max-autotune"),
    "sweep.method": ("grid", "random", "optuna"),
    "sweep.pruner": ("none", "median", "halving"),
}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": (str, int),
    "None": type(None),
}


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers from `low` to `high`; `words` says it as a message does.

    Attributes:
        low: lower limit; `above`: not included.
        high: upper limit; None: no limit; `below`: not included.
        comment: the comment of the key.
        whole: only whole numbers.
        nullable: null is a value too.
        listed: a list of such numbers is a value too.
    """

    low: float
    high: float | None
    above: bool
    below: bool
    words: str
    comment: str
    whole: bool
    nullable: bool
    listed: bool

    def allows(self, value: object) -> bool:
        """Whether a value or every number of a list lies in the range; words of the comment such as `auto` do."""
        if isinstance(value, list | tuple):
            return self.listed and all(self.allows(child) for child in value)
        if value is None:
            return self.nullable
        if isinstance(value, str):
            return bool(re.search(rf"\b{re.escape(value)}:", self.comment))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, float) and not (value.is_integer() if self.whole else math.isfinite(value)):
            return False
        is_low = value < self.low or (self.above and value == self.low)
        is_high = self.high is not None and (value > self.high or (self.below and value == self.high))
        return not (is_low or is_high)


@functools.cache
def ranges() -> dict[str, Range]:
    """Dotted key -> the range that its comment states, for all choices of all groups."""
    entries: dict[str, list[tuple[str, str]]] = {}
    for file in config_files():
        for key, entry in own_entries(file).items():
            entries.setdefault(key, []).append(entry)
    stated = {}
    for key, values_and_comments in entries.items():
        ranges = ((text, found) for _, text in values_and_comments if (found := _stated_range(text)))
        comment, stated_range = next(ranges, ("", None))
        if stated_range is not None:
            values = [value for value, _ in values_and_comments]
            low, high, above, below, words = stated_range
            annotation = key_annotations().get(key)
            if annotation is None:  # of a class that is not ours; an interpolation says nothing about the value
                is_whole = all(re.fullmatch(r"\d+|null|auto|\$\{.*", value) for value in values)
            else:
                is_whole = bool(re.search(r"\bint\b", annotation)) and not re.search(r"\bfloat\b", annotation)
            others = re.findall(r"(?:; |\| |, |: )(null|auto): ", comment)
            stated[key] = Range(
                low=low,
                high=high,
                above=above,
                below=below,
                words=", or ".join([words, *others]),
                comment=comment,
                whole=is_whole and words.startswith("at least"),
                nullable="null" in values or "null" in comment,
                listed=any(value.startswith("[") for value in values) or "[" in (annotation or ""),
            )
    return stated


def _stated_range(comment: str) -> tuple[float, float | None, bool, bool, str] | None:
    if match := re.search(r"(?:^|, )(in ([\[(])([\d.]+), ([\d.]+)([\])]))", comment):
        return float(match[3]), float(match[4]), match[2] == "(", match[5] == ")", match[1]
    if match := re.search(r"\bfrom (\d+)\b", comment):
        return float(match[1]), None, False, False, f"at least {match[1]}"
    if match := re.search(r"\babove (\d+)\b", comment):
        return float(match[1]), None, True, False, match[0]
    return None


@functools.cache
def key_annotations() -> dict[str, str]:
    """Dotted key -> the annotation of the parameter of stvid that gets its value, for all choices of all groups."""
    found: dict[str, str] = {}
    for file in config_files():
        for place, node in targets(read_yaml(file), package_of(file)):
            types = parameter_types(str(node["_target_"]))
            for name, value in node.items():
                source = re.fullmatch(r"\$\{([\w.]+)\}", str(value))
                if name in types and not (source and source[1] in config_groups()):
                    found[source[1] if source else f"{place}.{name}".lstrip(".")] = types[name]
    return found


def targets(node: object, place: str = "") -> Iterator[tuple[str, dict]]:
    """Every section of a config with a `_target_`, after its dotted place."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield place, node
        for key, child in node.items():
            yield from targets(child, f"{place}.{key}".strip("."))


@functools.cache
def parameter_types(target: str) -> dict[str, str]:
    """Parameter -> its annotation, of a class or function of stvid; empty if it is none or not found.

    `**` is among the parameters if there may be any others.
    """
    module, _, name = target.rpartition(".")
    file = Path(__file__).resolve().parents[2].joinpath(*module.split(".")).with_suffix(".py")
    if not target.startswith("stvid.") or not file.is_file():
        return {}
    nodes = {node.name: node for node in ast.parse(file.read_text(encoding="utf-8")).body if hasattr(node, "name")}
    return _annotations(nodes.get(name), nodes)


def _annotations(node: ast.stmt | None, nodes: Mapping[str, ast.stmt]) -> dict[str, str]:
    """Of the parameters of a function, of the `__init__` of a class, or of the fields of a dataclass."""
    if isinstance(node, ast.FunctionDef):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        types = {
            entry.arg: ast.unparse(entry.annotation) if entry.annotation else "Any"
            for entry in arguments
            if entry.arg != "self"
        }
        return types if node.args.kwarg is None else types | {"**": "Any"}
    if not isinstance(node, ast.ClassDef):
        return {}
    init = next((child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == "__init__"), None)
    if init is not None:
        return _annotations(init, nodes)
    found: dict[str, str] = {}
    for base in node.bases:
        found |= _annotations(nodes.get(ast.unparse(base)), nodes)
    fields = (child for child in node.body if isinstance(child, ast.AnnAssign))
    return found | {ast.unparse(field.target): ast.unparse(field.annotation) for field in fields}


def type_fits(value: object, annotation: str) -> bool:
    """Whether a value of a config fits an annotation; only numbers, texts, booleans and null are checked."""
    options = [option.strip() for option in annotation.split("|")]
    if any(option not in _TYPES and not re.match(r"\w+\[", option) for option in options):
        return True  # Any, or a class
    for option in options:
        kind = _TYPES.get(option)
        if kind is not None and isinstance(value, kind) and not (isinstance(value, bool) and option != "bool"):
            return True
    return False
