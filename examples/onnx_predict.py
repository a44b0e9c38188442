"""Classifies videos with a file that `stvid export` wrote, without stvid and torch.

    pip install onnxruntime numpy av
    python examples/onnx_predict.py MODEL.onnx VIDEO...

Prints a JSON line for each video, with the probability of each class: those of `stvid predict RUN VIDEO` in float32,
to 1e-4. Each step is the same: the frames of the clips, swscale's area interpolation, and the fixed-point arithmetic of
the antialiased resize in torch and Pillow.

What it leaves to `stvid predict`: folders of images, mirrored display matrices, files with several video tracks (this
reads the one that FFmpeg lists first), segments of long videos, and files whose frames are not evenly spaced if the
model's clips depend on time (`clip.fps`, `clip.input=diff`). A video is decoded twice: first to count its frames.
"""

import json
import math
import sys

import av
import numpy as np
import onnxruntime

CROPS = {1: [(0.5, 0.5)], 3: [(0, 0), (0.5, 0.5), (1, 1)], 5: [(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)]}
# containers that hold a video; among FFmpeg's others are some that read any text, or open the files that a text names
FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,mxf,nut,ivf,obu,h264,hevc,m4v,dv,mjpeg,wav"
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS}


def frame_rate(stream, stamps):
    """Frames per second: the header's rate if the frames' time stamps agree with it, else their average."""
    header, numbers = float(stream.average_rate or 25), np.arange(len(stamps))
    if len(stamps) == 1 or None in stamps or min(np.diff(stamps)) <= 0:
        return header
    seconds = (np.array(stamps) - stamps[0]) * float(stream.time_base)
    rates = [rate for rate in (header, numbers[-1] / seconds[-1]) if (abs(seconds * rate - numbers) < 0.5).all()]
    return rates[0] if rates else sys.exit(f"{stream.container.name}: frames not evenly spaced; use `stvid predict`")


