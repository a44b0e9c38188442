"""The four motions of the figures. No single frame shows whether a motion runs forwards or in reverse.

Each takes (figure, rng, num_frames) and returns a `Motion`; times are fractions of the video.
"""

from collections.abc import Callable

import numpy as np

from stvid.data.synthetic.figures import ANKLE, SIDES, Cuboid, Figure, Motion, hsv, in_plane, shoulders, sway, upwards


def _standing_feet(figure: Figure, rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Positions of feet that do not move: `T x 2 x 3`."""
    spread, stagger = rng.uniform(1.0, 1.5) * figure.hip, rng.uniform(-0.04, 0.04)
    feet_23 = np.stack([stagger * SIDES, np.full(2, ANKLE), spread * SIDES], axis=-1)
    return np.broadcast_to(feet_23, (num_frames, 2, 3)).copy()


def _hanging_hands(
    figure: Figure, shoulders_T23: np.ndarray, swing_T2: np.ndarray | float = 0.08, straight: float = 0.96
) -> np.ndarray:
    """Hands of hanging arms, `swing` radians forward; `straight` is the distance to the shoulder per arm length."""
    swing_T2 = np.broadcast_to(swing_T2, shoulders_T23.shape[:2])
    outwards_23 = np.array([0.0, 0.0, 0.03]) * SIDES[:, None]
    return shoulders_T23 + straight * figure.arm * in_plane(swing_T2) + outwards_23


def _sideways_view(rng: np.random.Generator, max_yaw: float = 0.55) -> float:
    """A random yaw that shows the figure from the left or right side, turned to the camera by at most `max_yaw`."""
    yaw = rng.uniform(-0.1, max_yaw)
    return float(yaw if rng.random() < 0.5 else np.pi - yaw)


def _progress(rng: np.random.Generator, num_frames: int, shortest: float) -> np.ndarray:
    """Progress of an action, `T` in [0, 1]: its duration is `shortest` to 1 of the video, its start is random.

    With at least 0.75, every clip of two thirds of the video shows a large part of the action.
    """
    duration = rng.uniform(shortest, 1.0)
    start = rng.uniform(0.0, 1.0 - duration)
    return np.clip((np.linspace(0.0, 1.0, num_frames) - start) / duration, 0.0, 1.0)


def _ease(progress: np.ndarray) -> np.ndarray:
    """Smooth start and end (smoothstep)."""
    return progress * progress * (3.0 - 2.0 * progress)


def sit_down(figure: Figure, rng: np.random.Generator, num_frames: int) -> Motion:
    """From standing to sitting on a chair or stool; the hands move to the knees."""
    progress_T = _progress(rng, num_frames, 0.75)
    seated_T = _ease(progress_T)
    seat = rng.uniform(0.9, 1.1) * (ANKLE + figure.shin)
    back, bow = 0.9 * figure.thigh, rng.uniform(0.3, 0.75)
    pelvis_T3 = np.stack([-back * seated_T, figure.standing + (seat - figure.standing) * seated_T,
                          np.zeros(num_frames)], axis=-1)  # fmt: skip
    lean_T = bow * np.sin(np.pi * seated_T) + rng.uniform(-0.1, 0.1) * seated_T + sway(rng, num_frames, 0.03)
    shoulders_T23 = shoulders(figure, pelvis_T3, lean_T)
    knees_23 = np.array([-back + 0.75 * figure.thigh, seat + 0.06, 0.0]) + figure.hip * SIDES[:, None] * [0, 0, 1.0]
    resting_T11 = seated_T[:, None, None]
    return Motion(
        facing=_sideways_view(rng),
        pelvis_T3=pelvis_T3,
        lean_T=lean_T,
        ankles_T23=_standing_feet(figure, rng, num_frames),
        hands_T23=(1 - resting_T11) * _hanging_hands(figure, shoulders_T23) + resting_T11 * knees_23,
        toes_T2=np.zeros((num_frames, 2)),
        furniture=_chair(figure, rng, -back, seat - 0.062 * figure.girth),
    )


def _chair(figure: Figure, rng: np.random.Generator, x: float, height: float) -> tuple[Cuboid, ...]:
    """A seat with four legs, usually with a backrest."""
    colour = hsv(rng.uniform(0.02, 0.13), rng.uniform(0.2, 0.6), rng.uniform(0.38, 0.55))
    depth, width = rng.uniform(0.1, 0.13), rng.uniform(0.1, 0.14)
    seat = Cuboid(centre=np.array([x, height - 0.015, 0.0]), half=np.array([depth, 0.015, width]), colour=colour)
    legs = [
        Cuboid(centre=np.array([x + a * (depth - 0.015), (height - 0.03) / 2, b * (width - 0.015)]),
               half=np.array([0.012, (height - 0.03) / 2, 0.012]), colour=colour)
        for b in (1, -1) for a in (1, -1)
    ]  # fmt: skip
    if rng.random() < 0.25:
        return (*legs, seat)
    tall = rng.uniform(0.14, 0.24)
    back = np.array([x - depth - figure.girth * 0.012, height + tall / 2, 0.0])
    return (*legs, Cuboid(centre=back, half=np.array([0.014, tall / 2 + 0.03, width]), colour=colour), seat)


def raise_arms(figure: Figure, rng: np.random.Generator, num_frames: int) -> Motion:
    """Both arms move from the body to above the head: sideways in front view, or forwards in side view."""
    frontal = rng.random() < 0.6
    azimuth = np.radians(rng.uniform(60, 90) if frontal else rng.uniform(0, 35))
    facing = float(np.radians(rng.uniform(60, 120))) if frontal else _sideways_view(rng)
    low, high, late = rng.uniform(0.1, 0.5), rng.uniform(2.4, 3.0), rng.uniform(0.0, 0.06) * rng.permutation(2)
    progress_T = _progress(rng, num_frames, 0.75)
    raised_T2 = _ease(np.clip((progress_T[:, None] - late) / (1.0 - late), 0.0, 1.0))
    angle_T2 = low + (high - low) * raised_T2
    sideways_T2 = np.sin(angle_T2) * np.sin(azimuth) * SIDES
    arms_T23 = np.stack([np.sin(angle_T2) * np.cos(azimuth), -np.cos(angle_T2), sideways_T2], axis=-1)
    pelvis_T3 = np.array([0.0, figure.standing, 0.0]) + np.zeros((num_frames, 3))
    pelvis_T3[:, 2] += sway(rng, num_frames, 0.012)
    lean_T = sway(rng, num_frames, 0.04)
    return Motion(
        facing=facing,
        pelvis_T3=pelvis_T3,
        lean_T=lean_T,
        ankles_T23=_standing_feet(figure, rng, num_frames),
        hands_T23=shoulders(figure, pelvis_T3, lean_T) + rng.uniform(0.88, 0.99) * figure.arm * arms_T23,
        toes_T2=np.zeros((num_frames, 2)),
    )


def walk_forward(figure: Figure, rng: np.random.Generator, num_frames: int) -> Motion:
    """Walking forwards. Each foot stands still for 60 % of its cycle and swings for the rest."""
    stance, step = 0.6, rng.uniform(0.28, 0.38)
    cycle = step / stance  # distance of the body per cycle at which a standing foot does not slide
    distance = rng.uniform(0.55, 0.85)
    travelled_T = distance * np.linspace(-0.5, 0.5, num_frames)
    phase_T2 = (travelled_T[:, None] / cycle + rng.random() + np.array([0.0, 0.5])) % 1.0
    swing_T2 = _ease(np.clip((phase_T2 - stance) / (1.0 - stance), 0.0, 1.0))
    ahead_T2 = step * np.where(phase_T2 < stance, 0.5 - phase_T2 / stance, swing_T2 - 0.5)
    lift_T2 = np.interp(phase_T2, [0.0, 0.45, 0.6, 0.75, 0.93, 1.0], [0.0, 0.0, 0.03, rng.uniform(0.05, 0.09), 0.02, 0])
    toes_T2 = np.interp(phase_T2, [0.0, 0.1, 0.45, 0.6, 0.75, 0.95, 1.0], [0.35, 0, 0, -0.7, -0.5, 0.3, 0.35])
    feet_T2 = travelled_T[:, None] + ahead_T2
    sides_T2 = np.broadcast_to(0.8 * figure.hip * SIDES, feet_T2.shape)
    # The pelvis is highest in the middle of a stance, and lowest with both feet on the ground.
    leg = figure.thigh + figure.shin
    highest, lowest = 0.98 * leg, np.sqrt((0.99 * leg) ** 2 - (0.45 * step) ** 2)
    bob_T = np.cos(4 * np.pi * (phase_T2[:, 0] - stance / 2))
    height_T = ANKLE + (highest + lowest) / 2 + (highest - lowest) / 2 * bob_T
    pelvis_T3 = np.stack([travelled_T, height_T, np.zeros(num_frames)], axis=-1)
    lean_T = rng.uniform(0.08, 0.22) + sway(rng, num_frames, 0.02)
    # An arm swings with the leg of the other side, so left and right are exchanged.
    arms_T2 = 0.35 + rng.uniform(1.2, 2.4) * ahead_T2[:, ::-1]
    return Motion(
        facing=_sideways_view(rng, 0.4),
        pelvis_T3=pelvis_T3,
        lean_T=lean_T,
        ankles_T23=np.stack([feet_T2, ANKLE + lift_T2, sides_T2], axis=-1),
        hands_T23=_hanging_hands(
            figure, shoulders(figure, pelvis_T3, lean_T), arms_T2, straight=rng.uniform(0.75, 0.92)
        ),
        toes_T2=toes_T2,
    )


def pick_up(figure: Figure, rng: np.random.Generator, num_frames: int) -> Motion:
    """Bending to a box on the floor or on a low table, grabbing it with both hands, and rising with it."""
    progress_T = _progress(rng, num_frames, 0.8)
    grab = rng.uniform(0.3, 0.4)
    lifted_T = _ease(np.clip((progress_T - grab) / (1.0 - grab), 0.0, 1.0))
    bent_T = np.where(progress_T < grab, _ease(np.clip(progress_T / grab, 0.0, 1.0)), 1.0 - lifted_T)

    half = np.array([rng.uniform(0.05, 0.075), rng.uniform(0.045, 0.075), rng.uniform(0.06, 0.085)])
    colour = hsv(rng.random(), rng.uniform(0.3, 0.8), rng.uniform(0.75, 1.0))
    table = rng.uniform(0.1, 0.22) if rng.random() < 0.4 else 0.0
    box_start = np.array([rng.uniform(0.24, 0.29), table + half[1], 0.0])
    box_end = np.array([half[0] + rng.uniform(0.1, 0.15), rng.uniform(0.56, 0.68), 0.0])
    box_T3 = box_start + lifted_T[:, None] * (box_end - box_start)
    box_T3[:, 0] += 0.06 * np.sin(np.pi * lifted_T)  # around the knees

    bow, crouch = _bend_to_reach(figure, rng, box_start)
    pelvis_T3 = np.array([0.0, figure.standing, 0.0]) + bent_T[:, None] * crouch
    lean_T = bow * bent_T - 0.06 * lifted_T + sway(rng, num_frames, 0.02)
    shoulders_T23 = shoulders(figure, pelvis_T3, lean_T)
    box_T3 = np.where(lifted_T[:, None] > 0, _within_reach(figure, shoulders_T23.mean(axis=1), box_T3), box_start)
    grips_T23 = box_T3[:, None] + half[2] * SIDES[:, None] * np.array([0.0, 0.0, 1.0])
    approach_T11 = np.where(progress_T < grab, bent_T, 1.0)[:, None, None]
    hanging_T23 = _hanging_hands(figure, shoulders_T23)
    return Motion(
        facing=_sideways_view(rng),
        pelvis_T3=pelvis_T3,
        lean_T=lean_T,
        ankles_T23=_standing_feet(figure, rng, num_frames),
        hands_T23=(1 - approach_T11) * hanging_T23 + approach_T11 * grips_T23,
        toes_T2=np.zeros((num_frames, 2)),
        furniture=_table(rng, box_start[0] + 0.02, table) if table else (),
        carried=Cuboid(centre=box_T3, half=half, colour=colour),
    )


def _within_reach(figure: Figure, neck_T3: np.ndarray, target_T3: np.ndarray) -> np.ndarray:
    """`target`, moved towards the neck if the arms are too short."""
    offset_T3 = target_T3 - neck_T3
    distance_T1 = np.linalg.norm(offset_T3, axis=-1, keepdims=True)
    return neck_T3 + offset_T3 * np.minimum(1.0, 0.95 * figure.arm / distance_T1)


def _bend_to_reach(figure: Figure, rng: np.random.Generator, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Minimum bow (radians) and shift of the pelvis (`3`) to reach `target`; stooping or squatting at random."""
    drop = rng.uniform(0.1, 0.24)
    for amount in np.linspace(0.3, 1.0, 36):
        bow, shift = 1.5 * amount, amount * np.array([-0.1, -drop, 0.0])
        shoulder = np.array([0.0, figure.standing, 0.0]) + shift + figure.torso * upwards(np.array(bow))
        if np.linalg.norm(target - shoulder) < 0.95 * figure.arm:
            break
    return bow, shift


def _table(rng: np.random.Generator, x: float, height: float) -> tuple[Cuboid, ...]:
    colour = hsv(rng.uniform(0.02, 0.13), rng.uniform(0.2, 0.6), rng.uniform(0.35, 0.5))
    depth, width = rng.uniform(0.1, 0.13), rng.uniform(0.12, 0.16)
    top = Cuboid(centre=np.array([x, height - 0.012, 0.0]), half=np.array([depth, 0.012, width]), colour=colour)
    legs = [
        Cuboid(centre=np.array([x + a * (depth - 0.02), (height - 0.024) / 2, b * (width - 0.02)]),
               half=np.array([0.012, (height - 0.024) / 2, 0.012]), colour=colour)
        for b in (1, -1) for a in (1, -1)
    ]  # fmt: skip
    return (*legs, top)


MOTIONS: dict[str, Callable[[Figure, np.random.Generator, int], Motion]] = {
    "sit_down": sit_down,
    "raise_arms": raise_arms,
    "walk_forward": walk_forward,
    "pick_up": pick_up,
}
