"""What a live source needs beside its frames: a stream, its pace, and the label. No I/O, and no call of the model.

K classes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from stvid.deploy.pace import Pace
from stvid.deploy.segments import UNKNOWN
from stvid.deploy.steady_label import SteadyLabel
from stvid.deploy.stream import Stream, default_hop
from stvid.inference import ModelRunner
from stvid.models.cnn_lstm import CNNLSTM
from stvid.run.checkpoint import TrainedModel


def live_hop(trained: TrainedModel, fps: float, *, windows: bool = False) -> int | None:
    """`hop` of the `Stream` for a source that does not end; None: its own choice.

    A carried state that pools all frames since the start hardly changes its answers after some minutes. Such a model
    reads windows instead, if its clips have a length.

    Args:
        trained: the model.
        fps: frames per second of the source.
        windows: the model reads windows in any case.
    """
    model = trained.model
    pools_all = isinstance(model, CNNLSTM) and any(branch.pooling.kind != "last" for branch in model.branches)
    return default_hop(trained.clip, fps) if windows or (pools_all and trained.clip.num_frames is not None) else None


class LiveStream:
    """The state of one live source: a camera of `stvid stream`, or a socket of `stvid serve`.

    For each frame, call `repetitions`, give the frame to `stream` so often, and each of its answers to `answer`:

        for _ in range(live.repetitions(seconds)):
            if (probabilities_K := live.stream.push(frame)) is not None:
                live.answer(probabilities_K, seconds)

    Args:
        trained, fps, runner, start: see `Stream`.
        label: turns probabilities into a label.
        waits: the source waits for the model, which gets every frame once; else `Pace` chooses the frames.
        windows: the model reads windows in any case.

    Attributes:
        stream: what the model has seen.
        pace: how fast the model is.
        latest: a class, or `segments.UNKNOWN`, and its probability in [0, 1]; `(None, 0.0)` before the first answer.
        restarts: how often the model forgot all frames.
    """

    def __init__(
        self,
        trained: TrainedModel,
        *,
        fps: float,
        label: SteadyLabel,
        runner: ModelRunner,
        waits: bool,
        windows: bool = False,
        start: Callable[[], Any] | None = None,
    ):
        self.label, self.waits = label, waits
        self.latest: tuple[str | None, float] = (None, 0.0)
        self.restarts = 0
        self._new_stream = lambda hop: Stream(trained, fps=fps, runner=runner, hop=hop, start=start)
        self.fps = fps
        self.use_hop(live_hop(trained, fps, windows=windows))

    def use_hop(self, hop: int | None) -> None:
        """A new stream with this `hop`, and a new pace; the label stays."""
        self.stream = self._new_stream(hop)
        self.pace = Pace(self.fps, period=self.stream.hop or 1)

    def repetitions(self, seconds: float) -> int:
        """How often the model gets the frame of this time. After a gap, the stream restarts."""
        times = 1 if self.waits else self.pace.repetitions(seconds)
        if times is None:
            self.restart()
            return 1
        return times

    def answer(self, probabilities_K: Tensor, seconds: float) -> None:
        """Takes note of what the model says after the frame of this time."""
        self.latest = self.label.update(probabilities_K, seconds)

    def restart(self) -> None:
        """Forgets all frames, and the label."""
        self.stream.restart()
        self.restarts += 1
        self.forget()

    def forget(self) -> None:
        """The label is unknown until the next answer, if there was one."""
        self.label.reset()
        if self.latest[0] is not None:
            self.latest = (UNKNOWN, 0.0)
