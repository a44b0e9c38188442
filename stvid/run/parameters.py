"""Which values a config key takes, known without importing the code that it configures.

Types are the annotations in the source of stvid's classes and functions. Choices and ranges are the tables below; the
comments in `configs/`, which `--help` shows, state the same ranges.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": (str, int),
    "None": type(None),
}
CHOICES = {  # of keys with a fixed set of values; a test compares them with those in the code
    "checkpoint": ("best", "last"),
    "data.features": ("auto", "off"),
    "data.balance": ("none", "classes", "loss"),
    "data.probe": ("decode", "count"),
    "data.backend": ("pyav", "decord", "torchcodec"),
    "data.num_crops": (1, 3, 5),
    "model.feature_norm": ("none", "batch"),
    "model.recurrent": ("lstm", "gru", "none"),
    "model.pooling": ("last", "mean", "max", "attention"),
    "augment.device": ("auto", "cpu", "gpu"),
    "optimizer.schedule": ("cosine", "linear", "constant", "multi_step", "one_cycle", "plateau"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.precision": ("auto", "32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16", 32, 16),
    "compile": (None, "default", "reduce-overhead", "max-autotune"),
    "sweep.method": ("grid", "random", "optuna"),
    "sweep.pruner": ("none", "median", "halving"),
}
SWITCHES = ("allow_changes", "requeue", "refit", "headspace", "report", "find_lr", "gradient_checkpointing")


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that a key takes.

    Attributes:
        at_least, above: lower limit, included or not. One of them must be given.
        at_most, below: upper limit, included or not; None: no limit.
        whole: only whole numbers.
        null: null is a value too.
        listed: a list of such numbers is a value too.
        word: a text that is a value too.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    whole: bool = False
    null: bool = False
    listed: bool = False
    word: str | None = None

    def __str__(self) -> str:
        """As a message says it: `at least 1`, `above 0, or null`, `in [0, 1)`, `from 0 to 30`."""
        low = self.above if self.at_least is None else self.at_least
        high = self.below if self.at_most is None else self.at_most
        if high is None:
            text = f"at least {low}" if self.above is None else f"above {low}"
        elif self.whole:
            text = f"from {low} to {high}"
        else:
            text = f"in {'[' if self.above is None else '('}{low}, {high}{']' if self.below is None else ')'}"
        return ", or ".join([text, *([self.word] if self.word else []), *(["null"] if self.null else [])])

    def allows(self, value: object) -> bool:
        """Whether a value, or every number of a list, lies in the range."""
        if isinstance(value, list | tuple):
            return self.listed and all(self.allows(child) for child in value)
        if value is None:
            return self.null
        if isinstance(value, str):
            return value == self.word
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, float) and not (value.is_integer() if self.whole else math.isfinite(value)):
            return False
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


RANGES = {
    "seed": Range(at_least=0, at_most=2**32 - 1, whole=True),
    "save_every": Range(at_least=1, whole=True, null=True),
    "ema": Range(at_least=0, below=1, null=True),
    "min_steps": Range(at_least=1, whole=True, null=True),
    "early_stopping": Range(at_least=1, whole=True, null=True),
    "clip.num_frames": Range(at_least=1, whole=True, null=True),
    "clip.frame_stride": Range(at_least=1, whole=True, null=True),
    "clip.fps": Range(above=0, null=True),
    "clip.std": Range(above=0, listed=True),
    "clip.diff_seconds": Range(above=0),
    "clip.diff_gain": Range(above=0),
    "data.num_train": Range(at_least=1, whole=True),
    "data.num_val": Range(at_least=1, whole=True),
    "data.num_test": Range(at_least=1, whole=True),
    "data.render_seed": Range(at_least=0, whole=True),
    "data.val_fraction": Range(above=0, below=1),
    "data.test_fraction": Range(above=0, below=1),
    "data.split_seed": Range(at_least=0, whole=True),
    "data.num_folds": Range(at_least=2, whole=True),
    "data.batch_size": Range(at_least=1, whole=True, word="auto"),
    "data.num_workers": Range(at_least=0, whole=True, word="auto"),
    "data.passes": Range(at_least=1, whole=True, null=True),
    "data.num_clips": Range(at_least=1, whole=True),
    "data.max_bad": Range(at_least=0, at_most=1),
    "data.probe_timeout": Range(above=0),
    "data.shuffle_buffer": Range(at_least=1, whole=True),
    "data.cache_gb": Range(above=0),
    "data.max_pixels": Range(at_least=1, whole=True),
    "model.dropout": Range(at_least=0, below=1),
    "model.encoder_chunk": Range(at_least=1, whole=True, null=True),
    "model.projection": Range(at_least=1, whole=True, null=True),
    "model.branches": Range(at_least=1, whole=True),
    "model.grid": Range(at_least=1, whole=True, null=True, listed=True),
    "model.widths": Range(at_least=1, whole=True, listed=True),
    "model.hidden_size": Range(at_least=1, whole=True),
    "model.num_layers": Range(at_least=1, whole=True),
    "model.recurrent_dropout": Range(at_least=0, below=1),
    "model.kernel_depth": Range(at_least=1, whole=True),
    "augment.scale": Range(above=0, at_most=1, listed=True),
    "augment.ratio": Range(above=0, listed=True),
    "augment.speed": Range(above=0, listed=True),
    "augment.flip": Range(at_least=0, at_most=1),
    "augment.brightness": Range(at_least=0, at_most=1),
    "augment.contrast": Range(at_least=0, at_most=1),
    "augment.saturation": Range(at_least=0, at_most=1),
    "augment.hue": Range(at_least=0, at_most=0.5),
    "augment.rand_augment": Range(at_least=0, whole=True),
    "augment.rand_magnitude": Range(at_least=0, at_most=30, whole=True),
    "augment.erase": Range(at_least=0, at_most=1),
    "mixing.mixup": Range(at_least=0),
    "mixing.cutmix": Range(at_least=0),
    "mixing.probability": Range(at_least=0, at_most=1),
    "optimizer.lr": Range(above=0),
    "optimizer.backbone_lr": Range(above=0, null=True),
    "optimizer.layer_decay": Range(above=0, at_most=1, null=True),
    "optimizer.weight_decay": Range(at_least=0),
    "optimizer.warmup": Range(at_least=0, below=1),
    "optimizer.milestones": Range(above=0, below=1, null=True, listed=True),
    "optimizer.gamma": Range(above=0, below=1, null=True),
    "optimizer.patience": Range(at_least=0, whole=True, null=True),
    "optimizer.optimizer.momentum": Range(at_least=0, below=1),
    "loss.label_smoothing": Range(at_least=0, below=1),
    "loss.gamma": Range(at_least=0),
    "trainer.num_nodes": Range(at_least=1, whole=True),
    "trainer.max_epochs": Range(at_least=1, whole=True),
    "trainer.accumulate_grad_batches": Range(at_least=1, whole=True),
    "trainer.check_val_every_n_epoch": Range(at_least=1, whole=True),
    "trainer.log_every_n_steps": Range(at_least=1, whole=True),
    "sweep.trials": Range(at_least=1, whole=True, null=True),
    "sweep.parallel": Range(at_least=1, whole=True),
    "sweep.seed": Range(at_least=0, whole=True),
    "sweep.startup_trials": Range(at_least=0, whole=True),
    "sweep.warmup_epochs": Range(at_least=1, whole=True),
}


def mistake(key: str, value: object) -> str | None:
    """The message about a value that is out of the range or not among the choices of a key; None: the key takes it."""
    name = f"{key} (={'null' if value is None else value})"
    if key in SWITCHES and not isinstance(value, bool):
        return f"{name} must be true or false"
    if key in CHOICES and value not in CHOICES[key]:
        choices = ("null" if choice is None else str(choice) for choice in CHOICES[key])
        return f"{name} must be one of {', '.join(dict.fromkeys(choices))}"
    if key in RANGES and not RANGES[key].allows(value):
        kind = ""
        if RANGES[key].listed and isinstance(value, list | tuple):
            kind = f"a list of {'whole ' if RANGES[key].whole else ''}numbers, each "
        elif RANGES[key].whole and not isinstance(value, int | None):
            kind = "a whole number, "
        elif not isinstance(value, int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
            kind = "a finite number, "
        return f"{name} must be {kind}{RANGES[key]}"
    return None


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
