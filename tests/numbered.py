"""Videos whose frames carry their own number in the picture, and what PyAV run from the first frame makes of a file."""

from __future__ import annotations

import random
import struct
from fractions import Fraction

import av
import numpy as np
import torch

NUM_FRAMES = 60

ENCODERS = {"mpeg4": "mpeg4", "h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9", "mjpeg": "mjpeg"}


def numbered_picture(number: int, *, height: int, width: int) -> np.ndarray:
    """Eight grey blocks, one a bit of `number`: readable after any compression."""
    picture = np.full((height, width, 3), 128, np.uint8)
    for bit in range(8):
        row, column = divmod(bit, 4)
        block = picture[row * height // 2 : (row + 1) * height // 2, column * width // 4 : (column + 1) * width // 4]
        block[2:-2, 2:-2] = 235 if number >> bit & 1 else 20
    return picture


def number_of(picture: np.ndarray) -> int:
    height, width = picture.shape[:2]
    centres = [((2 * (bit // 4) + 1) * height // 4, (2 * (bit % 4) + 1) * width // 8) for bit in range(8)]
    return sum(int(picture[y - 3 : y + 3, x - 3 : x + 3].mean() > 128) << bit for bit, (y, x) in enumerate(centres))


def write_video(
    path,
    *,
    codec="h264",
    bframes=0,
    gop=12,
    num_frames=NUM_FRAMES,
    size=(96, 128),
    pixels=None,
    options=(),
    times=None,
    picture=numbered_picture,
):
    """Frame i shows the number i, or what `picture` makes of it, and is due at `times[i]` ms (default: 25 frames/s)."""
    height, width = size
    quick = {"h264": {"preset": "veryfast", "bf": str(bframes)}, "vp9": {"cpu-used": "8", "deadline": "realtime"}}
    if codec == "vp9" and bframes:  # its likeness of B-frames: references that are not shown
        quick["vp9"] = {"cpu-used": "8", "deadline": "good", "auto-alt-ref": "1", "lag-in-frames": "16"}
    reordered = bframes if num_frames > bframes else 0  # fewer frames end x265 with a packet that cannot be muxed
    x265 = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={reordered}:pools=1:frame-threads=1:log-level=none"
    quick["hevc"] = {"preset": "ultrafast", "x265-params": x265}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(ENCODERS[codec], rate=25, options={**quick.get(codec, {}), **dict(options)})
        stream.height, stream.width = height, width
        stream.pix_fmt = pixels or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        stream.codec_context.gop_size = gop
        if codec == "mpeg4":
            stream.codec_context.max_b_frames = bframes
            stream.codec_context.bit_rate = 2_000_000
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number, height=height, width=width), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decoded(path) -> list[np.ndarray]:
    """All frames, H x W x 3, upright, by PyAV run from the first one."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for frame in frames]


def remuxed(source, path, change):
    """Writes a file of the same track with the packets, as bytes, that `change` makes of all packets, one per frame."""
    with av.open(str(source)) as reading, av.open(str(path), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        contents = [bytes(packet) for packet in reading.demux(video=0) if packet.size]
        for number, content in enumerate(change(contents)):
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 25), number, number
            writing.mux(packet)
    return path


def packed(contents: list[bytes]) -> list[bytes]:
    """Packets of MPEG-4 as DivX packs them: a B-frame behind the frame before it, and an empty one in its place."""
    start, divx = b"\0\0\1\xb6", b"\0\0\1\xb2DivX503b1393p"
    is_b = [content[content.index(start) + 4] >> 6 == 2 for content in contents]
    result, number = [], 0
    while number < len(contents):
        if is_b[number + 1 : number + 2] == [True] and not is_b[number]:
            result += [contents[number] + contents[number + 1], start + b"\x50\0\0"]
            number += 1
        else:
            result.append(contents[number])
        number += 1
    place = result[0].index(start)
    return [result[0][:place] + divx + result[0][place:], *result[1:]]


def turned(path, matrix):
    """Writes a display matrix into the track header of an mp4: 16.16 and 2.30 fixed point."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def requests(num_frames: int) -> list[list[int]]:
    """Index lists of the shapes that samplers ask for, and some that they do not."""
    rng = random.Random(num_frames)
    last = num_frames - 1
    clips = [[min(last, start + 2 * i) for i in range(8)] for start in (0, last // 2, rng.randrange(num_frames))]
    singles = [[0], [last], *([rng.randrange(num_frames)] for _ in range(4))]
    uniform = [[round(i * last / 7) for i in range(8)]]
    return [*clips, *singles, *uniform, [last, 0, last // 2, last // 2], list(range(num_frames))[-10:]]


def as_thwc(frames: torch.Tensor) -> np.ndarray:
    return frames.permute(0, 2, 3, 1).numpy()
