"""What probing found, kept in a JSON file so that it is paid once: by absolute path, size and time of change."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

import av

from stvid.files import replacing
from stvid.video.info import VideoInfo

logger = logging.getLogger(__name__)

# Facts depend on this code and on FFmpeg: another version of either begins a new cache.
AV_VERSION = av.__version__
_HEAD = {"stvid_probe": 3, "av": AV_VERSION}

Known = dict[str, tuple[list, VideoInfo]]  # absolute path -> ([size, mtime_ns], facts)


def identity(path: str | os.PathLike[str]) -> list:
    """Size (bytes) and time of change (ns), of a folder what tells of all its files: facts hold while it is the same.

    Raises:
        OSError: it cannot be looked at.
    """
    if not os.path.isdir(path):
        status = os.stat(path)
        return [status.st_size, status.st_mtime_ns]
    files = sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in os.scandir(path))
    return [sum(size for _, size, _ in files), hashlib.sha256(repr(files).encode()).hexdigest()]


def load_probe_cache(cache: Path | None) -> Known:
    """What is known; nothing where there is no usable cache."""
    if cache is None:
        return {}
    try:
        content = json.loads(Path(cache).read_bytes())
        if content["head"] != _HEAD:
            return {}
        return {name: (key, _info(facts)) for name, (key, facts) in content["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("probe cache %s cannot be used and is begun anew: %s", cache, error)
        return {}


def _info(facts: dict) -> VideoInfo:
    return VideoInfo(**{key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()})


def save_probe_cache(cache: Path | None, fresh: Known) -> None:
    """Add to the cache, atomically: whoever reads it meanwhile, or writes it as well, never sees half of it."""
    if cache is None or not fresh:
        return
    cache = Path(cache)
    files = {name: (key, asdict(info)) for name, (key, info) in {**load_probe_cache(cache), **fresh}.items()}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache) as partial:
            partial.write_text(json.dumps({"head": _HEAD, "files": files}), encoding="utf-8")
    except OSError as error:
        logger.warning("probe cache %s cannot be written, the next start probes again: %s", cache, error)
