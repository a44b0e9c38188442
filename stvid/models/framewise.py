"""Models that encode every frame on its own, and then aggregate the features of all frames.

B batch   C channels   T frames   H, W height and width   F' features of a frame   D features of a clip   K classes
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from stvid.models.base import VideoModel, check_clips
from stvid.models.encoders import SmallEncoder, encode_frames
from stvid.models.onnx_encoder import OnnxEncoder, onnx_runtime


class FramewiseModel(VideoModel):
    """An encoder of frames, and `aggregate` over their features. With a frozen encoder, features can be cached.

    A subclass sets `encoder` (see `build_encoder`), `in_channels` and `max_chunk`, and defines `aggregate`.
    """

    supports_feature_cache = True
    encoder: nn.Module

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        """Those of the encoder; see `VideoModel`."""
        return self.encoder.stages  # type: ignore[return-value]

    @property
    def backbone(self) -> nn.Module:
        """The encoder; see `VideoModel`."""
        return self.encoder

    def encode(
        self,
        clips_BCTHW: Tensor,
        lengths_B: Tensor | None = None,
        *,
        preprocess: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Features of every frame, `B x C x T x H x W` -> float32 `B x T x F'`; see `VideoModel`."""
        check_clips(clips_BCTHW if preprocess is None else clips_BCTHW.transpose(1, 2), self.in_channels)
        return encode_frames(self.encoder, clips_BCTHW, lengths_B, chunk=self.max_chunk, preprocess=preprocess).float()

    def encoding_runtime(self, *, precision: str, device: torch.device) -> str | None:
        """onnxruntime for image networks; see `VideoModel` and `onnx_runtime`."""
        if isinstance(self.encoder, SmallEncoder):
            return None
        return onnx_runtime(self.encoder, precision=precision, device=device)

    @contextlib.contextmanager
    def encode_with(self, runtime: str | None) -> Iterator[None]:
        """See `VideoModel`. The encoder is converted at its first images, which takes some seconds."""
        encoder = self.encoder
        if runtime is not None:
            self.encoder = OnnxEncoder(encoder)
        try:
            yield
        finally:
            self.encoder = encoder

    def forward_features(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` -> features `B x D`."""
        return self.aggregate(self.encode(clips_BCTHW, lengths_B), lengths_B)

    def forward(
        self,
        clips_BCTHW: Tensor,
        lengths_B: Tensor | None = None,
        *,
        preprocess: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """`B x C x T x H x W` (and the number of valid frames of each, at least 1) -> logits `B x K`.

        preprocess: see `VideoModel.encode`.
        """
        features_BTF = self.encode(clips_BCTHW, lengths_B, preprocess=preprocess)
        return self.forward_head(self.aggregate(features_BTF, lengths_B))


def without_autocast(device: torch.device) -> AbstractContextManager:
    """No autocast. An exported model has none, and its file cannot hold the switch."""
    return nullcontext() if torch.compiler.is_exporting() else torch.autocast(device.type, enabled=False)
