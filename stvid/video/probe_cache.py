"""The file in which `probe_all` keeps its results: JSON, a line for each video, appended when it has been probed.

The first line names the versions of this code and of FFmpeg; another version of either starts a new file. A later line
about a video replaces an earlier one. What a line says is checked when it is needed: others may write the file, too.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from stvid.checks import fields, flag, list_of, maybe, number, parse_json, read_file, text
from stvid.files import replacing
from stvid.video.types import AV_VERSION, MAX_IMAGES, VideoInfo

log = logging.getLogger(__name__)
MAX_BYTES = 2**31  # of the file; a video takes about 250
HEAD = json.dumps({"stvid_probe": 8, "av": AV_VERSION}).encode()
ERRORS = (ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError)

_SIZE, _WHOLE = number(1, 2**31, whole=True), number(0, 2**53, whole=True)


def _frame_numbers(value: Any, place: str) -> None:
    """As `list_of(_WHOLE)`; the lists of a large data set have millions of numbers, most of them good."""
    if (
        type(value) is not list
        or not {*map(type, value)} <= {int}
        or (value and not 0 <= min(value) <= max(value) < 2**53)
    ):
        list_of(_WHOLE)(value, place)


_INFO = fields(  # what a line leaves out has its default
    {
        "num_frames": _SIZE,
        "fps": number(1e-6, 1e6),
        "duration": number(0),
        "height": _SIZE,
        "width": _SIZE,
        "codec": text(),
    },
    optional={
        "pixel_format": text(),
        "rotation": number(0, 359, whole=True),
        "mirrored": flag,
        "keyframes": _frame_numbers,
        "first_pts": maybe(number(whole=True)),
        "timestamps": maybe(list_of(number())),
        "start": number(),
        "num_damaged": _WHOLE,
        "decoded": flag,
        "b_frames_in_order": flag,
        "identity": text(),
    },
)
_DEFAULTS = {
    field.name: field.default for field in dataclasses.fields(VideoInfo) if field.default is not dataclasses.MISSING
}


class ProbeCache:
    """The results of earlier calls, and the new ones that are still to be written.

    Args:
        path: the file; None: nothing is kept.
    """

    def __init__(self, path: Path | None):
        self.path, self.num_bad = path, 0
        self._lines: dict[str, bytes] = {}  # absolute path -> the rest of its line
        self._new: list[bytes] = []
        self._is_new_file = False  # the next `save` writes all lines, not only the new ones
        if path is not None:
            self._read(path)

    def __len__(self) -> int:
        return len(self._lines)

    def get(self, name: str, identity: list) -> VideoInfo | None:
        """What is known about a file, by its absolute path, if it still has this `file_identity`."""
        line = self._lines.get(name)
        if line is None:
            return None
        try:
            known, values = parse_json(line)
            return to_info(values) if known == identity else None
        except ERRORS as error:
            self._warn(error)
            return None

    def add(self, name: str, identity: list, info: VideoInfo) -> None:
        """Adds a result, which `save` will write."""
        self._lines[name] = json.dumps([identity, to_values(info)]).encode()
        self._new.append(_line(name, self._lines[name]))

    def include(self, other: ProbeCache, *, names: Iterable[str] | None = None) -> None:
        """Adds results of another file, which `save` will write; they replace earlier ones.

        Args:
            other: the other file.
            names: absolute paths; only their results are added. None: all.
        """
        for name in list(other._lines) if names is None else names:
            rest = other._lines.get(name)
            if rest is not None and self._lines.get(name) != rest:
                self._lines[name] = rest
                self._new.append(_line(name, rest))

    def save(self) -> None:
        """Appends the new results, at once: other processes may do the same. A file of another version is replaced."""
        if self.path is None or not self._new:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._is_new_file or not _has_head(self.path):
                with replacing(self.path) as partial, partial.open("wb") as file:
                    file.writelines([HEAD, b"\n", *(_line(name, line) for name, line in self._lines.items())])
            else:
                with self.path.open("ab") as file:
                    file.write(b"".join(self._new))
        except OSError as error:
            log.warning("probe cache %s cannot be written, the next run probes again: %s", self.path, error)
        self._is_new_file, self._new = False, []

    def _read(self, path: Path) -> None:
        try:
            head, _, content = read_file(path, max_bytes=MAX_BYTES).partition(b"\n")
        except FileNotFoundError:
            return
        except (OSError, MemoryError) as error:
            self._warn(error)
            return
        if head != HEAD:
            if not head.startswith(HEAD[:16]):
                self._warn("it has another first line")
            return
        lines = content.splitlines()
        for line in lines:
            name, _, rest = line.partition(b"\t")
            try:
                self._lines[json.loads(name)] = rest
            except ERRORS as error:  # for example the end of a line that was not written completely
                self._warn(error)
        # lines that are replaced by later ones; an incomplete last line, to which nothing must be appended
        is_torn = bool(content) and not content.endswith(b"\n")
        self._is_new_file |= is_torn or len(lines) > 2 * len(self._lines)

    def _warn(self, error: object) -> None:
        if not self.num_bad:
            log.warning("probe cache %s cannot be used everywhere, and is mended: %s", self.path, error)
        self.num_bad += 1
        self._is_new_file = True


def _line(name: str, rest: bytes) -> bytes:
    return json.dumps(name).encode() + b"\t" + rest + b"\n"


def _has_head(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.readline(len(HEAD) + 1) == HEAD + b"\n"
    except FileNotFoundError:
        return False


def to_values(info: VideoInfo) -> dict[str, Any]:
    """The properties of a video as plain data, without those that have their default."""
    return {key: value for key, value in dataclasses.asdict(info).items() if value != _DEFAULTS.get(key, ...)}


def to_info(values: dict) -> VideoInfo:
    """What `to_values` has written. Raises one of `ERRORS` for a value that `probe` cannot have measured."""
    _INFO(values, "an entry")
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for key in ("codec", "pixel_format"):  # one text for all videos
        plain[key] = sys.intern(plain.get(key, ""))
    info = VideoInfo(**plain)
    if not _is_possible(info):
        raise ValueError("the properties of a video contradict each other")
    return info


def _is_possible(info: VideoInfo) -> bool:
    """Whether properties fit each other: a frame takes a byte at least, has one time, and is a keyframe once."""
    timestamps, keyframes = info.timestamps, info.keyframes
    return (
        info.num_frames <= (info.num_bytes or MAX_IMAGES)
        and abs(info.duration * info.fps - info.num_frames) < 1e-6 * info.num_frames
        and info.rotation in (0, 90, 180, 270)
        and (timestamps is None or (len(timestamps) == info.num_frames and timestamps[0] == 0))
        and (timestamps is None or all(a <= b for a, b in pairwise(timestamps)))
        and list(keyframes) == sorted({*keyframes})
        and max(keyframes, default=0) < info.num_frames
        and (not keyframes or (keyframes[0] == 0 and info.first_pts is not None))
    )