def clip_frames(num_frames, fps, clip, num_clips):
    """The frame numbers of each clip; the earlier ones of its difference images, if it has them, come first."""
    stride = fps / clip["fps"] if clip["fps"] else clip["frame_stride"]
    length = clip["num_frames"] or math.floor((num_frames - 1) / stride + 1e-9) + 1
    offsets = [math.floor(i * stride + 1e-9) for i in range(length)]
    if offsets[-1] >= num_frames and clip["short"] == "error":
        sys.exit(f"a clip spans {offsets[-1] + 1} frames, the video has {num_frames}, and clip.short is 'error'")
    slack, gap = max(num_frames - 1 - offsets[-1], 0), max(round(clip["diff_seconds"] * fps), 1)
    for start in [slack * (2 * i + 1) // (2 * num_clips) for i in range(num_clips)]:
        inside = [start + offset for offset in offsets if start + offset < num_frames]
        rest = {"repeat_last": [num_frames - 1], "wrap": inside}.get(clip["short"], [])
        frames = (inside + rest * length)[:length]
        yield frames if clip["input"] == "rgb" else [max(frame - gap, 0) for frame in frames] + frames


def to_rgb(frame, size):
    """uint8 H x W x 3 of a decoded frame, upright; YUV is shrunk before it is converted."""
    turns = round(frame.rotation / 90) % 4
    height, width = size[::-1] if turns % 2 else size
    if frame.format.name in ("yuv420p", "yuvj420p") and (frame.height, frame.width) != (height, width):
        source, frame = frame, frame.reformat(width, height, interpolation="AREA", threads=1)
        frame.colorspace, frame.color_range = source.colorspace, source.color_range
    return np.rot90(frame.to_ndarray(format="rgb24", width=width, height=height, threads=1), turns)


def resize(frames, axis, size):
    """Resizes one axis of uint8 T x H x W x 3: bilinear, antialiased, with weights of 16 bits."""
    scale, pixels = frames.shape[axis] / size, np.arange(frames.shape[axis])
    weights = np.maximum(1 - abs(pixels + 0.5 - scale * (np.arange(size)[:, None] + 0.5)) / max(scale, 1), 0)
    weights /= weights.sum(1, keepdims=True)
    bits = next(b for b in range(23) if b == 22 or int(0.5 + weights.max() * 2 ** (b + 1)) >= 2**15)
    sums = np.tensordot(frames.astype(float), np.floor(weights * 2**bits + 0.5), (axis, 1))  # exact in float64
    return np.moveaxis(np.floor(sums / 2**bits + 0.5).clip(0, 255), -1, axis).astype(np.uint8)


def crop(frames, native, box, shares, size):
    """Cuts a box of `native` pixels, at `shares` of the space that it leaves, out of shrunk frames; resizes it."""
    tolerance = frames.shape[1:3] != native  # one pixel in shrunk frames: rounding
    for axis, before, length, share, wanted in zip((1, 2), native, box, shares, size, strict=True):
        start, after = round((before - length) * share), frames.shape[axis]
        middle, length = (start + length / 2) * after / before, length * after / before
        length = min(wanted if abs(length - wanted) <= tolerance else round(length), after)
        start = min(max(round(middle - length / 2), 0), after - length)
        frames = frames.take(range(start, start + length), axis)
    return resize(resize(frames, 2, size[1]), 1, size[0])


def predict(session, path):
    """The probability of each class: the mean over all clips and crops of the video."""
    model = json.loads(session.get_modelmeta().custom_metadata_map["stvid"])
    clip, size, crops = model["clip"], model["clip"]["size"], CROPS[model["protocol"]["num_crops"]]
    with av.open(path, options=OPTIONS) as video:
        frames = video.decode(video=0) if video.streams.video else ()
        decoded = [(f.pts, (f.height, f.width, f.rotation)) for f in frames]
        if not decoded:
            raise OSError("it has no video frame")
        stamps, shapes = zip(*decoded, strict=True)
        fps = frame_rate(video.streams.video[0], stamps) if clip["fps"] or clip["input"] != "rgb" else 0
    native = shapes[0][1::-1] if round(shapes[0][2] / 90) % 2 else shapes[0][:2]
    scale = min(native[0] / size[0], native[1] / size[1]) * (7 / 8 if len(crops) == 5 else 1)
    box = [min(pixels, round(wanted * scale)) for pixels, wanted in zip(native, size, strict=True)]
    short_side = max(round(min(native) * min(max(size[0] / box[0], size[1] / box[1]), 1)), 1)
    small = [max(round(pixels * short_side / min(native)), 1) for pixels in native]
    clips = list(clip_frames(len(stamps), fps, clip, model["protocol"]["num_clips"]))
    with av.open(path, options=OPTIONS) as video:
        pixels = {i: to_rgb(f, small) for i, f in enumerate(video.decode(video=0)) if any(i in n for n in clips)}
    views = []
    for numbers, shares in [(numbers, shares) for numbers in clips for shares in crops]:
        view = crop(np.stack([pixels[i] for i in numbers]), native, box, shares, size)[None]
        length = len(numbers) if clip["input"] == "rgb" else len(numbers) // 2
        feeds = {"earlier": view[:, :length], "frames": view[:, -length:], "lengths": np.array([length])}
        views.append(session.run(None, {node.name: feeds[node.name] for node in session.get_inputs()})[0][0])
    return dict(zip(model["class_names"], np.mean(views, 0).tolist(), strict=True))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python onnx_predict.py MODEL.onnx VIDEO...")
    try:
        model_file = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    except Exception as problem:  # onnxruntime has errors of its own
        sys.exit(f"{sys.argv[1]} is not a model that can be read: {problem}")
    if '"form": "clip"' not in model_file.get_modelmeta().custom_metadata_map.get("stvid", ""):
        sys.exit(f"{sys.argv[1]} is no file of `stvid export` for whole clips")
    any_failed = False
    for file in sys.argv[2:]:
        try:
            print(json.dumps({"path": file, "probabilities": predict(model_file, file)}))
        except (av.FFmpegError, OSError) as problem:
            print(f"{file} cannot be read as a video: {problem}", file=sys.stderr)
            any_failed = True
    sys.exit(any_failed)
