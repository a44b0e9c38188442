"""Whether an exported file gives the probabilities of the model that it was made of.

N clips   T frames   C channels   H, W height and width   K classes
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stvid.errors import InputError
from stvid.export.clips import clip_inputs, read_clips, synthetic_clips
from stvid.export.form import Form
from stvid.inference import check_finite
from stvid.preprocess import Preprocess, as_input, run_model
from stvid.run.checkpoint import TrainedModel

Exported = Callable[[Sequence[Tensor]], Sequence[Tensor]]  # an exported file: inputs -> outputs
TOLERANCE = 1e-4  # of a probability
TIE = 1e-6  # classes whose probabilities differ by less, which is rounding in float32, are equally probable
SYNTHETIC = "synthetic clips (the run's val videos cannot be read here)"
BATCH_SIZES = (1, 4)
NUM_FRAMES = (8, 40)  # T, where the form takes any
TIMED_FRAMES = 16  # T of the clips of the speed, where the model reads whole videos
MIN_RUNS, MAX_RUNS, MAX_SECONDS = 3, 20, 10.0  # of the speed


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Result of the comparison of an exported file with its model.

    Attributes:
        source: where the clips come from.
        batch_sizes, num_frames: N and T of the batches that were compared, in all combinations.
        max_difference: the largest difference of a probability, at most `TOLERANCE`.
        timed_frames: T of the clips below.
        milliseconds_model, milliseconds_file: per clip, the median of several runs of one clip, on the CPU with the
            same number of threads, in float32.
    """

    source: str
    batch_sizes: tuple[int, ...]
    num_frames: tuple[int, ...]
    max_difference: float
    timed_frames: int
    milliseconds_model: float
    milliseconds_file: float


def check_parity(trained: TrainedModel, form: Form, exported: Exported) -> Parity:
    """Runs a model and its exported clip form side by side, on clips of the run's val split.

    Where the run's videos have gone, the clips are synthetic. Where the form takes lengths, the clips of a batch have
    different ones, and the frames after them are not empty.

    Args:
        trained: the model, on the CPU; it computes in float32, whatever the run's precision is.
        form: its `clip_form`.
        exported: runs the file.

    Raises:
        InputError: a probability differs by more than `TOLERANCE`, or the most probable class of a clip; the model's
            outputs are not finite.
    """
    time_axis = form.inputs[0].shape[1]
    all_frames = (time_axis,) if isinstance(time_axis, int) else NUM_FRAMES
    takes_lengths = any(spec.name == "lengths" for spec in form.inputs)
    largest, source = 0.0, ""
    for num_frames in all_frames:
        pictures_NTCHW, source = _clips(trained, max(BATCH_SIZES), num_frames)
        for batch_size in BATCH_SIZES:
            batch = pictures_NTCHW[:batch_size]
            lengths_N = _lengths(batch_size, num_frames) if takes_lengths else None
            expected_NK = original(trained, batch, lengths_N)
            (actual_NK,) = exported(clip_inputs(form, batch, lengths_N))
            place = f"batch {batch_size}, {num_frames} frames, {source}"
            largest = max(largest, compare(actual_NK, expected_NK, place=place))
    timed_frames = all_frames[0] if len(all_frames) == 1 else trained.clip.num_frames or TIMED_FRAMES
    clip_1TCHW, _ = _clips(trained, 1, timed_frames)
    inputs = clip_inputs(form, clip_1TCHW)
    of_model, of_file = milliseconds(lambda: original(trained, clip_1TCHW), lambda: exported(inputs))
    return Parity(
        source=source,
        batch_sizes=BATCH_SIZES,
        num_frames=all_frames,
        max_difference=largest,
        timed_frames=timed_frames,
        milliseconds_model=of_model,
        milliseconds_file=of_file,
    )


@torch.inference_mode()
def original(trained: TrainedModel, pictures_NTCHW: Tensor, lengths_N: Tensor | None = None) -> Tensor:
    """Probabilities `N x K` of clips as `read_clips` returns them, by the path of the evaluation, in float32."""
    clips_NTCHW = torch.stack([as_input(pictures_TCHW, trained.clip) for pictures_TCHW in pictures_NTCHW])
    logits_NK = run_model(trained.model, Preprocess(clip=trained.clip), clips_NTCHW, lengths_N)
    check_finite(logits_NK, trained)
    return (logits_NK / trained.temperature).softmax(dim=1)


def compare(actual_NK: Tensor, expected_NK: Tensor, *, place: str) -> float:
    """The largest difference of a probability.

    Where two classes are equally probable to the model, see `TIE`, each of them counts as the most probable one.

    Args:
        actual_NK: of the exported file.
        expected_NK: of the model.
        place: which inputs these are, for the message.

    Raises:
        InputError: it is above `TOLERANCE`, or the most probable class of a clip is another one.
    """
    difference = (actual_NK - expected_NK).abs().max().item() if actual_NK.shape == expected_NK.shape else math.inf
    num_other = 0 if difference == math.inf else _num_other_classes(actual_NK, expected_NK)
    if not difference <= TOLERANCE or num_other:  # NaN is not at most anything
        raise InputError(
            f"the exported model does not give the model's probabilities: one differs by {difference:.2g} (allowed: "
            f"{TOLERANCE:g}), and {num_other} of {len(expected_NK)} clips have another most probable class ({place}). "
            "No file was written. The reason can be a layer that does something else while it is exported "
            "(torch.compiler.is_exporting()), or an operator that the other runtime computes in another way"
        )
    return difference


def _num_other_classes(actual_NK: Tensor, expected_NK: Tensor) -> int:
    """Number of clips whose most probable class is less probable to the model than its own one."""
    given_N = expected_NK.gather(1, actual_NK.argmax(1, keepdim=True)).squeeze(1)
    return int((given_N < expected_NK.amax(1) - TIE).sum())


def milliseconds(*runs: Callable[[], object]) -> tuple[float, ...]:
    """The median time of each function, which take turns, so that other work slows all; round 1 does not count."""
    rounds: list[list[float]] = []
    begin = time.perf_counter()
    while len(rounds) <= MIN_RUNS or (len(rounds) <= MAX_RUNS and time.perf_counter() - begin < MAX_SECONDS):
        rounds.append([])
        for run in runs:
            start = time.perf_counter()
            run()
            rounds[-1].append(time.perf_counter() - start)
    return tuple(1000 * statistics.median(times) for times in zip(*rounds[1:], strict=True))


def _clips(trained: TrainedModel, number: int, num_frames: int) -> tuple[Tensor, str]:
    """Clips, see `read_clips`, and where they come from."""
    clips_NTCHW = read_clips(trained, "val", number=number, num_frames=num_frames)
    if clips_NTCHW is not None:
        return clips_NTCHW, "clips of the run's val split"
    return synthetic_clips(trained, number=number, num_frames=num_frames), SYNTHETIC


def _lengths(batch_size: int, num_frames: int) -> Tensor:
    """All frames, all but one, half of them, one, and so on."""
    lengths = (num_frames, num_frames - 1, num_frames // 2, 1)
    return torch.tensor([max(lengths[i % len(lengths)], 1) for i in range(batch_size)])
