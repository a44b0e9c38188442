"""Draws what a model recognised on the frames of a video: label, probability, and a timeline of the segments.

    annotate("walk.mov", "annotated.mp4", segments=segments, class_names=names, info=probe("walk.mov"))

H, W height and width   C channels   W windows   K classes
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stvid.deploy.segments import UNKNOWN, Segment
from stvid.deploy.windows import Window
from stvid.terminal import visible
from stvid.video.redraw import redraw
from stvid.video.types import VideoInfo

Colour = tuple[int, int, int]

# Colours that colour-blind people can tell apart: Okabe and Ito, Color Universal Design (2008)
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (0, 158, 115),  # green
    (240, 228, 66),  # yellow
    (0, 114, 178),  # blue
    (213, 94, 0),  # vermilion
    (204, 121, 167),  # purple
)
GREY: Colour = (150, 150, 150)  # unknown
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_PANEL = (0, 0, 0, 170)  # behind the text: black, and how much of the picture it covers (of 255)
_TRACK = (90, 90, 90)  # the rest of the bar
# Sizes are shares of the shorter side of a frame
_FONT, _STRIP = 0.045, 0.04
_MIN_FONT = 9  # pixels
_MIN_BAR = 64  # pixels of the shorter side; smaller frames get the label only
_MIN_WIDTH = 100  # pixels of the panel, if the frame has as many; else it covers at most two thirds of the frame
_LONGEST_NAME = 200  # letters that are looked at


def class_colours(names: Iterable[str], *, background: Collection[str] = ()) -> dict[str, Colour]:
    """A colour for each class, in this order; they repeat after seven. `unknown` and the background are grey."""
    grey = {UNKNOWN, *background}
    classes = [name for name in names if name not in grey]
    return dict.fromkeys(grey, GREY) | {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(classes)}


class Overlay:
    """Draws a label, its probability and a bar of that length at the top left of frames of one size.

    Frames whose shorter side is below 64 pixels get the label only.

    Args:
        height, width: of the frames in pixels.
        colours: of all labels, see `class_colours`; the panel is as wide as the longest of them needs.
    """

    def __init__(self, height: int, width: int, *, colours: Mapping[str, Colour]):
        self.colours = colours
        shorter = min(height, width)
        self.font = _font(max(round(_FONT * shorter), _MIN_FONT))
        self.has_bar = shorter >= _MIN_BAR
        self.margin = round(self.font.size / 2) if self.has_bar else 0
        self.padding = round(self.font.size / 3) if self.has_bar else 1
        self.line = sum(self.font.getmetrics())  # pixels from one line to the next
        number = " 100%" if self.has_bar else ""
        widest = max(self.font.getlength(visible(label[:_LONGEST_NAME]) + number) for label in colours)
        most = max(width * 2 // 3, min(width - 2 * self.margin, _MIN_WIDTH))
        self.width = min(round(widest) + 2 * self.padding, most)
        self.key: tuple[str, int] | None = None

    def draw(self, frame_HWC: np.ndarray, label: str, probability: float) -> np.ndarray:
        """Draws on a frame, uint8 `H x W x 3`, which is changed and returned.

        Args:
            frame_HWC: RGB.
            label: one of `colours`.
            probability: in [0, 1].
        """
        key = label, round(100 * probability)
        if key != self.key:  # most frames have the panel of the one before
            self.key, (self.ink_HWC, self.rest_HW1) = key, self._panel(*key)
        region = frame_HWC[self.margin :, self.margin :][: len(self.ink_HWC), : self.width]
        height, width = region.shape[:2]
        blended = self.ink_HWC[:height, :width] + region * self.rest_HW1[:height, :width]
        region[:] = blended >> 8
        return frame_HWC

    def _panel(self, label: str, percent: int) -> tuple[np.ndarray, np.ndarray]:
        """Two factors of 256 times the result: `ink + rest * picture`, uint16."""
        bar = max(round(self.font.size / 3), 3) if self.has_bar else 0
        height = self.line + bar + (3 if self.has_bar else 2) * self.padding
        panel = Image.new("RGBA", (self.width, height), _PANEL)
        draw, inner = ImageDraw.Draw(panel), self.width - 2 * self.padding
        number = f" {percent}%" if self.has_bar else ""
        space = inner - self.font.getlength(number)
        corner = (self.padding, self.padding)
        draw.text(corner, _shortened(label, self.font, space), font=self.font, fill=_WHITE)
        if self.has_bar:
            end, top = self.width - self.padding, self.line + 2 * self.padding
            draw.text((end, self.padding), number, font=self.font, fill=_WHITE, anchor="ra")
            draw.rectangle((self.padding, top, end - 1, top + bar - 1), fill=_TRACK)
            if filled := round(inner * percent / 100):
                draw.rectangle((self.padding, top, self.padding + filled - 1, top + bar - 1), fill=self.colours[label])
        rgba = np.asarray(panel).astype(np.uint16)
        alpha_HW1 = rgba[..., 3:]
        return rgba[..., :3] * alpha_HW1 + 255, 255 - alpha_HW1


class Timeline:
    """Draws the segments of a video as a strip at the bottom of its frames, with a line at the present time.

    Args:
        height, width: of the frames in pixels.
        segments: of the whole video, in order.
        colours: of their labels.
    """

    def __init__(self, height: int, width: int, *, segments: Sequence[Segment], colours: Mapping[str, Colour]):
        shorter = min(height, width)
        size = max(round(_STRIP * shorter), 4)
        self.start, self.end, self.width = segments[0].start, segments[-1].end, width
        self.top, self.line = height - size, max(round(shorter / 240), 1)
        self.over = size // 3  # pixels by which the line is longer than the strip
        strip = Image.new("RGB", (width, size), _BLACK)
        draw = ImageDraw.Draw(strip)
        font = _font(round(0.7 * size)) if 0.7 * size >= _MIN_FONT else None
        for segment in sorted(segments, key=lambda segment: segment.start - segment.end):  # the short ones on top
            left, right = self._position(segment.start), self._position(segment.end)
            colour = colours[segment.label]
            draw.rectangle((left, 0, max(right - 1, left), size), fill=colour)
            space = right - left - size
            if font is not None and space > 2 * size:
                name = _shortened(segment.label, font, space)
                draw.text((left + size // 2, size / 2), name, font=font, fill=_readable_on(colour), anchor="lm")
        self.strip_HWC = np.asarray(strip)

    def draw(self, frame_HWC: np.ndarray, seconds: float) -> np.ndarray:
        """Draws on a frame, uint8 `H x W x 3`, which is changed and returned.

        Args:
            frame_HWC: RGB.
            seconds: on the clock of the segments.
        """
        frame_HWC[self.top :] = self.strip_HWC
        left = min(max(self._position(seconds), 0), self.width - 1)
        top = max(self.top - self.over, 0)
        frame_HWC[top:, max(left - self.line, 0) : left + 2 * self.line] = _BLACK
        frame_HWC[top:, left : left + self.line] = _WHITE
        return frame_HWC

    def _position(self, seconds: float) -> int:
        return round((seconds - self.start) / (self.end - self.start) * self.width)


def annotate(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    segments: Sequence[Segment],
    class_names: Sequence[str],
    info: VideoInfo,
    windows: Sequence[Window] = (),
    background: Collection[str] = (),
    max_pixels: int | None = None,
    comment: str = "",
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Writes a video with the label of each moment, its probability and a timeline of all segments; keeps the sound.

    Args:
        source: a video file, or a folder of images.
        target: the mp4 file.
        segments: of the whole video, in order, without gaps; at least one.
        class_names: of the model; the classes that occur have colours in this order.
        info: the result of `probe`.
        windows: in order. The probability shown is that of the label, interpolated between the centres of the windows
            (of an unknown segment, the highest of a window); without windows, that of the segment.
        background: classes that mean that nothing happens; they are grey, as unknown segments are.
        max_pixels: of a frame of the source, see `read_frames`.
        comment: kept in the file, see `redraw.read_comment`.
        advance: called after each frame.

    Raises:
        InputError, VideoError, OSError: see `redraw`.
    """
    labels = {segment.label for segment in segments}
    colours = class_colours((name for name in class_names if name in labels), background=background)
    overlay = Overlay(info.height, info.width, colours=colours)
    timeline = Timeline(info.height, info.width, segments=segments, colours=colours) if overlay.has_bar else None
    starts, curves = [segment.start for segment in segments], _curves(windows, labels, class_names)
    centres_W = np.array([(window.start + window.end) / 2 for window in windows])

    def draw(frame_HWC: np.ndarray, seconds: float) -> np.ndarray:
        segment = segments[max(bisect_right(starts, seconds) - 1, 0)]
        curve_W = curves.get(segment.label)
        probability = segment.probability if curve_W is None else float(np.interp(seconds, centres_W, curve_W))
        if timeline is not None:
            timeline.draw(frame_HWC, seconds)
        return overlay.draw(frame_HWC, segment.label, probability)

    redraw(source, target, draw, info=info, max_pixels=max_pixels, comment=comment, advance=advance)


