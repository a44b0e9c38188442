"""Which frames of a live source a model gets, so that they are evenly spaced in time although some are lost."""

from __future__ import annotations

from collections import deque

MAX_GAP = 2.0  # seconds without a frame after which the model starts anew
_MEASURED = 64  # frames over which the model's speed is measured
_FIRST = 16  # frames before the first measurement counts: the very first ones are slow


class Pace:
    """Chooses how often each frame of a live source is given to a model.

    A model knows no times: it takes the frames that it gets for those of a video with `fps` frames/s. So frame number
    i of the stream must be of time `i / fps`, give or take one frame. A frame that was lost is replaced by the next
    one, which is then given twice; a frame too many is left out.

    A model that is too slow for that would fall behind ever more. It gets every frame number of a slower clock instead,
    `fps / slowdown`: evenly spaced frames, but a motion looks `slowdown` times as fast as it was.

    Args:
        fps: frames per second that the stream needs.
    """

    def __init__(self, fps: float):
        self.fps, self.slowdown = fps, 1.0
        self.start: float | None = None  # time of the stream's frame number 0
        self.number = 0  # of the next frame of the stream
        self.latest = 0.0
        self.spent: deque[tuple[float, int]] = deque(maxlen=_MEASURED)

    def count(self, seconds: float) -> int | None:
        """How often to give the model the frame of this time; None: once, after it was started anew (`MAX_GAP`)."""
        gap, self.latest = seconds - self.latest, seconds
        if self.start is None or gap > max(MAX_GAP, 2 / self.fps):
            is_first = self.start is None
            self.start, self.number = seconds, 1
            return 1 if is_first else None
        behind = (seconds - self.start) * self.fps / self.slowdown - self.number
        times = max(1 + int(behind + 1e-6), 0)
        self.number += times
        return times

    def measure(self, seconds: float, times: int) -> bool:
        """Takes note of the time that a frame cost which was given to the model `times` times.

        Returns:
            Whether `slowdown` has changed.
        """
        self.spent.append((seconds, times))
        given = sum(times for _, times in self.spent)
        if len(self.spent) < _FIRST or not given:
            return False
        load = sum(seconds for seconds, _ in self.spent) / given * self.fps
        if load >= self.slowdown or (self.slowdown > 1.0 and load < self.slowdown / 1.5):
            previous, self.slowdown = self.slowdown, max(1.0, 1.1 * load)  # 10 % in reserve
            self.spent.clear()
            self.start, self.number = self.latest, 1
            return self.slowdown != previous
        return False
