"""A trained model that answers: sampling, preprocessing, forward pass, mean over views; and streams, frame by frame.

V views   N videos   K classes   C channels   H, W height and width
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from stvid.data.dataset import Views
from stvid.data.loading import check_enough_frames, check_short, check_views, probe_items, resolve_workers, views_loader
from stvid.data.manifest import Item
from stvid.data.sampling import diff_frames, stride_of
from stvid.device import autocast, inference_precision, limit_cpu_threads
from stvid.distributed import all_gather_object, get_rank, get_world_size
from stvid.errors import InputError
from stvid.metrics import average_views
from stvid.preprocess import Preprocess, as_input, channels_last, crop_and_resize, crop_box, run_model
from stvid.progress import Bar
from stvid.run.checkpoint import TrainedModel


@dataclass(frozen=True, kw_only=True)
class ViewPredictions:
    """What a model says of videos.

    Attributes:
        probabilities_NK: mean over the views of each video that was read.
        videos_N: their positions among the items, ascending.
        logits_VK: of every view.
        videos_V: which video each view is of.
        failed: position -> reason, of the videos that could not be read.
    """

    probabilities_NK: Tensor
    videos_N: Tensor
    logits_VK: Tensor
    videos_V: Tensor
    failed: dict[int, str]


def classify(
    trained: TrainedModel,
    items: Sequence[Item],
    *,
    num_clips: int | None = None,
    num_crops: int | None = None,
    playback: str = "normal",
    device: torch.device | None = None,
    batch_size: int | None = None,
    num_workers: int | str = "auto",
    cache: Path | None = None,
    decode_all: bool = False,
    progress: bool = True,
) -> ViewPredictions:
    """Answers for every item, in the precision the run was trained in.

    Where several processes have joined (`stvid.training.parallel`), each judges some of the batches, every item once,
    and all get the same answers, those of a single process.

    Args:
        trained: the model.
        items: the videos; labels are not looked at.
        num_clips: clips a video is judged by; None: as in training's validation.
        num_crops: crops of each; None likewise.
        playback: how the videos are played (`playback.PLAYBACKS`).
        device: where to compute; None: the accelerator where there is one, else the CPU.
        batch_size: views in a forward pass, about; None: as in training.
        num_workers: processes that read videos.
        cache: file that keeps what probing finds, see `loading.probe_cache`; None: none.
        decode_all: a video counts as read only if every frame of it can be decoded, not just those of its views.
        progress: show a bar.

    Raises:
        InputError: impossible numbers of clips or crops; more clips asked for than a video has frames; a video too
            short for a clip where `clip.short=error`.
    """
    num_workers = resolve_workers(num_workers)
    batch_size = batch_size or trained.config["data"]["datamodule"]["batch_size"]
    probing = {"num_workers": num_workers, "cache": cache, "decode_all": decode_all}
    dataset = _views(trained, items, probing, num_clips=num_clips, num_crops=num_crops, playback=playback)
    rank, world_size = get_rank(), get_world_size()
    loader = views_loader(
        dataset, batch_size=batch_size, num_workers=min(num_workers, len(items)), rank=rank, world_size=world_size
    )
    forward = ModelRunner(trained, device=device)
    with Bar("reading and judging", total=len(items), unit="videos", shown=progress and rank == 0) as bar:
        part = _judge(loader, forward, len(trained.class_names), bar)
    logits_VK, videos_V, failed = _together(all_gather_object(part))
    if not logits_VK.isfinite().all():
        raise InputError(f"{trained.path} answers with numbers that are not finite: its weights are damaged")
    probabilities_NK, videos_N = average_views(logits_VK, videos_V)
    return ViewPredictions(
        probabilities_NK=probabilities_NK, videos_N=videos_N, logits_VK=logits_VK, videos_V=videos_V, failed=failed
    )


def _views(
    trained: TrainedModel,
    items: Sequence[Item],
    probing: Mapping,
    *,
    num_clips: int | None,
    num_crops: int | None,
    playback: str,
) -> Views:
    """The items as views, once it is certain that there can be such views of them; for the rest see `classify`."""
    asked = num_clips is not None
    num_clips = trained.protocol["num_clips"] if num_clips is None else num_clips
    num_crops = trained.protocol["num_crops"] if num_crops is None else num_crops
    check_views(num_clips, num_crops, trained.clip)
    dataset = Views(
        items=items,
        infos=probe_items(items, **probing),
        class_names=trained.class_names,
        clip=trained.clip,
        num_clips=num_clips,
        num_crops=num_crops,
        playback=playback,
    )
    check_short(dataset)
    if asked and playback == "normal":
        check_enough_frames(dataset)
    return dataset


def _together(parts: Sequence[tuple[Tensor, Tensor, dict[int, str]]]) -> tuple[Tensor, Tensor, dict[int, str]]:
    """What all processes have found, video by video: the same whichever of them met a video."""
    videos_V = torch.cat([videos for _, videos, _ in parts])
    order = videos_V.argsort(stable=True)
    logits_VK = torch.cat([logits for logits, _, _ in parts])[order]
    return logits_VK, videos_V[order], {video: why for _, _, failed in parts for video, why in failed.items()}


def _judge(
    loader: DataLoader, forward: ModelRunner, num_classes: int, bar: Bar
) -> tuple[Tensor, Tensor, dict[int, str]]:
    """Logits of every view, the video that each is of, and why others could not be read."""
    logits, videos, failed = [torch.empty(0, num_classes)], [torch.empty(0, dtype=torch.int64)], {}
    for batch in loader:
        failed |= {failure.video: failure.reason for failure in batch["failed"]}
        if len(batch["videos"]):
            logits.append(forward(batch["clips"], batch["lengths"]).cpu())
            videos.append(batch["videos"])
        bar.advance(len(batch["videos"].unique()) + len(batch["failed"]))
    return torch.cat(logits), torch.cat(videos), failed


class ModelRunner:
    """uint8 clips to logits, on the best device there is, at the run's temperature.

    The precision is the run's, or `32-true` where the device is slow in that (see `inference_precision`).
    """

    def __init__(self, trained: TrainedModel, *, device: torch.device | None = None):
        self.device = device or torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        limit_cpu_threads(self.device.type)
        precision = inference_precision(trained.config["trainer"]["precision"], self.device.type)
        self.precision = autocast(self.device, precision)
        self.temperature = trained.temperature
        self.preprocess = Preprocess(clip=trained.clip).to(self.device)
        self.model = channels_last(trained.model.to(self.device).eval())

    @torch.inference_mode()
    def __call__(self, clips_VTCHW: Tensor, lengths_V: Tensor | None = None) -> Tensor:
        """uint8 `V x T x C x H x W` -> float32 logits `V x K`."""
        clips = clips_VTCHW.to(self.device, non_blocking=True)
        lengths = None if lengths_V is None else lengths_V.to(self.device)
        with self.precision:
            return run_model(self.model, self.preprocess, clips, lengths).float() / self.temperature


class Stream:
    """Frames in, probabilities out; what they say is what the model says of the whole video until that frame.

    Args:
        trained: a model that has `step`, such as cnn_lstm, trained with `recurrent` read in one direction.
        fps: frames a second of the stream.
        device: where to compute; None: the accelerator where there is one, else the CPU.

    Raises:
        InputError: the model cannot go frame by frame, or its clips were normalised as wholes.
    """

    def __init__(self, trained: TrainedModel, *, fps: float, device: torch.device | None = None):
        name = type(trained.model).__name__
        if not hasattr(trained.model, "step"):
            raise InputError(f"{name} sees a clip at once and cannot go frame by frame; cnn_lstm can")
        if trained.clip.normalize == "clip":
            raise InputError(
                "the model was trained on clips normalised as wholes (clip.normalize=clip), and the end of a stream is "
                "not known; train it with clip.normalize=frame or fixed"
            )
        trained.model.check_stream()
        self.clip, self.fps = trained.clip, fps
        self.forward = ModelRunner(trained, device=device)
        self.recent: deque[Tensor] = deque(maxlen=diff_frames(self.clip, fps) + 1)
        self.num_frames, self.num_taken, self.state = 0, 0, None
        self.probabilities_K: Tensor | None = None

    def push(self, frame_CHW: Tensor) -> Tensor:
        """The next frame of the stream: probabilities over all frames until now.

        Only frames that the clip's stride (or `fps`) takes go through the model; the others repeat the last answer.

        Args:
            frame_CHW: uint8 `3 x H x W`, of any size; the middle is cut out, as in evaluation.

        Returns:
            float32 `K`, on the CPU.

        Raises:
            InputError: something else than such a tensor.
        """
        if not isinstance(frame_CHW, Tensor) or frame_CHW.dtype != torch.uint8 or frame_CHW.shape[:-2] != (3,):
            found = (
                f"{type(frame_CHW).__name__} {getattr(frame_CHW, 'dtype', '')} {tuple(getattr(frame_CHW, 'shape', ()))}"
            )
            raise InputError(
                f"a frame must be a uint8 torch tensor 3 x H x W, got {found}; of an array H x W x 3 it is "
                "torch.from_numpy(array).permute(2, 0, 1)"
            )
        box = crop_box(*frame_CHW.shape[-2:], self.clip.size)
        self.recent.append(crop_and_resize(frame_CHW[None], box, self.clip.size))
        self.num_frames += 1
        stride = stride_of(self.clip, self.fps)
        while int(self.num_taken * stride + 1e-9) < self.num_frames:  # a slow stream's frames are taken twice
            self.num_taken += 1
            self._take()
        return self.probabilities_K

    def _take(self) -> None:
        pictures = [self.recent[0], self.recent[-1]] if self.clip.input != "rgb" else [self.recent[-1]]
        self._step(as_input(torch.cat(pictures), self.clip))

    @torch.inference_mode()
    def _step(self, frame_1CHW: Tensor) -> None:
        forward = self.forward
        clips_BCTHW = forward.preprocess(frame_1CHW[None].to(forward.device))
        with forward.precision:
            logits_BK, self.state = forward.model.step(clips_BCTHW[:, :, 0], self.state)
        self.probabilities_K = (logits_BK[0].float() / forward.temperature).softmax(0).cpu()
