"""What a client says on the socket `/stream`: its first message, and its frames."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from stvid.checks import parse_json
from stvid.deploy.segmentation import check_classes, resolve_threshold
from stvid.errors import InputError, VideoError, nearest
from stvid.run.checkpoint import TrainedModel
from stvid.video.images import decode_jpeg

CLOSE_GOING_AWAY, CLOSE_POLICY_VIOLATION, CLOSE_TOO_LARGE, CLOSE_INTERNAL_ERROR, CLOSE_TRY_AGAIN_LATER = (
    1001,
    1008,
    1009,
    1011,
    1013,
)  # close codes, RFC 6455 7.4
FORMATS = ("jpeg", "rgb24")
MAX_FPS = 1000.0


class StreamError(Exception):
    """The socket is closed with a message.

    Args:
        detail: what the client reads.
        code: see `CLOSE_POLICY_VIOLATION` and those after it.
    """

    def __init__(self, detail: str, code: int = CLOSE_POLICY_VIOLATION):
        super().__init__(detail)
        self.detail, self.code = detail, code


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """The first message of a client.

    Attributes:
        fps: frames per second of the stream, above 0.
        format: `jpeg`: each frame is a JPEG; `rgb24`: the bytes of H x W x 3.
        size: width and height of all frames; needed for `rgb24`, and not used for `jpeg`.
        threshold: least probability at which a class begins, in (0, 1].
        min_duration: seconds that a new label must last.
        background: classes that mean that nothing happens.
        realtime: frames that come faster than answers are dropped; else each frame is answered.
    """

    fps: float
    format: str = "jpeg"
    size: tuple[int, int] | None = None
    threshold: float = 0.5
    min_duration: float = 0.3
    background: tuple[str, ...] = ()
    realtime: bool = True


def read_settings(text: str, trained: TrainedModel, *, max_frame: int) -> StreamSettings:
    """The settings in a first message; what is left out or null has its default.

    Args:
        text: JSON.
        trained: the model.
        max_frame: bytes of a frame.

    Raises:
        StreamError: no JSON object, a key that does not exist, a value of another type or out of range.
    """
    try:
        values = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise StreamError("the first message is no JSON, or has a key twice") from error
    names = tuple(StreamSettings.__dataclass_fields__)
    if not isinstance(values, dict):
        raise StreamError(f"the first message must be a JSON object, such as {json.dumps({'fps': 25})}")
    if unknown := sorted(set(values) - set(names)):
        raise StreamError(f"there is no key {unknown[0][:50]!r}{nearest(unknown[0][:50], names)}")
    given = {name: value for name, value in values.items() if value is not None}
    settings = {name: _CHECKS[name](value, name) for name, value in given.items()}
    if "fps" not in settings:
        raise StreamError('the first message must state the frames per second: {"fps": 25}')
    settings["threshold"], _ = resolve_threshold(trained, settings.get("threshold"))
    if settings.get("format") == "rgb24":
        _check_size(settings.get("size"), max_pixels=trained.max_pixels, max_frame=max_frame)
    try:
        check_classes(settings.get("background", ()), trained.class_names, option="background")
    except InputError as error:
        raise StreamError(str(error)) from error
    return StreamSettings(**settings)


def _check_size(size: tuple[int, int] | None, *, max_pixels: int, max_frame: int) -> None:
    if size is None:
        raise StreamError('frames of the format rgb24 need a size: {"size": [width, height]}')
    if size[0] * size[1] > max_pixels:
        raise StreamError(f"size {size[0]} x {size[1]}: more than {max_pixels} pixels")
    if 3 * size[0] * size[1] > max_frame:
        raise StreamError(
            f"size {size[0]} x {size[1]}: a frame may have {max_frame} bytes; send JPEGs", CLOSE_TOO_LARGE
        )


def _number(value: Any, name: str, *, low: float, high: float) -> float:
    if type(value) not in (int, float) or not low <= value <= high:
        raise StreamError(f"{name} must be a number from {low:g} to {high:g}")
    return float(value)


def _size(value: Any, name: str) -> tuple[int, int]:
    is_pair = isinstance(value, list) and len(value) == 2
    if not is_pair or not all(type(side) is int and 1 <= side <= 65535 for side in value):
        raise StreamError(f"{name} must be [width, height] in pixels")
    return value[0], value[1]


def _one_of(value: Any, name: str, *, choices: tuple) -> Any:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise StreamError(f"{name} must be one of {', '.join(map(json.dumps, choices))}")
    return value


def _names(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise StreamError(f"{name} must be a list of class names")
    return tuple(value)


_CHECKS = {
    "fps": lambda value, name: _number(value, name, low=0.01, high=MAX_FPS),
    "format": lambda value, name: _one_of(value, name, choices=FORMATS),
    "size": _size,
    "threshold": lambda value, name: _number(value, name, low=1e-6, high=1.0),
    "min_duration": lambda value, name: _number(value, name, low=0.0, high=3600.0),
    "background": _names,
    "realtime": lambda value, name: _one_of(value, name, choices=(True, False)),
}


def decode_frame(content: bytes, number: int, settings: StreamSettings, *, max_pixels: int) -> np.ndarray:
    """uint8 H x W x 3 of the frame with this number, counted from 0.

    Raises:
        StreamError: no JPEG, or a damaged one; another number of bytes than the announced size has; too many pixels.
    """
    if settings.format == "jpeg":
        try:
            return decode_jpeg(content, name=f"frame {number}", max_pixels=max_pixels)
        except VideoError as error:
            raise StreamError(f"frame {number}: {error.detail}") from error
    assert settings.size is not None
    width, height = settings.size
    if len(content) != 3 * width * height:
        announced = f"{width} x {height} x 3 = {3 * width * height}"
        raise StreamError(f"frame {number} has {len(content)} bytes, but {announced} were announced")
    return np.frombuffer(content, np.uint8).reshape(height, width, 3).copy()  # torch wants memory it may write to
