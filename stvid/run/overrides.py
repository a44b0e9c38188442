"""The words of a command line become overrides of Hydra: a folder or a table alone, and paths taken literally.

Hydra reads `data.root=2024_05` as the number 202405, and `a,b` as two values. The keys below hold text that comes from
outside, such as the name of a folder, so their values are quoted for Hydra unless they are quoted already.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from stvid.data.layouts.recognition import recognize
from stvid.errors import InputError, train_command
from stvid.exits import exit_on_interrupt
from stvid.run.config_help import exit_if_help
from stvid.terminal import show, visible

PATH_KEYS = (
    *("data.root", "data.path", "data.splits", "data.group_csv", "data.cache", "model.weights", "model.inflate"),
    *("resume", "hydra.run.dir", "hydra.sweep.dir"),
)
TEXT_KEYS = (
    *("data.group_pattern", "logger.name", "logger.project", "logger.experiment_name", "logger.run_name"),
    "logger.tracking_uri",
)
NULLABLE = (  # null is a value of these, not a name
    *("data.splits", "data.group_csv", "data.group_pattern", "data.cache", "model.weights", "model.inflate", "resume"),
    *("logger.name", "logger.run_name", "logger.tracking_uri"),
)
EMPTY_KEYS = ("logger.version",)  # these may be empty
SWEEP_FLAGS = ("-m", "--multirun")
FLAGS_WITH_VALUE = (  # of Hydra
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--experimental-rerun", "--info", "-i"),
)
OTHER_FLAGS = ("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--shell-completion", "-sc")
_OVERRIDE = re.compile(r"(\+{0,2})([\w./@-]+)=(.*)", re.DOTALL)
_PLAIN = re.compile(r"(?=[^/]*/)(?!-)[A-Za-z0-9_./-]+", re.ASCII)  # has a slash: Hydra reads it as text, as it stands
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_SWEEP_FUNCTION = re.compile(r"(choice|range|glob|shuffle|sort|tag)\(.*\)", re.DOTALL)


def prepare_arguments(words: Sequence[str]) -> list[str]:
    """The command line of train.py as Hydra reads it; called before the imports that take seconds.

    Exits after `--help`. Afterwards Ctrl-C ends the program at once, until `interrupt_normally`.

    Raises:
        InputError: see `check_command_line`.
    """
    exit_if_help(words)
    from stvid.run.command_line import check_command_line  # imports Hydra, which the help does without

    arguments = check_command_line(words)
    exit_on_interrupt()
    return arguments


def check_flags(words: Sequence[str]) -> None:
    """Raises InputError for the first flag that train.py and Hydra do not have; Hydra also takes the start of one."""
    known = (*SWEEP_FLAGS, *FLAGS_WITH_VALUE, *OTHER_FLAGS)
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("-") and not any(name == flag or ("--" in flag and name.startswith(flag)) for name in known):
            raise InputError(
                f"{train_command()} does not know {flag}: its settings are overrides, key=value, such as "
                "data.root=DIR trainer.max_epochs=20; --help lists them"
            )


def to_overrides(words: Sequence[str]) -> list[str]:
    """The words of a command line as Hydra reads them; flags stay.

    - A folder or a table without a key, such as `DIR`, becomes `data=folder data.root=DIR`, or the published data set
      that is recognised in it; one line says which.
    - The values of `PATH_KEYS` and `TEXT_KEYS` are text, whatever they look like; a leading `~` of a path is the home
      folder. Values in quotes are Hydra's syntax, as before. With `-m`, commas separate values, except in quotes and
      in the name of an existing file.

    Raises:
        InputError: a word that is neither an override nor a path, or a second data set.
    """
    overrides, sources = [], []
    for position, word in enumerate(words):
        if word.startswith("-") or (position and words[position - 1] in FLAGS_WITH_VALUE):
            overrides.append(word)
        elif _is_source(word):
            sources.append(word)
        else:
            overrides.append(_literal_override(word, is_sweep=any(flag in words for flag in SWEEP_FLAGS)))
    return overrides + (_source_overrides(sources, overrides) if sources else [])


def quote(text: str) -> str:
    """The text in quotes for Hydra; it and OmegaConf read it as the very same text."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # no interpolation
    text = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{text}'"


def split_override(word: str) -> tuple[str, str] | None:
    """Key and value of an override, without a leading `+`; None for other words."""
    match = _OVERRIDE.fullmatch(word)
    return (match[2], match[3]) if match else None


def _is_source(word: str) -> bool:
    """Whether a word is a path and no override: `x=y` is one, `./x=y` is not; `~key` deletes a key."""
    is_path = word.startswith(("/", "./", "../", "~/", ".\\", "..\\")) or os.path.isabs(word)
    return is_path or ("=" not in word and not word.startswith("~"))


def _source_overrides(sources: Sequence[str], overrides: Sequence[str]) -> list[str]:
    missing = [source for source in sources if not os.path.exists(os.path.expanduser(source))]
    if missing:
        hint = ", without spaces around =" if any(word.startswith("=") for word in overrides) else ""
        raise InputError(
            f"{', '.join(map(repr, missing))} {'is no override' if len(missing) == 1 else 'are no overrides'}: an "
            f"override is key=value{hint}; and there is no such folder of videos or CSV table"
        )
    given = dict(pair for pair in map(split_override, overrides) if pair)
    taken = [key for key in ("data.root", "data.path", "resume") if key in given]
    if len(sources) > 1 or taken:
        others = [*sources[1:], *(f"{key}={given[key]}" for key in taken)]
        raise InputError(f"{sources[0]} and {', '.join(others)}: name one data set")
    path = Path(os.path.expanduser(sources[0]))  # not Path.expanduser, which fails for `~x` without a user x
    if "data" in given:
        key = "data.path" if given["data"] == "manifest" else "data.root"
        return [f"{key}={_literal_value(key, str(path))}"]
    choice, key, path, reason = recognize(path)
    if os.environ.get("RANK", "0") == "0":
        show(f"{visible(sources[0])}: data={choice}, {reason}", file=sys.stderr)
    return [f"data={choice}", f"{key}={_literal_value(key, str(path))}"]


def _literal_override(word: str, *, is_sweep: bool) -> str:
    if word == "logger=null":
        return "logger=none"
    match = _OVERRIDE.fullmatch(word)
    if not match or match[2] not in (*PATH_KEYS, *TEXT_KEYS):
        return word
    prefix, key, value = match.groups()
    if is_sweep and not _exists(value) and not _QUOTED.fullmatch(value):
        if _SWEEP_FUNCTION.fullmatch(value) or "'" in value or '"' in value:
            return word
        values = value.split(",")
    else:
        values = [value]
    return f"{prefix}{key}={','.join(_literal_value(key, value) for value in values)}"


def _literal_value(key: str, value: str) -> str:
    is_interpolated = key.startswith("hydra.") and "${" in value  # outputs/${now:%Y-%m-%d}
    if not value or is_interpolated or (value == "null" and key in NULLABLE):
        return value
    if _QUOTED.fullmatch(value) and not _exists(value):
        return value
    if key in PATH_KEYS:
        value = os.path.expanduser(value)
    if value == "???":  # a value that is missing, for OmegaConf
        value = "./???"
    return value if _PLAIN.fullmatch(value) else quote(value)


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(os.path.expanduser(path))
    except ValueError:
        return False
