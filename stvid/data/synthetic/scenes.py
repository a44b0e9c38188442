"""Renders a figure's motion with a room, light, furniture and a camera to frames.

Everything is drawn SUPERSAMPLE times larger, without antialiasing, and averaged down. Positions are projected to pixels
for all T frames at once; then each frame is painted from far to near.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from stvid.data.synthetic.figures import RGB, Cuboid, Figure, Motion, hsv, joints, shade, sway

SUPERSAMPLE = 3
MARGIN = 8  # beyond each border, in supersampled pixels, for camera shake


@dataclass(frozen=True, kw_only=True)
class Camera:
    """An orthographic camera a little above the ground, in pixels of the supersampled canvas."""

    scale: float  # pixels in a body height
    yaw: float  # of the figure
    pitch: float  # looking down, radians
    origin: tuple[float, float]  # pixel of the figure's origin

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (`... x 2`) and depth (`...`, body heights, larger is farther) of points `... x 3`."""
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        depth = z * np.cos(self.yaw) - x * np.sin(self.yaw)
        right = x * np.cos(self.yaw) + z * np.sin(self.yaw)
        up = y * np.cos(self.pitch) + depth * np.sin(self.pitch)
        pixels = np.stack([self.origin[0] + self.scale * right, self.origin[1] - self.scale * up], axis=-1)
        return pixels, depth


def render_scene(
    figure: Figure, motion: Motion, rng: np.random.Generator, size: int, *, sway_period: int | None = None
) -> np.ndarray:
    """Renders a figure's motion in a random room: uint8 `T x size x size x 3`.

    Camera and light sway about once in `sway_period` frames; None: once in the video.
    """
    num_frames, full = len(motion.lean_T), SUPERSAMPLE * size
    body = joints(figure, motion)
    camera = _place_camera(body, motion, rng, full)
    horizon = camera.origin[1] - camera.scale * rng.uniform(0.08, 0.26)
    room = paint_room(rng, full=full + 2 * MARGIN, horizon=int(horizon), pixel=SUPERSAMPLE)
    pencil = ImageDraw.Draw(room)
    for block in motion.furniture:
        _paint_faces(pencil, *_faces(camera, block, np.asarray(block.centre)[None]), 0)
    strokes = _Strokes(_body_parts(figure, body, camera.yaw), camera)
    box, box_depth_T = None, np.zeros(num_frames)
    if motion.carried is not None:
        box = _faces(camera, motion.carried, motion.carried.centre)
        box_depth_T = camera.project(motion.carried.centre)[1]
    shadow_T2 = camera.project(motion.pelvis_T3 * np.array([1.0, 0.0, 1.0]))[0]
    shake = [sway(rng, num_frames, 1.5 * SUPERSAMPLE, sway_period) for _ in range(2)]
    shake_T2 = np.stack(shake, axis=-1).round().astype(int)

    frames_THWC = np.empty((num_frames, size, size, 3), np.uint8)
    for t in range(num_frames):
        canvas = room.copy()
        pencil = ImageDraw.Draw(canvas, "RGBA")
        _paint_shadow(pencil, shadow_T2[t], camera.scale)
        pencil = ImageDraw.Draw(canvas)
        before, after = strokes.split_at(t, box_depth_T[t])
        strokes.paint(pencil, t, before)
        if box is not None:
            _paint_faces(pencil, *box, t)
        strokes.paint(pencil, t, after)
        left, top = MARGIN + shake_T2[t]
        frames_THWC[t] = np.asarray(canvas.crop((left, top, left + full, top + full)).reduce(SUPERSAMPLE))
    return _light(frames_THWC, rng, sway_period)


def _place_camera(body: dict[str, np.ndarray], motion: Motion, rng: np.random.Generator, full: int) -> Camera:
    """A camera at random distance with the whole motion in view, such as raised hands and both ends of a walk."""
    yaw, pitch = motion.facing, rng.uniform(0.1, 0.24)
    points = [joint_T.reshape(-1, 3) for joint_T in body.values()]
    if motion.carried is not None:
        points.append(motion.carried.centre)
    pixels_N2, _ = Camera(scale=1.0, yaw=yaw, pitch=pitch, origin=(0.0, 0.0)).project(np.concatenate(points))
    (left, top), (right, _) = pixels_N2.min(axis=0) - 0.06, pixels_N2.max(axis=0) + 0.06
    ground = rng.uniform(0.87, 0.94)
    scale = min(rng.uniform(0.62, 0.82), 0.98 / (right - left), 0.98 * ground / -top)
    across = rng.uniform(0.2, 0.8) * (1.0 - scale * (right - left)) - scale * left
    return Camera(scale=full * scale, yaw=yaw, pitch=pitch, origin=(MARGIN + full * across, MARGIN + full * ground))


# A stroke: start and end (each `T x 3`), the radii at both ends, and its colour. A disc has the same start and end.
Part = tuple[np.ndarray, np.ndarray, tuple[float, float], RGB]


