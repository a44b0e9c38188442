import pytest
import torch

from stvid.clip import ClipSpec, Preprocess
from stvid.errors import InputError


def clips(batch=2, frames=5, size=6):
    return torch.randint(0, 256, (batch, frames, 3, size, size), dtype=torch.uint8)


def test_the_axes_turn_and_nothing_else_moves():
    x = clips()
    y = Preprocess(clip=ClipSpec(normalize="fixed", mean=(0, 0, 0), std=(1, 1, 1)))(x)
    assert y.shape == (2, 3, 5, 6, 6)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y[1, 2, 3], x[1, 3, 2] / 255)


def test_fixed_uses_the_given_constants():
    x = torch.full((1, 1, 3, 2, 2), 255, dtype=torch.uint8)
    y = Preprocess(clip=ClipSpec(normalize="fixed", mean=(0.5, 0.25, 0), std=(0.5, 1, 2)))(x)
    torch.testing.assert_close(y[0, :, 0, 0, 0], torch.tensor([1.0, 0.75, 0.5]))


@pytest.mark.parametrize(("normalize", "dims"), [("frame", (-1, -2)), ("clip", (1, -1, -2))])
def test_frame_and_clip_standardise_by_their_own_statistics(normalize, dims):
    x = clips()
    y = Preprocess(clip=ClipSpec(normalize=normalize))(x)
    wanted = (x.double() - x.double().mean(dims, keepdim=True)) / x.double().std(dims, keepdim=True, unbiased=False)
    torch.testing.assert_close(y, wanted.transpose(1, 2).float())


@pytest.mark.parametrize("normalize", ["fixed", "frame", "clip"])
def test_what_lies_past_a_clips_length_changes_nothing_and_comes_out_as_zero(normalize):
    preprocess = Preprocess(clip=ClipSpec(normalize=normalize))
    x = clips(frames=7)
    y = preprocess(x, torch.tensor([7, 4]))
    torch.testing.assert_close(y[1, :, :4], preprocess(x[1:, :4])[0])
    assert (y[1, :, 4:] == 0).all()


def test_a_flat_picture_does_not_divide_by_zero():
    y = Preprocess(clip=ClipSpec(normalize="frame"))(torch.full((1, 2, 3, 4, 4), 7, dtype=torch.uint8))
    assert (y == 0).all()


def test_floats_are_refused():
    with pytest.raises(ValueError, match=r"float32 \(1, 2, 3, 4, 4\)"):
        Preprocess(clip=ClipSpec())(torch.zeros(1, 2, 3, 4, 4))


def test_a_spec_survives_plain_data():
    spec = ClipSpec(num_frames=8, frame_stride=None, fps=12.5, size=[100, 200], normalize="clip")
    assert ClipSpec(**spec.to_dict()) == spec
    assert ClipSpec(size=32).size == (32, 32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_frames": 0}, "clip.num_frames (=0) must be at least 1"),
        ({"frame_stride": 0}, "clip.frame_stride (=0)"),
        ({"fps": 10}, "give one of them"),
        ({"frame_stride": None, "fps": -1}, "clip.fps (=-1)"),
        ({"normalize": "none"}, "fixed, clip, frame"),
        ({"short": "loop"}, "repeat_last, wrap, pad, error"),
        ({"size": [1, 2, 3]}, "[height, width]"),
        ({"std": (0, 1, 1)}, "std above 0"),
    ],
)
def test_impossible_clips_are_told(arguments, words):
    with pytest.raises(InputError) as error:
        ClipSpec(**arguments)
    assert words in str(error.value)