def _curves(windows: Sequence[Window], labels: Iterable[str], class_names: Sequence[str]) -> dict[str, np.ndarray]:
    """The probability of each label in each window, float64 W; for `unknown` the highest one."""
    if not windows:
        return {}
    probabilities_WK = np.stack([window.probabilities_K for window in windows])
    best_W = probabilities_WK.max(axis=1).astype(np.float64)
    columns = {label: class_names.index(label) for label in labels if label != UNKNOWN}
    curves = {label: probabilities_WK[:, column].astype(np.float64) for label, column in columns.items()}
    return curves | {UNKNOWN: best_W}


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: it has Latin, Greek, Cyrillic, Arabic and more letters."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _shortened(text: str, font: ImageFont.FreeTypeFont, space: float) -> str:
    """The text, or as much of its start as fits into `space` pixels and an ellipsis; invisible characters escaped."""
    text = visible(text[:_LONGEST_NAME])
    if font.getlength(text) <= space:
        return text
    lengths = range(1, len(text))
    return text[: bisect_left(lengths, True, key=lambda n: font.getlength(f"{text[:n]}…") > space)] + "…"


def _readable_on(colour: Colour) -> Colour:
    """Black or white, whichever has more contrast; the weights are those of BT.601."""
    return _BLACK if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else _WHITE
