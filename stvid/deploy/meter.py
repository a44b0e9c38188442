"""The speed of live recognition: frames per second and latency."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

RECENT = 5.0  # seconds over which `Meter.fps` and `Meter.latency_ms` are measured


class Meter:
    """Frames per second, and latency: from the arrival of a frame to the answer, in milliseconds."""

    def __init__(self) -> None:
        self.num_frames, self.total_ms = 0, 0.0
        self.recent: deque[tuple[float, float]] = deque()  # when the answer came, latency
        self.latest_ms: deque[float] = deque(maxlen=10_000)
        self.first = self.latest = time.monotonic()

    def add(self, arrived: float) -> None:
        """Counts a frame whose answer is there now."""
        now = time.monotonic()
        latency_ms = 1000 * (now - arrived)
        self.first, self.latest = now if not self.num_frames else self.first, now
        self.num_frames += 1
        self.total_ms += latency_ms
        self.recent.append((now, latency_ms))
        self.latest_ms.append(latency_ms)
        self._drop_old()  # also if nobody asks for the latest speed

    def _drop_old(self) -> None:
        while self.recent and self.recent[0][0] < time.monotonic() - RECENT:
            self.recent.popleft()

    @property
    def fps(self) -> float:
        """Frames per second over the last seconds."""
        self._drop_old()
        if len(self.recent) < 2:
            return 0.0
        return (len(self.recent) - 1) / (self.recent[-1][0] - self.recent[0][0] or 1e-3)

    @property
    def mean_fps(self) -> float:
        """Frames per second since the first frame."""
        return max(self.num_frames - 1, 0) / (self.latest - self.first or 1e-3)

    @property
    def latency_ms(self) -> float | None:
        """Mean over the last seconds; None without a frame."""
        self._drop_old()
        return sum(latency for _, latency in self.recent) / len(self.recent) if self.recent else None

    @property
    def mean_ms(self) -> float:
        """Mean over all frames."""
        return self.total_ms / max(self.num_frames, 1)

    @property
    def percentile_95_ms(self) -> float:
        """95 % of the last 10,000 frames have at most this latency."""
        return float(np.percentile(self.latest_ms, 95)) if self.latest_ms else 0.0
