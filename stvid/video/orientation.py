"""Display matrices: how the frames of a decoder are rotated and mirrored to be upright."""

from __future__ import annotations

import math

import av
import numpy as np
import torch
from av.sidedata.sidedata import Type


def orientation_of(frame: av.VideoFrame) -> tuple[int, bool]:
    """Rotation (0, 90, 180, 270 degrees counterclockwise), and whether left and right are exchanged after it.

    The frame's display matrix may also scale or rotate by other angles: then it is the nearest of these eight.
    """
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]
    if matrix is None:
        return 0, False
    # x' = a x + c y, y' = b x + d y; y points downwards
    values = np.frombuffer(bytes(matrix), dtype=np.int32)
    a, b, c, d = values[[0, 1, 3, 4]].tolist()
    mirrored = a * d < b * c  # the determinant is negative
    if mirrored:
        a, c = -a, -c
    return round(math.degrees(math.atan2(c - b, a + d)) / 90) * 90 % 360, mirrored


def turn_upright(frames_THWC: torch.Tensor, rotation: int, mirrored: bool) -> torch.Tensor:
    """Decoded frames (T, H, W, C) as they are displayed; see `orientation_of` for the other arguments."""
    if rotation:
        frames_THWC = torch.rot90(frames_THWC, rotation // 90, dims=(1, 2))
    return frames_THWC.flip(2) if mirrored else frames_THWC
