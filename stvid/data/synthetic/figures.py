"""Articulated figures: their appearance, and the positions of their joints in every frame.

Lengths are in body heights. A figure stands at the origin of its own axes: x forward, y up, z to its left; the camera
(`scenes.py`) defines the view. A motion gives the positions of pelvis, feet and hands; elbows and knees follow by
inverse kinematics. Legend: T frames, 2 sides (left, right), 3 coordinates.
"""

import colorsys
from dataclasses import dataclass, field

import numpy as np

RGB = tuple[int, int, int]
SIDES = np.array([1.0, -1.0])  # the sign of z on the left and on the right
ANKLE = 0.045  # height of the ankle joint above the sole
SKIN_TONES: tuple[RGB, ...] = ((255, 219, 190), (238, 190, 150), (214, 160, 115), (178, 122, 80), (150, 98, 66))
HAIR_TONES: tuple[RGB, ...] = ((60, 44, 34), (104, 68, 38), (190, 146, 76), (158, 76, 40), (150, 150, 155))


def hsv(hue: float, saturation: float, value: float) -> RGB:
    """The 8-bit colour of a hue, saturation and value, each in [0, 1]; hue wraps."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def shade(colour: RGB, light: float) -> RGB:
    """A colour multiplied by `light`: brighter above 1, darker below."""
    red, green, blue = (min(255, round(channel * light)) for channel in colour)
    return red, green, blue


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One identity: its proportions (in body heights) and clothes. Videos of one figure have the same group."""

    thigh: float
    shin: float
    torso: float  # hip to shoulder
    upper_arm: float
    forearm: float
    shoulder: float  # half the width between the shoulders
    hip: float  # half the width between the hips
    head: float  # radius
    girth: float  # scales the thickness of every limb
    skin: RGB
    hair: RGB
    shirt: RGB
    trousers: RGB
    shoes: RGB
    headwear: RGB
    hairstyle: str  # short, long, bun or cap
    long_sleeves: bool
    long_trousers: bool
    backpack: RGB | None

    @property
    def arm(self) -> float:
        return self.upper_arm + self.forearm

    @property
    def standing(self) -> float:
        """Height of the pelvis with nearly straight legs."""
        return ANKLE + 0.985 * (self.thigh + self.shin)


def sample_figure(rng: np.random.Generator) -> Figure:
    """A random identity."""
    leg, arm, hue = rng.uniform(0.42, 0.47), rng.uniform(0.31, 0.35), rng.random()
    return Figure(
        thigh=leg * 0.51,
        shin=leg * 0.49,
        torso=rng.uniform(0.27, 0.31),
        upper_arm=arm * 0.51,
        forearm=arm * 0.49,
        shoulder=rng.uniform(0.085, 0.115),
        hip=rng.uniform(0.045, 0.06),
        head=rng.uniform(0.068, 0.084),
        girth=rng.uniform(0.85, 1.25),
        skin=SKIN_TONES[rng.integers(len(SKIN_TONES))],
        hair=HAIR_TONES[rng.integers(len(HAIR_TONES))],
        shirt=hsv(hue, rng.uniform(0.25, 0.85), rng.uniform(0.8, 1.0)),
        trousers=hsv(hue + rng.uniform(0.15, 0.85), rng.uniform(0.1, 0.7), rng.uniform(0.6, 0.95)),
        shoes=hsv(rng.random(), rng.uniform(0.0, 0.7), rng.uniform(0.7, 1.0)),
        headwear=hsv(rng.random(), rng.uniform(0.5, 0.9), rng.uniform(0.75, 1.0)),
        hairstyle=("short", "long", "bun", "cap")[rng.integers(4)],
        long_sleeves=bool(rng.random() < 0.5),
        long_trousers=bool(rng.random() < 0.7),
        backpack=hsv(hue + rng.uniform(0.3, 0.7), 0.8, rng.uniform(0.65, 0.95)) if rng.random() < 0.5 else None,
    )


@dataclass(frozen=True, kw_only=True)
class Cuboid:
    """An upright block in the figure's axes: centre `3` (`T x 3` if it moves), half extent `3`, and colour."""

    centre: np.ndarray
    half: np.ndarray
    colour: RGB


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Target positions of a figure's body in T frames. `facing` is the yaw in radians: 0 right, pi/2 to the camera."""

    facing: float
    pelvis_T3: np.ndarray
    lean_T: np.ndarray  # forward tilt of the torso, radians
    ankles_T23: np.ndarray
    hands_T23: np.ndarray
    toes_T2: np.ndarray  # upward pitch of the feet, radians
    furniture: tuple[Cuboid, ...] = field(default=())
    carried: Cuboid | None = None