class _Strokes:
    """A body as tapered strokes with round ends (and discs), in pixels, for all T frames."""

    def __init__(self, parts: list[Part], camera: Camera):
        starts, ends, radii, self.colours = zip(*parts, strict=True)
        starts_TN2, depth_a_TN = camera.project(np.stack(starts, axis=1))
        ends_TN2, depth_b_TN = camera.project(np.stack(ends, axis=1))
        radii_N2 = camera.scale * np.array(radii)
        self.depth_TN = (depth_a_TN + depth_b_TN) / 2
        self.order_TN = np.argsort(-self.depth_TN, axis=1, kind="stable")

        along_TN2 = ends_TN2 - starts_TN2
        length_TN1 = np.linalg.norm(along_TN2, axis=-1, keepdims=True)
        across_TN2 = along_TN2[..., ::-1] * np.array([-1.0, 1.0]) / np.maximum(length_TN1, 1e-6)
        wide_a, wide_b = across_TN2 * radii_N2[:, :1], across_TN2 * radii_N2[:, 1:]
        corners = [starts_TN2 + wide_a, ends_TN2 + wide_b, ends_TN2 - wide_b, starts_TN2 - wide_a]
        self.sides = np.concatenate(corners, axis=-1).tolist()
        discs = [np.concatenate([p - r[:, None], p + r[:, None]], axis=-1)
                 for p, r in ((starts_TN2, radii_N2[:, 0]), (ends_TN2, radii_N2[:, 1]))]  # fmt: skip
        self.discs_a, self.discs_b = (disc.tolist() for disc in discs)
        self.is_disc = [start is end for start, end in zip(starts, ends, strict=True)]

    def split_at(self, t: int, depth: float) -> tuple[list[int], list[int]]:
        """The strokes farther and nearer than `depth`, each sorted from far to near."""
        order_N = self.order_TN[t]
        farther_N = self.depth_TN[t, order_N] > depth
        return order_N[farther_N].tolist(), order_N[~farther_N].tolist()

    def paint(self, pencil: ImageDraw.ImageDraw, t: int, strokes: list[int]) -> None:
        for n in strokes:
            pencil.ellipse(self.discs_a[t][n], fill=self.colours[n])
            if not self.is_disc[n]:
                pencil.ellipse(self.discs_b[t][n], fill=self.colours[n])
                pencil.polygon(self.sides[t][n], fill=self.colours[n])


def _body_parts(figure: Figure, body: dict[str, np.ndarray], yaw: float) -> list[Part]:
    """Every stroke of a body. Limbs on the far side are darker."""
    g = figure.girth
    parts = _head_parts(figure, body)
    neck, pelvis = body["neck"], body["pelvis"]
    parts.append((neck, body["head"], (0.026 * g, 0.026 * g), shade(figure.skin, 0.85)))
    waist = pelvis + 0.12 * (neck - pelvis)
    parts.append((neck - 0.1 * (neck - pelvis), waist, (0.06 * g, 0.056 * g), shade(figure.shirt, 0.86)))
    if figure.backpack:
        trunk = neck - pelvis
        behind = 0.085 * g * np.stack([-trunk[:, 1], trunk[:, 0], trunk[:, 2]], axis=-1) / figure.torso
        ends = pelvis + 0.4 * trunk + behind, pelvis + 0.85 * trunk + behind
        parts.append((*ends, (0.058, 0.046), figure.backpack))
    for side, sign in enumerate((1.0, -1.0)):
        light = 0.84 - 0.16 * sign * np.cos(yaw)
        shoulder, elbow, hand = (body[name][:, side] for name in ("shoulders", "elbows", "hands"))
        hip, knee, ankle = (body[name][:, side] for name in ("hips", "knees", "ankles"))
        inside = shoulder + 0.25 * (neck - shoulder) + 0.1 * (pelvis - neck)
        parts.append((inside, hip + 0.12 * (neck - pelvis), (0.05 * g, 0.046 * g), shade(figure.shirt, 0.86)))
        shin = shade(figure.trousers if figure.long_trousers else figure.skin, light)
        parts.append((hip, knee, (0.052 * g, 0.038 * g), shade(figure.trousers, light)))
        parts.append((knee, ankle, (0.036 * g, 0.024 * g), shin))
        parts.append((body["soles"][:, side], body["toes"][:, side], (0.024, 0.018), shade(figure.shoes, light)))
        sleeve = shade(figure.shirt if figure.long_sleeves else figure.skin, light)
        parts.append((shoulder, elbow, (0.034 * g, 0.027 * g), shade(figure.shirt, light)))
        parts.append((elbow, hand, (0.025 * g, 0.019 * g), sleeve))
        parts.append((hand, hand, (0.027, 0.027), shade(figure.skin, light)))
    return parts


