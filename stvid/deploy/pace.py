"""Which frames of a live source a model gets, so that they are evenly spaced in time although some are lost."""

from __future__ import annotations

import math
from collections import deque

MAX_GAP = 2.0  # seconds without a frame after which the model starts anew
REPEAT_SECONDS = 0.1  # of the model's time, which the repetitions of one frame may take
RESERVE = 1.1  # a slow model gets so many times fewer frames than it can manage
SURPLUS = 1.5  # a model that manages so many times the frames that it gets is given more of them
_FIRST = 8  # frames that are not measured: the first ones are slow
_MEASURED = 4.0  # seconds of the stream over which the speed is measured, so that one slow moment does not count


class Pace:
    """Chooses how often each frame of a live source is given to a model.

    A model knows no times: it takes the frames that it gets for those of a video with `fps` frames/s. So frame number
    i of the stream must be that of the time `i / fps`, give or take one frame. A frame too many is left out. In place
    of a lost frame, the next one is given twice; where so many are lost that this would take too long, motion jumps.

    A model that needs longer than `1 / fps` for a frame would fall behind ever more. It gets the frames of a slower
    clock, `fps / slowdown`: they are evenly spaced, but motion looks `slowdown` times as fast as it is.

    Args:
        fps: frames per second that the stream needs.
        period: frames from one that takes long to the next, such as from window to window.

    Attributes:
        slowdown: at least 1; 1 where the model keeps up.
    """

    def __init__(self, fps: float, *, period: int = 1):
        self.fps, self.slowdown = fps, 1.0
        self.load: float | None = None  # time for a frame / time between two frames
        self.start: float | None = None  # time of the stream's frame number 0
        self.number = 0  # of the next frame of the stream
        self.latest = 0.0
        self.num_measured = 0
        self.period = period
        num_periods = math.ceil(max(round(_MEASURED * fps), 32, 4 * period) / period)
        self.spent: deque[tuple[float, int]] = deque(maxlen=num_periods * period)

    def repetitions(self, seconds: float) -> int | None:
        """How often to give the model the frame of this time; None: once, to a model that is started anew."""
        gap, self.latest = seconds - self.latest, seconds
        if self.start is None:
            return self._start()
        if gap > max(MAX_GAP, 2 / self.fps):
            self._start()
            return None
        behind = (seconds - self.start) * self.fps / self.slowdown - self.number
        times = max(1 + int(behind + 1e-6), 0)
        if times > 1 and (self.load is None or times * self.load > REPEAT_SECONDS * self.fps):
            return self._start()
        self.number += times
        return times

    def restart(self) -> None:
        """The stream's clock starts at the next frame. What was measured stays."""
        self.start = None

    def _start(self) -> int:
        """The stream's clock starts at the latest frame."""
        self.start, self.number = self.latest, 1
        return 1

    def measure(self, seconds: float, times: int) -> bool:
        """Takes note of the seconds that a frame took, which was given to the model `times` times.

        Returns:
            Whether `slowdown` has changed.
        """
        self.num_measured += 1
        if self.num_measured > _FIRST:
            self.spent.append((seconds, times))
        if len(self.spent) < (self.spent.maxlen or 0) / 2 or len(self.spent) % self.period:  # whole periods
            return False
        given = max(sum(times for _, times in self.spent), 1)
        self.load = sum(seconds for seconds, _ in self.spent) / given * self.fps
        if self.slowdown <= self.load or 1.0 < self.slowdown > SURPLUS * self.load:
            self.slowdown = max(RESERVE * self.load, 1.0)
            self.spent.clear()
            self._start()
            return True
        return False
