"""The label of a live source: it changes only when a new one has lasted.

K classes
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from stvid.deploy.segments import UNKNOWN, Hysteresis


class SteadyLabel:
    """The label over time: `Hysteresis`, and a new label counts only after it has lasted.

    Args:
        class_names: names of the K classes.
        threshold: see `Hysteresis`.
        min_duration: seconds that a new label must last before it replaces the old one.
        background: classes that mean that nothing happens; they become `UNKNOWN`.
    """

    def __init__(
        self, class_names: Sequence[str], *, threshold: float, min_duration: float, background: Collection[str] = ()
    ):
        self.class_names, self.background, self.min_duration = class_names, background, min_duration
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        """Forgets what was before."""
        self.hysteresis = Hysteresis(self.threshold)
        self.label: str | None = None
        self.newest_label, self.newest_since = "", 0.0  # of the hysteresis, whether it has lasted or not

    def update(self, probabilities_K: Tensor, seconds: float) -> tuple[str, float]:
        """The label after the probabilities of this time, and the probability of its class (unknown: the highest)."""
        index = self.hysteresis.update(probabilities_K.numpy())
        label = UNKNOWN if index is None or self.class_names[index] in self.background else self.class_names[index]
        if label != self.newest_label:
            self.newest_label, self.newest_since = label, seconds
        if self.label is None or seconds - self.newest_since >= self.min_duration:
            self.label = label
        known = self.class_names.index(self.label) if self.label in self.class_names else None
        return self.label, float(probabilities_K.max() if known is None else probabilities_K[known])
