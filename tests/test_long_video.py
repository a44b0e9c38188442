"""The benchmark of long videos: what it renders is what it says, and it counts what its docstring says."""

import sys

import numpy as np
import pytest
from conftest import ROOT

from stvid.data.synthetic.actions import FPS, RENDITIONS
from stvid.data.synthetic.figures import sample_figure
from stvid.data.synthetic.motions import MOTIONS


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in ("stitched", "long_video"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", MOTIONS)
def test_a_scene_alternates_between_an_action_and_its_mirror_and_never_jumps(name):
    import stitched

    rng = np.random.default_rng(0)
    motion = MOTIONS[name](sample_figure(rng), rng, stitched.MOTION_FRAMES)
    scene = stitched.plan_scene(motion, name, rng, 30 * FPS)
    steps = np.diff(scene.order_T)
    assert len(scene.order_T) == 30 * FPS
    assert np.abs(steps).max() == 1  # from one pose to the next one, or none
    assert {action.label for action in scene.actions} == {
        label for label, (kind, _) in RENDITIONS.items() if kind == name
    }
    moving = np.zeros(30 * FPS, bool)
    for action in scene.actions:
        moving[action.start : action.end] = True
        sign = -1 if RENDITIONS[action.label][1] else 1
        assert (steps[action.start : action.end - 1] == sign).all()
    assert (steps[~moving[1:]] == 0).all()
    edges = [0, *(edge for action in scene.actions for edge in (action.start, action.end)), 30 * FPS]
    pauses = np.diff(edges)[::2] / FPS
    assert pauses[:-1].min() >= 1
    assert pauses[:-1].max() <= 5


def test_clips_are_named_by_what_happens_in_their_middle():
    import stitched

    actions = (stitched.Action(40, 80, "walk_forward"), stitched.Action(120, 160, "walk_backward"))
    for seed in range(20):
        clips = list(stitched.choose_clips(actions, 200, np.random.default_rng(seed)))
        assert len(clips) == 5
        for label, start in clips:
            middle = start + 15
            inside = [action.label for action in actions if action.start <= middle < action.end]
            assert [label] == (inside or ["background"])
            assert start in range(200 - stitched.CLIP_FRAMES + 1)


def test_the_scores_are_those_of_a_hand_made_example():
    import long_video

    def parts(*rows):
        return [{"start": start, "end": end, "class": name} for start, end, name in rows]

    actions = parts((2, 4, "a"), (6, 8, "b"))
    segments = parts((0, 2.4, "unknown"), (2.4, 4.6, "a"), (4.6, 6, "background"), (6, 6.9, "b"), (6.9, 10, "a"))
    # a: 1.6 of 2 s. b: 0.9 of 2 s. Near: the start of a, the start of b. Wrong: 4 to 4.6 and 8 to 10, of 6 s of pauses.
    # The last segment of class a overlaps no action of class a.
    assert long_video.score(actions, segments, {"unknown", "background"}) == pytest.approx(
        {"actions": 1 / 2, "boundaries": 2 / 4, "idle": 1 - 2.6 / 6, "extra": 1 / 2}
    )
