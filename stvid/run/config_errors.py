"""Mistakes in overrides and configs as messages for the user, in place of the errors of Hydra and OmegaConf."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterator

from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from stvid.errors import InputError, nearest
from stvid.run.config_help import choices_of, config_keys
from stvid.run.folder import project_root


@contextlib.contextmanager
def hydra_errors_as_input_errors() -> Iterator[None]:
    """Raises InputError for errors of Hydra and OmegaConf about the user's config; their other errors pass through."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises errors instead of printing them
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        if not _is_users_mistake(error):
            raise
        raise InputError(config_message(error)) from error


def _is_users_mistake(error: Exception) -> bool:
    """Whether an error of Hydra's is about the config. An error inside of a constructor may be a bug of ours."""
    if not isinstance(error, InstantiationException) or isinstance(error.__cause__, InputError):
        return True
    return "Trainer" in str(error) or "unexpected keyword argument" in str(error)


def config_message(error: Exception) -> str:
    """The message for the user: that of an InputError inside, else one for a known kind of error, else Hydra's own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__
    text = str(error)
    if match := re.match(r"InputError raised while resolving interpolation: (.*)", text):
        return match[1]
    if match := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        return several_values_message(*match.groups())
    if isinstance(error, OverrideParseException):
        return _parse_message(text)
    match = re.search(r"Could not find '([\w/]+)/([^']+)'", text)
    if match and (project_root() / "configs" / match[1]).is_dir():
        return unknown_choice_message(*match.groups())
    if match := re.search(r"(?:Could not override|Key) '([^']+)'", text):
        return unknown_key_message(match[1])
    return text.replace("\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.", "")


def several_values_message(key: str, value: str) -> str:
    return f"{key}={value}: several values need -m, a run for each; a list is {key}=[{value}]"


def _parse_message(text: str) -> str:
    """Hydra's parser failed on an override."""
    if match := re.search(r"Error parsing override '([^'=]*)'", text):
        return f"{match[1]!r} is no override: an override is key=value"
    reason = text.splitlines()[0].removeprefix("LexerNoViableAltException: ")
    return f"{reason}. A value with special characters needs two pairs of quotes: \"key='value'\""


def unknown_choice_message(group: str, choice: str) -> str:
    choices = choices_of(group)
    close = difflib.get_close_matches(choice, choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{group}={choice}: there is no such choice; {hint}There is: {', '.join(choices)}"


def unknown_key_message(key: str) -> str:
    if key in config_keys():
        group = key.split(".")[0]
        return f"{key} is no key of the {group} that is chosen; another {group}=... has it"
    return f"unknown config key {key}{nearest(key, config_keys())}"
