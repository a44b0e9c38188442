"""Rooms: a dim, textured wall and floor, drawn once a video."""

import numpy as np
from PIL import Image, ImageDraw

from stvid.data.stage.figures import hsv, shade


def paint_room(rng: np.random.Generator, *, full: int, horizon: int, pixel: int) -> Image.Image:
    """A picture `full x full` of a wall that meets the floor at row `horizon`; `pixel` is the supersampling factor.

    It is dim, since a strong background is the first thing that a network trained from nothing learns."""
    hue = rng.random()
    wall = hsv(hue, rng.uniform(0.1, 0.45), rng.uniform(0.18, 0.36))
    floor = hsv(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.1, 0.45), rng.uniform(0.15, 0.32))
    y, x = np.mgrid[:full, :full] / pixel
    is_wall = y * pixel < horizon
    relief = np.where(is_wall, _wall_pattern(rng, x, y), _floor_pattern(rng, x, y))
    relief = relief + rng.uniform(0.03, 0.1) * _clouds(rng, full)
    colour = np.where(is_wall[..., None], wall, floor) * (1.0 + relief)[..., None]
    room = Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))
    pencil = ImageDraw.Draw(room)
    if rng.random() < 0.6:
        _hang_picture(pencil, rng, full=full, horizon=horizon, border=1.5 * pixel)
    skirting = rng.uniform(1.0, 2.5) * pixel
    pencil.rectangle((0, horizon - skirting, full, horizon), fill=shade(wall, rng.uniform(0.6, 1.4)))
    return room


def _wall_pattern(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Relative brightness of paint, stripes, bricks, panels or dots, in about [-0.2, 0.2]."""
    kind, depth, pitch = rng.integers(5), rng.uniform(0.06, 0.16), rng.uniform(6, 14)
    x, y = x + rng.uniform(0, pitch), y + rng.uniform(0, pitch)
    if kind == 0:
        return np.zeros_like(x)
    if kind == 1:
        return depth * np.sign(np.sin(2 * np.pi * x / pitch))
    if kind == 2:
        row = np.floor(2 * y / pitch)
        return -depth * (((2 * y / pitch) % 1 < 0.16) | ((x / pitch + 0.5 * (row % 2)) % 1 < 0.09))
    if kind == 3:
        return -depth * ((x / (2 * pitch)) % 1 < 0.05)
    return depth * (np.hypot(x % pitch - pitch / 2, y % pitch - pitch / 2) < 0.22 * pitch)


def _floor_pattern(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Relative brightness of carpet, planks or tiles."""
    kind, depth = rng.integers(3), rng.uniform(0.08, 0.2)
    x, wide, high = x + rng.uniform(0, 20), rng.uniform(10, 24), rng.uniform(2.5, 5)
    if kind == 0:
        return np.zeros_like(x)
    row = np.floor(y / high)
    across = (x / wide + (0.37 * row if kind == 1 else 0.0)) % 1
    return -depth * (((y / high) % 1 < 0.2) | (across < 0.05))


def _clouds(rng: np.random.Generator, full: int) -> np.ndarray:
    """Smooth random relief in about [-2, 2]."""
    cells = int(rng.integers(4, 14))
    coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((full, full), Image.Resampling.BICUBIC))


def _hang_picture(pencil: ImageDraw.ImageDraw, rng: np.random.Generator, *, full: int, horizon: int, border: float):
    """A framed landscape: one mountain."""
    wide, high = full * rng.uniform(0.12, 0.3, size=2)
    left, top = rng.uniform(-0.05, 0.85) * full, rng.uniform(0.0, 0.4) * horizon
    right, bottom, hue = left + wide, top + high, rng.random()
    pencil.rectangle((left, top, right, bottom), fill=hsv(rng.random(), 0.3, rng.uniform(0.1, 0.4)))
    left, top, right, bottom = left + border, top + border, right - border, bottom - border
    pencil.rectangle((left, top, right, bottom), fill=hsv(hue, 0.35, 0.35))
    peak = (left + rng.uniform(0.2, 0.8) * (right - left), top + 0.35 * (bottom - top))
    pencil.polygon((left, bottom, *peak, right, bottom), fill=hsv(hue + 0.2, 0.4, 0.25))