def _head_parts(figure: Figure, body: dict[str, np.ndarray]) -> list[Part]:
    """Skull, face, nose, eyes and hair or cap, which show the direction of view."""
    head, r = body["head"], figure.head

    def at(x: float, y: float, z: float = 0.0) -> np.ndarray:
        return head + r * np.array([x, y, z])

    def disc(point: np.ndarray, radius: float, colour: RGB) -> Part:
        return point, point, (radius * r, radius * r), colour

    top = figure.headwear if figure.hairstyle == "cap" else figure.hair
    parts = [disc(at(-0.2, 0.14), 1.0, top), disc(at(0.2, -0.12), 0.86, figure.skin)]
    parts.append(disc(at(1.02, -0.15), 0.25, figure.skin))
    parts.extend(disc(at(0.8, 0.02, z), 0.14, (40, 32, 32)) for z in (0.38, -0.38))
    if figure.hairstyle == "cap":
        parts.append((at(0.5, 0.5), at(1.45, 0.42), (0.22 * r, 0.14 * r), shade(top, 0.85)))
    elif figure.hairstyle == "bun":
        parts.append(disc(at(-0.9, 0.75), 0.42, top))
    elif figure.hairstyle == "long":
        parts.append((at(-0.5, 0.1), at(-0.75, -1.3), (0.6 * r, 0.4 * r), top))
    return parts


def _faces(camera: Camera, block: Cuboid, centre_T3: np.ndarray) -> tuple[list, list[RGB]]:
    """The three visible faces of a block: corners for each frame, and a colour per face."""
    towards_x, towards_z = np.sin(camera.yaw), -np.cos(camera.yaw)  # the camera, in the figure's axes
    half = block.half
    a, b, c = half * [1, 0, 0], half * [0, 1, 0], half * [0, 0, 1]
    near_x, near_z = np.copysign(1.0, towards_x), np.copysign(1.0, towards_z)
    faces = []
    for middle, u, v in ((near_x * a, b, c), (near_z * c, a, b), (b, a, c)):
        corners_43 = np.stack([middle - u - v, middle - u + v, middle + u + v, middle + u - v])
        corners_T43 = centre_T3[:, None] + corners_43
        faces.append(camera.project(corners_T43)[0].reshape(len(centre_T3), 8).tolist())
    lights = (0.62 + 0.3 * abs(towards_x), 0.62 + 0.3 * abs(towards_z), 1.12)
    return faces, [shade(block.colour, light) for light in lights]


def _paint_faces(pencil: ImageDraw.ImageDraw, faces: list, colours: list[RGB], t: int) -> None:
    for face, colour in zip(faces, colours, strict=True):
        pencil.polygon(face[t], fill=colour)


def _paint_shadow(pencil: ImageDraw.ImageDraw, ground_2: np.ndarray, scale: float) -> None:
    x, y = ground_2
    for grow in (1.0, 0.75):
        wide, high = 0.2 * grow * scale, 0.045 * grow * scale
        pencil.ellipse((x - wide, y - high, x + wide, y + high), fill=(0, 0, 0, 60))


def _light(frames_THWC: np.ndarray, rng: np.random.Generator, sway_period: int | None) -> np.ndarray:
    """Adds uneven, slowly varying light and sensor noise."""
    num_frames, height, width, _ = frames_THWC.shape
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
    slope_x, slope_y = rng.uniform(-0.15, 0.15), rng.uniform(-0.12, 0.05)
    gain_HW = rng.uniform(0.85, 1.1) * (1 + slope_x * x + slope_y * y) * (1 - 0.08 * (x**2 + y**2))
    gain_T = (1 + sway(rng, num_frames, 0.05, sway_period)).astype(np.float32)
    noise_THW = rng.standard_normal((num_frames, height, width), dtype=np.float32) * np.float32(rng.uniform(1.5, 4.5))
    lit_THWC = frames_THWC * (gain_T[:, None, None] * gain_HW.astype(np.float32))[..., None] + noise_THW[..., None]
    return np.clip(lit_THWC, 0, 255, out=lit_THWC).astype(np.uint8)


def paint_room(rng: np.random.Generator, *, full: int, horizon: int, pixel: int) -> Image.Image:
    """An image `full x full` of a wall and a floor below row `horizon`; `pixel` is the supersampling factor.

    It is dark, since a network trained from scratch learns a strong background first.
    """
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


def _hang_picture(
    pencil: ImageDraw.ImageDraw, rng: np.random.Generator, *, full: int, horizon: int, border: float
) -> None:
    """A framed picture of one mountain."""
    wide, high = full * rng.uniform(0.12, 0.3, size=2)
    left, top = rng.uniform(-0.05, 0.85) * full, rng.uniform(0.0, 0.4) * horizon
    right, bottom, hue = left + wide, top + high, rng.random()
    pencil.rectangle((left, top, right, bottom), fill=hsv(rng.random(), 0.3, rng.uniform(0.1, 0.4)))
    left, top, right, bottom = left + border, top + border, right - border, bottom - border
    pencil.rectangle((left, top, right, bottom), fill=hsv(hue, 0.35, 0.35))
    peak = (left + rng.uniform(0.2, 0.8) * (right - left), top + 0.35 * (bottom - top))
    pencil.polygon((left, bottom, *peak, right, bottom), fill=hsv(hue + 0.2, 0.4, 0.25))
