"""`python train.py --help`: every config key with its comment, and every choice of every config group.

Keys, values and comments are read from the lines of `configs/`, so the help always agrees with the files. Nothing here
imports torch or Hydra, so the help appears at once.
"""

from __future__ import annotations

import copy
import functools
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stvid.errors import InputError, nearest, train_command
from stvid.run.folder import project_root

SHARED = {"data": "loading"}  # group -> a file that its choices include, not a choice itself
INTERNAL = ("datamodule", "hydra", "defaults")  # sections that no user sets
SCRIPT = "python train.py"  # in comments of configs/; an installed package has `stvid train` instead
COLUMN = 34  # of the comments
MIN_WIDTH, MAX_WIDTH = 80, 120


def exit_if_help(arguments: Sequence[str]) -> None:
    """Prints the help and exits, if the command line of train.py asks for it.

    Raises:
        InputError: an override names a choice that does not exist.
    """
    if "--help" in arguments or "-h" in arguments:
        width = min(max(shutil.get_terminal_size().columns, MIN_WIDTH), MAX_WIDTH)
        print(help_text(arguments, width=width))
        raise SystemExit(0)


def help_text(overrides: Sequence[str] = (), *, width: int = 100) -> str:
    """The help page.

    Args:
        overrides: `group=choice` shows the keys of that choice instead of the default one; others have no effect.
        width: columns of a line.

    Raises:
        InputError: a choice that does not exist.
    """
    chosen = default_choices()
    for override in overrides:
        group, equals, choice = override.partition("=")
        if equals and group in chosen:
            chosen[group] = choice
    train = train_command()
    usage = {
        f"{train} model=cnn_lstm data=folder data.root=DIR": "videos in one folder per class",
        f"{train} -m model=conv3d,cnn_lstm optimizer.lr=1e-3,3e-3": "a sweep: one run per combination",
        f"{train} resume=RUN": "resume an interrupted run",
        f"{train} model=cnn_lstm --help": "the keys of another choice",
        f"{train} --cfg job": "print the config, do not train",
        f"{train} --hydra-help": "options of Hydra",
    }
    paragraphs = [
        f"Train a model: {train} [group=choice] [key=value]",
        "\n".join(_row(command, purpose, width) for command, purpose in usage.items()),
        "CHOICES (* the one whose keys are listed below)",
        *(_choices_text(group, chosen[group], width) for group in config_groups()),
        "KEYS with their values, which key=value overrides; ??? must be given",
        _keys_text("", _entries(_configs() / "train.yaml"), width),
        *(
            _keys_text(f"{group}={choice}", read_choice(group, choice), width)
            for group, choice in chosen.items()
            if choice
        ),
    ]
    return "\n\n".join(text for text in paragraphs if text)


def config_groups() -> list[str]:
    """The config groups, in the order of the defaults in train.yaml."""
    return list(default_choices())


def default_choices() -> dict[str, str | None]:
    """Group -> choice in train.yaml; None: no choice."""
    defaults = read_yaml(_configs() / "train.yaml")["defaults"]
    choices = {group: choice for entry in defaults if isinstance(entry, dict) for group, choice in entry.items()}
    return {group: choice for group, choice in choices.items() if not group.startswith("override ")}


def choices_of(group: str) -> list[str]:
    """The choices of a config group, sorted."""
    names = {file.stem for file in (_configs() / group).glob("*.yaml")}
    return sorted(names - {SHARED.get(group)})


def read_choice(group: str, choice: str) -> dict[str, tuple[str, str]]:
    """Dotted key -> (value, comment), as written in the file of a choice; the keys of included files come first.

    Raises:
        InputError: the choice does not exist.
    """
    file = _configs() / group / f"{choice}.yaml"
    if not file.is_file():
        raise InputError(f"{group}={choice}: there is no such choice{nearest(choice, choices_of(group))}")
    entries: dict[str, tuple[str, str]] = {}
    for included in read_yaml(file).get("defaults", []):
        if isinstance(included, str) and included != "_self_":
            entries |= read_choice(group, included.partition("@")[0])
    for key, (value, comment) in own_entries(file).items():
        entries[key] = value, comment or entries.get(key, ("", ""))[1]
    return entries


