"""A trained model on a stream: one frame after the other, without an end, in constant memory and time per frame.

B batch   C channels   H, W height and width   K classes
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from stvid.checkpoint import TrainedModel
from stvid.clip import as_input
from stvid.data.sampling import diff_frames, stride_of
from stvid.data.transforms import crop_and_resize, crop_box
from stvid.errors import InputError
from stvid.inference import ModelRunner


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
