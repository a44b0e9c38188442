"""Settings of a sweep, and the file in its folder that keeps them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from stvid import checks
from stvid.checks import read_file
from stvid.errors import InputError, nearest
from stvid.files import replacing
from stvid.run.config_help import config_groups
from stvid.run.folder import RunFolder
from stvid.run.parameters import CHOICES, mistake
from stvid.run.stored import MAX_BYTES, RESERVED, check_yaml

CHANGEABLE = ("trials", "parallel", "retry_failed")  # when a sweep resumes; other changes would make another sweep

SWEEP = checks.fields({"overrides": checks.list_of(checks.text()), "settings": checks.dict_of(checks.anything)})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The keys below `sweep`.

    Attributes:
        method: grid (every combination), random, or optuna (TPE: learns from the finished trials).
        trials: number of trials in all, at least 1; None: all of a grid.
        parallel: trials that the launcher gets at once, at least 1.
        seed: of the random values, at least 0.
        pruner: none, median or halving: the rule that stops a trial early. Must be none for a grid.
        startup_trials: first trials; they are drawn at random and never stopped early. At least 0.
        warmup_epochs: epochs that every trial trains before it can be stopped, at least 1.
        retry_failed: run the failed trials of a grid again.

    Raises:
        InputError: a value out of its range, with the allowed values.
    """

    method: str = "grid"
    trials: int | None = None
    parallel: int = 1
    seed: int = 0
    pruner: str = "none"
    startup_trials: int = 5
    warmup_epochs: int = 3
    retry_failed: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            if message := mistake(f"sweep.{field.name}", getattr(self, field.name)):
                raise InputError(message)
        if self.trials is None and self.method != "grid":
            raise InputError("sweep.trials (=null) must be a whole number, at least 1; only a grid can go without")
        if not isinstance(self.retry_failed, bool):
            raise InputError(f"sweep.retry_failed (={self.retry_failed}) must be true or false")
        if self.method == "grid" and self.pruner != "none":
            methods = ", ".join(str(name) for name in CHOICES["sweep.method"] if name != "grid")
            raise InputError(f"sweep.pruner (={self.pruner}): a grid stops no trial early; use sweep={methods}")
        if self.method != "grid" and self.retry_failed:
            raise InputError("sweep.retry_failed works with sweep=grid only; otherwise set a higher sweep.trials")


def read_settings(values: Mapping[str, object]) -> Settings:
    """Raises InputError for an unknown key, or a value out of its range."""
    known = [field.name for field in fields(Settings)]
    for key in values:
        if key not in known:
            raise InputError(f"unknown config key sweep.{key}{nearest(str(key), known)}")
    return Settings(**values)  # type: ignore[arg-type] # it checks the types itself


def resolve_sweep(folder: Path, command_line: Sequence[Override], settings: Settings) -> tuple[list[str], Settings]:
    """The overrides and settings of a new sweep, or those of the sweep in the folder, which resumes.

    Args:
        folder: of the sweep.
        command_line: all overrides but those of Hydra's own keys.
        settings: the `sweep` section of the config.

    Raises:
        InputError: the folder holds a sweep with other overrides or settings; `resume` together with other overrides;
            a key of `sweep` with several values.
    """
    of_settings = [override for override in command_line if override.key_or_group.partition(".")[0] == "sweep"]
    for override in of_settings:
        if override.is_sweep_override():
            raise InputError(f"{override.input_line}: a setting of the sweep cannot have several values")
    resume = [str(override.input_line) for override in command_line if override.key_or_group == "resume"]
    overrides = [
        str(override.input_line)
        for override in command_line
        if override not in of_settings and override.key_or_group != "resume"
    ]
    if not RunFolder(folder).is_sweep:
        if resume:
            name = RunFolder(folder).sweep_yaml.name
            raise InputError(f"{resume[0]}: the folder has no {name}, so it is no sweep. Resume a run without -m")
        return overrides, settings
    stored_overrides, stored_settings = read_sweep(folder)
    if resume and overrides:
        raise InputError(f"{resume[0]} uses the sweep's own overrides; leave out {' '.join(overrides)}")
    if not resume and overrides != stored_overrides:
        raise InputError(
            f"{folder} holds a sweep with other overrides: {' '.join(stored_overrides)}. "
            f"Resume it (-m resume={folder}), or choose another hydra.sweep.dir"
        )
    if resume:
        _check_no_code(stored_overrides, folder)
    named = {override.key_or_group.partition(".")[2] or "method" for override in of_settings}
    keys = [field.name for field in fields(Settings) if not resume or field.name in named]
    return stored_overrides, merge_settings(stored_settings, settings, keys, folder)


def _check_no_code(overrides: Sequence[str], folder: Path) -> None:
    """Raises InputError if overrides read from a file may choose the code to run; a command line may do that."""
    groups = config_groups()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, line = override.key_or_group, str(override.input_line)
        # of a group, only the shipped choices: a path may lead to any file
        is_choice = key not in groups or not re.search(r"[/\\]", line)
        is_data = RESERVED.search(line) is None and "${" not in line and not override.package
        if not (is_choice and is_data) or key == "trust" or re.match(r"hydra\b", key) or "/" in key:
            raise InputError(
                f"{RunFolder(folder).sweep_yaml} chooses the code to run: {line}. To resume, repeat the command "
                f"that started the sweep, with hydra.sweep.dir={folder}"
            )


def merge_settings(stored: Settings, settings: Settings, keys: Sequence[str], folder: Path) -> Settings:
    """The settings that a sweep was started with, changed where `keys` may change.

    Raises:
        InputError: one of `keys` differs and may not change.
    """
    for key in keys:
        old, new = getattr(stored, key), getattr(settings, key)
        if key not in CHANGEABLE and old != new:
            raise InputError(
                f"sweep.{key} (={new}): {folder} holds a sweep started with {old}. "
                f"Leave it out, or choose another hydra.sweep.dir. These may change: {', '.join(CHANGEABLE)}"
            )
    return replace(stored, **{key: getattr(settings, key) for key in keys if key in CHANGEABLE})


def read_sweep(folder: Path) -> tuple[list[str], Settings]:
    """Overrides and settings of the sweep in a folder.

    Raises:
        InputError: the file is damaged.
    """
    file = RunFolder(folder).sweep_yaml
    try:
        content = read_file(file, max_bytes=MAX_BYTES).decode("utf-8")
        check_yaml(content)
        stored = yaml.safe_load(content)
        SWEEP(stored, file.name)
        return stored["overrides"], read_settings(stored["settings"])
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{file} is damaged or was changed: {reason}. Start the sweep again in another folder"
        ) from error


def write_sweep(folder: Path, overrides: Sequence[str], settings: Settings) -> None:
    """Writes what `read_sweep` reads. `retry_failed` is not kept: it applies once."""
    stored = {"overrides": list(overrides), "settings": asdict(replace(settings, retry_failed=False))}
    with replacing(RunFolder(folder).sweep_yaml) as partial:
        partial.write_text(yaml.safe_dump(stored, sort_keys=False, allow_unicode=True), encoding="utf-8")
