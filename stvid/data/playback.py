"""The same video played in another way, to see what a model makes of time: index arithmetic, no pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PLAYBACKS = ("normal", "frozen", "shuffled", "reversed", "half_speed", "double_speed")
SPEEDS = {"half_speed": 0.5, "double_speed": 2.0}


def check_playback(playback: str) -> None:
    """Raises ValueError unless it is one of PLAYBACKS."""
    if playback not in PLAYBACKS:
        raise ValueError(f"playback (={playback!r}) must be one of {', '.join(PLAYBACKS)}")


def speed_of(playback: str) -> float:
    """How many times faster than the video itself."""
    return SPEEDS.get(playback, 1.0)


def at_speed(frames: Sequence[int], playback: str) -> Sequence[int]:
    """A video's frames as they follow on one another: at half speed each twice, at double speed every other one."""
    if playback == "half_speed":
        return [frame for frame in frames for _ in range(2)]
    return frames[::2] if playback == "double_speed" else frames


def rearranged(indices: list[int], playback: str, rng: np.random.Generator) -> list[int]:
    """A clip's frames: reversed, shuffled, or its middle one all the time (`frozen`)."""
    if playback == "reversed":
        return indices[::-1]
    if playback == "shuffled":
        return [indices[i] for i in rng.permutation(len(indices))]
    if playback == "frozen":
        return [indices[len(indices) // 2]] * len(indices)
    return indices
