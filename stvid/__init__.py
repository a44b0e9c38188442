"""stvid: train, test, explain and deploy models that recognise actions in video.

    import stvid

    recognizer = stvid.load("RUN")
    print(recognizer.predict("video.mp4").top(3))

The names below are imported when they are first used, so that `import stvid` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stvid.cost.estimate import estimate
    from stvid.deploy.segments import Segment
    from stvid.deploy.stream import Stream
    from stvid.deploy.windows import Window
    from stvid.errors import InputError, VideoError
    from stvid.models.base import VideoModel
    from stvid.recognizer import Prediction, Recognizer, load
    from stvid.video.probe import probe
    from stvid.video.reader import read_frames
    from stvid.video.types import VideoInfo

__version__ = "0.1.0"

_MODULES = {
    "load": "stvid.recognizer",
    "Recognizer": "stvid.recognizer",
    "Prediction": "stvid.recognizer",
    "Stream": "stvid.deploy.stream",
    "Segment": "stvid.deploy.segments",
    "Window": "stvid.deploy.windows",
    "read_frames": "stvid.video.reader",
    "probe": "stvid.video.probe",
    "VideoInfo": "stvid.video.types",
    "estimate": "stvid.cost.estimate",
    "VideoModel": "stvid.models.base",
    "InputError": "stvid.errors",
    "VideoError": "stvid.errors",
}
__all__ = [
    "InputError", "Prediction", "Recognizer", "Segment", "Stream", "VideoError", "VideoInfo", "VideoModel", "Window",
    "estimate", "load", "probe", "read_frames",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'stvid' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
