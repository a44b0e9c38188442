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

from stvid.checks import read_file
from stvid.files import replacing
from stvid.video.types import AV_VERSION, MAX_IMAGES, VideoInfo

log = logging.getLogger(__name__)
MAX_BYTES = 2**31  # of the file; a video takes about 250
HEAD = json.dumps({"stvid_probe": 9, "av": AV_VERSION}).encode()
ERRORS = (ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError, OverflowError)

_NUMBER = frozenset((int, float))
_MAX_SIZE, _MAX_TICKS, _MAX_SECONDS = 2**31, 2**63, 2**53
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
            known, values = json.loads(line)
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
    """What `to_values` has written. Raises one of `ERRORS` for values that `probe` cannot have measured."""
    plain: dict[str, Any] = {key: tuple(value) if type(value) is list else value for key, value in values.items()}
    for key in ("codec", "pixel_format"):  # one text for all videos
        plain[key] = sys.intern(plain.get(key, ""))
    info = VideoInfo(**plain)
    if not (_has_types(info) and _is_possible(info)):
        raise ValueError("properties that no video has")
    return info


# Both are called for each video of a large data set before training starts, so they are written out.
def _has_types(info: VideoInfo) -> bool:
    timestamps = info.timestamps or ()
    return (
        type(info.num_frames) is type(info.height) is type(info.width) is int
        and type(info.rotation) is type(info.num_damaged) is int
        and (info.first_pts is None or type(info.first_pts) is int)
        and {type(info.fps), type(info.duration), type(info.start)} <= _NUMBER
        and type(info.mirrored) is type(info.decoded) is type(info.b_frames_in_order) is bool
        and info.codec.isascii()
        and info.pixel_format.isascii()
        and info.identity.isascii()
        and type(info.keyframes) is tuple
        and {*map(type, info.keyframes)} <= {int}
        and type(timestamps) is tuple
        and {*map(type, timestamps)} <= _NUMBER
    )


def _is_possible(info: VideoInfo) -> bool:
    """Whether properties fit each other: a frame takes a byte at least, has one time, and is a keyframe once.

    Comparisons are false for NaN, and numbers of any size are compared before they are calculated with.
    """
    num_frames, timestamps, keyframes = info.num_frames, info.timestamps, info.keyframes
    return (
        1 <= num_frames <= (info.num_bytes or MAX_IMAGES)
        and 1 <= info.height < _MAX_SIZE
        and 1 <= info.width < _MAX_SIZE
        and 1e-6 <= info.fps <= 1e6
        and 0 < info.duration < _MAX_SECONDS
        and abs(info.duration * info.fps - num_frames) < 1e-6 * num_frames
        and abs(info.start) < _MAX_SECONDS
        and abs(info.first_pts or 0) < _MAX_TICKS
        and info.rotation in (0, 90, 180, 270)
        and 0 <= info.num_damaged <= num_frames
        and (timestamps is None or _are_times(timestamps, num_frames))
        and (not keyframes or (keyframes[0] == 0 and keyframes[-1] < num_frames and info.first_pts is not None))
        and all(a < b for a, b in pairwise(keyframes))
    )


def _are_times(timestamps: tuple[float, ...], num_frames: int) -> bool:
    return (
        len(timestamps) == num_frames
        and timestamps[0] == 0
        and all(a <= b for a, b in pairwise(timestamps))
        and timestamps[-1] < _MAX_SECONDS
    )