def joints(figure: Figure, motion: Motion) -> dict[str, np.ndarray]:
    """The positions of all joints: `T x 3` of the trunk, `T x 2 x 3` (left, right) of the limbs."""
    pelvis_T13, lean_T = motion.pelvis_T3[:, None], motion.lean_T
    width_123 = np.array([[[0.0, 0.0, 1.0]]]) * SIDES[None, :, None]
    hips_T23 = pelvis_T13 + figure.hip * width_123
    shoulders_T23 = shoulders(figure, motion.pelvis_T3, lean_T)
    neck_T3 = shoulders_T23.mean(axis=1)
    knees_T23, ankles_T23 = _reach(hips_T23, motion.ankles_T23, figure.thigh, figure.shin, np.array([1.0, 0.0, 0.0]))
    elbow_out = np.stack([np.full(2, -1.0), np.full(2, -0.3), 0.5 * SIDES], axis=-1)
    elbows_T23, hands_T23 = _reach(shoulders_T23, motion.hands_T23, figure.upper_arm, figure.forearm, elbow_out)
    soles_T23 = ankles_T23 - np.array([0.0, 0.022, 0.0])
    toes_T23 = soles_T23 + 0.11 * in_plane(np.pi / 2 + motion.toes_T2)
    return {
        "pelvis": motion.pelvis_T3, "neck": neck_T3, "head": neck_T3 + (figure.head + 0.05) * upwards(0.6 * lean_T),
        "hips": hips_T23, "knees": knees_T23, "ankles": ankles_T23, "soles": soles_T23, "toes": toes_T23,
        "shoulders": shoulders_T23, "elbows": elbows_T23, "hands": hands_T23,
    }  # fmt: skip


def _reach(
    root: np.ndarray, target: np.ndarray, upper: float, lower: float, pole: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Inverse kinematics of a limb of two bones: middle and end joint for `target`, bent towards `pole`."""
    towards = target - root
    distance = np.linalg.norm(towards, axis=-1, keepdims=True)
    towards = towards / distance
    distance = np.clip(distance, abs(upper - lower) + 1e-3, upper + lower - 1e-4)
    along = (upper**2 - lower**2 + distance**2) / (2 * distance)
    out = np.sqrt(np.maximum(upper**2 - along**2, 0.0))
    sideways = pole - (pole * towards).sum(axis=-1, keepdims=True) * towards
    sideways = sideways / np.maximum(np.linalg.norm(sideways, axis=-1, keepdims=True), 1e-6)
    return root + towards * along + sideways * out, root + towards * distance


def in_plane(angle: np.ndarray) -> np.ndarray:
    """Unit vectors `... x 3` in the sagittal plane: angle 0 points down, pi/2 forward, pi up."""
    return np.stack([np.sin(angle), -np.cos(angle), np.zeros_like(angle)], axis=-1)


def upwards(lean: np.ndarray) -> np.ndarray:
    """Unit vectors `... x 3` along the torso for a forward lean in radians."""
    return np.stack([np.sin(lean), np.cos(lean), np.zeros_like(lean)], axis=-1)


def shoulders(figure: Figure, pelvis_T3: np.ndarray, lean_T: np.ndarray) -> np.ndarray:
    """Positions of both shoulders, `T x 2 x 3`."""
    sides_23 = figure.shoulder * SIDES[:, None] * np.array([0.0, 0.0, 1.0])
    return (pelvis_T3 + figure.torso * upwards(lean_T))[:, None] + sides_23


def sway(rng: np.random.Generator, num_frames: int, amplitude: float, period: int | None = None) -> np.ndarray:
    """A slow, smooth, random oscillation about 0, `T`; about one cycle in `period` frames (None: in all frames)."""
    time_T = np.arange(num_frames) / (period or num_frames)
    waves = [np.sin(2 * np.pi * (rng.uniform(0.4, 1.6) * time_T + rng.random())) for _ in range(2)]
    return amplitude * (waves[0] + waves[1]) / 2