def own_entries(file: Path) -> dict[str, tuple[str, str]]:
    """The same for a file of configs/, without the keys of the files that it includes."""
    package = package_of(file)
    return {f"{package}.{name}".lstrip("."): entry for name, entry in _entries(file).items()}


def package_of(file: Path) -> str:
    """The section that the keys of a file of configs/ belong to; empty for the top level."""
    group = file.parent.relative_to(_configs()).as_posix()
    return "" if group == "." or "# @package _global_" in file.read_text(encoding="utf-8") else group


def describe_choice(group: str, choice: str) -> str:
    """The first comment line of a choice's file, after a line with the command of an experiment."""
    lines = (_configs() / group / f"{choice}.yaml").read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("# ") for line in lines if not line.startswith(("# @package", f"# {SCRIPT}")))


def choice_content(group: str, choice: str) -> object:
    """What a choice and the files that it includes put into the section of its group; plain data, unresolved."""
    file = _configs() / group / f"{choice}.yaml"
    content = read_yaml(file)
    included = [entry.partition("@")[0] for entry in content.pop("defaults", []) if isinstance(entry, str)]
    own = content if package_of(file) else content.get(group)
    merged: object = {}
    for part in (*(choice_content(group, name) for name in included if name != "_self_"), own):
        merged = _merged(merged, part)
    return merged


def _merged(old: object, new: object) -> object:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def config_files() -> list[Path]:
    """The files of all choices, and train.yaml."""
    return [file for group in (".", *config_groups()) for file in sorted((_configs() / group).glob("*.yaml"))]


def read_yaml(file: Path) -> Any:
    """The content of a file of configs/. Each text is parsed once, which is slow."""
    return copy.deepcopy(_parsed(file.read_text(encoding="utf-8")))


@functools.cache
def _parsed(text: str) -> object:
    return yaml.safe_load(text)


def _configs() -> Path:
    return project_root() / "configs"


def _entries(file: Path) -> dict[str, tuple[str, str]]:
    """Dotted key -> (value, comment) for the keys in a file that users set."""
    sections: list[tuple[int, str]] = []  # indentation and name of the sections around a line
    entries = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"( *)(\w+):(?: +(?!#)(.*?))??(?: +# ?(.*))?", line)
        if not match:
            continue
        indentation, name, value, comment = len(match[1]), match[2], match[3], match[4]
        sections = [section for section in sections if section[0] < indentation]
        names = [*(section for _, section in sections), name]
        if value is None:
            sections.append((indentation, name))
        elif names[0] not in INTERNAL and not name.startswith("_"):
            entries[".".join(names)] = value.replace(", ", ","), comment or ""  # without spaces that a shell splits at
    return entries


def _choices_text(group: str, chosen: str | None, width: int) -> str:
    lines = []
    for choice in choices_of(group):
        comment = describe_choice(group, choice).replace(SCRIPT, train_command())
        lines.append(_row(f"{group}={choice}{' *' if choice == chosen else ''}", comment, width))
    return "\n".join(lines)


def _keys_text(title: str, entries: Mapping[str, tuple[str, str]], width: int) -> str:
    rows = [_row(f"{key}={value}", comment, width) for key, (value, comment) in entries.items()]
    return "\n".join([*([title] if title else []), *rows]) if rows else ""


def _row(left: str, comment: str, width: int) -> str:
    """Two columns; a long left side has a line of its own."""
    lines = [" " * COLUMN + line for line in textwrap.wrap(comment, width - COLUMN, break_on_hyphens=False)]
    left = f"  {left}"
    if lines and len(left) + 2 <= COLUMN:
        lines[0] = left.ljust(COLUMN) + lines[0].lstrip()
        return "\n".join(lines)
    return "\n".join([left, *lines])
