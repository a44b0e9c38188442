"""The JSON of the service's answers, for its OpenAPI description."""

from __future__ import annotations

from typing_extensions import NotRequired, TypedDict  # pydantic needs these before Python 3.12

ClassProbability = TypedDict("ClassProbability", {"class": str, "probability": float})
SegmentAnswer = TypedDict("SegmentAnswer", {"start": float, "end": float, "class": str, "probability": float})


class ErrorAnswer(TypedDict):
    """What is wrong, in one message."""

    detail: str


class PredictAnswer(TypedDict):
    """The most probable classes of a video; times in seconds."""

    path: str
    duration: float
    fps: float
    top: list[ClassProbability]
    probabilities: dict[str, float]


class WindowAnswer(TypedDict):
    """A part of a video; the probabilities are in the order of `class_names`."""

    start: float
    end: float
    probabilities: list[float]


class SegmentsAnswer(TypedDict):
    """What happens when in a video; times in seconds on its own clock, of which players show `clock_start` as 0."""

    path: str
    duration: float
    fps: float
    class_names: list[str]
    top: list[ClassProbability]
    probabilities: NotRequired[dict[str, float]]  # of the whole video; not if it breaks on the way
    segments: list[SegmentAnswer]
    threshold: float
    windows: NotRequired[list[WindowAnswer]]
    clock_start: NotRequired[float]  # with `windows`
    error: NotRequired[str]  # why the video could not be read to its end


class Limits(TypedDict):
    """What the service takes."""

    max_upload_bytes: int
    stream_mode: str | None


class ModelAnswer(TypedDict):
    """The model that answers."""

    name: str
    model: str
    class_names: list[str]
    clip: dict
    threshold: float
    fingerprint: str
    version: str
    limits: Limits
