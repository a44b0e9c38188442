"""Whether an exported streaming form gives the answers of the model's own stream, step by step.

N streams   T frames   C channels   H, W height and width   K classes
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stvid.clip import ClipSpec
from stvid.export.clips import read_clips, synthetic_clips
from stvid.export.form import Form
from stvid.export.parity import BATCH_SIZES, Exported, Parity, compare, milliseconds
from stvid.export.stream_form import stream_metadata, stream_states
from stvid.inference import check_finite
from stvid.preprocess import Preprocess, as_input
from stvid.run.checkpoint import TrainedModel

NUM_FRAMES = 100  # of each stream, or as many as bring a few answers
MIN_ANSWERS = 4


def check_stream_parity(trained: TrainedModel, form: Form, exported: Exported) -> Parity:
    """Plays videos of the run's val split to a model and its exported streaming form, and compares their answers.

    The frames are those of one long clip of each video; a video that is too short stands still at its end. Where the
    run's videos have gone, they are synthetic.

    Args:
        trained: the model, on the CPU; it computes in float32, whatever the run's precision is.
        form: its `stream_form`.
        exported: runs the file.

    Returns:
        The largest difference of a probability after any frame, and the speed of one call (`timed_frames` frames).

    Raises:
        InputError: see `check_parity`; or one of the two has an answer where the other has none.
    """
    record = stream_metadata(form)
    period, number = record["period"], max(BATCH_SIZES)
    num_frames = period * max(NUM_FRAMES // period, (record["first"] - 1) // period + MIN_ANSWERS)
    pictures_NTCHW = read_clips(trained, "val", number=number, num_frames=num_frames)
    source = "synthetic videos" if pictures_NTCHW is None else "videos of the run's val split"
    if pictures_NTCHW is None:
        pictures_NTCHW = synthetic_clips(trained, number=number, num_frames=num_frames)
    model, file = ModelStream(trained), FileStream(form, exported)
    largest = 0.0
    for batch_size in BATCH_SIZES:
        model.restart()
        file.restart(batch_size)
        for start in range(0, num_frames, period):
            frames = _frames(pictures_NTCHW[:batch_size], trained.clip, start, period)
            place = f"frame {start + period} of a stream, batch {batch_size}, {source}"
            largest = max(largest, _compare(file.push(frames), model.push(frames), place=place))
    frames = _frames(pictures_NTCHW[:1], trained.clip, 0, period)
    model.restart()
    file.restart(1)
    of_model, of_file = milliseconds(lambda: model.push(frames), lambda: file.push(frames))
    return Parity(
        source=source,
        batch_sizes=BATCH_SIZES,
        num_frames=(num_frames,),
        max_difference=largest,
        timed_frames=period,
        milliseconds_model=of_model,
        milliseconds_file=of_file,
    )


def _frames(pictures_NTCHW: Tensor, clip: ClipSpec, start: int, number: int) -> Tensor:
    """Some frames of clips as `read_clips` returns them, in the same form."""
    parts = pictures_NTCHW.chunk(1 if clip.input == "rgb" else 2, dim=1)
    return torch.cat([part[:, start : start + number] for part in parts], dim=1)


def _compare(answer: Sequence[Tensor], expected_NK: Tensor | None, *, place: str) -> float:
    """The largest difference of a probability; without an answer, all are 0 and the flag of the file is not set."""
    actual_NK, *flag = answer
    for valid_N1 in flag:
        compare(valid_N1.float(), torch.full(valid_N1.shape, float(expected_NK is not None)), place=place)
    return compare(actual_NK, torch.zeros_like(actual_NK) if expected_NK is None else expected_NK, place=place)


class ModelStream:
    """Streams of one length in a batch, by the model's own step, in float32."""

    def __init__(self, trained: TrainedModel):
        self.trained, self.preprocess = trained, Preprocess(clip=trained.clip)
        self.restart()

    def restart(self) -> None:
        self.state = self.trained.model.start_stream(self.trained.clip.num_frames)

    @torch.inference_mode()
    def push(self, pictures_NTCHW: Tensor) -> Tensor | None:
        """Takes the next frames, as `read_clips` returns them; the last probabilities `N x K` that they brought."""
        clips_NTCHW = torch.stack([as_input(pictures_TCHW, self.trained.clip) for pictures_TCHW in pictures_NTCHW])
        answer_NK = None
        for frame_NCHW in self.preprocess(clips_NTCHW).unbind(2):
            logits_NK, self.state = self.trained.model.stream_step(frame_NCHW, self.state)
            if logits_NK is not None:
                check_finite(logits_NK, self.trained)
                answer_NK = (logits_NK / self.trained.temperature).softmax(dim=1)
        return answer_NK


class FileStream:
    """The same by an exported streaming form.

    Args:
        form: what the file holds.
        exported: runs it.
    """

    def __init__(self, form: Form, exported: Exported):
        self.form, self.exported = form, exported
        names = stream_states(form)
        self.pixels = [spec for spec in form.inputs if spec.name not in names]
        self.states = [spec for spec in form.inputs if spec.name in names]

    def restart(self, number: int) -> None:
        """Begins this many streams."""
        self.kept = [spec.zeros(batch=number) for spec in self.states]

    def push(self, pictures_NTCHW: Tensor) -> Sequence[Tensor]:
        """Takes the next frames, as `read_clips` returns them; all outputs but the states."""
        parts = pictures_NTCHW.permute(0, 1, 3, 4, 2).chunk(len(self.pixels), dim=1)
        frames = [part if len(self.pixels[0].shape) == part.ndim else part[:, 0] for part in parts]
        outputs = self.exported([*reversed(frames), *self.kept])  # of difference images, the earlier ones come second
        self.kept = list(outputs[len(outputs) - len(self.states) :])
        return outputs[: len(outputs) - len(self.states)]
