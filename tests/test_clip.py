import pytest
import torch

from stvid.clip import ClipSpec
from stvid.errors import InputError
from stvid.preprocess import Preprocess, as_input, difference_image


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


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("levels", [(0, 255), (252, 255), (120, 122)])
@pytest.mark.parametrize(("normalize", "dims"), [("frame", (-1, -2)), ("clip", (0, -1, -2))])
def test_a_million_pixels_are_added_up_exactly(normalize, dims, levels, memory):
    low, high = levels
    x = torch.randint(low, high + 1, (260, 3, 64, 64), dtype=torch.uint8).contiguous(memory_format=memory)
    y = Preprocess(clip=ClipSpec(normalize=normalize))(x[None])[0].transpose(0, 1)
    std, mean = torch.std_mean(x.double(), dim=dims, keepdim=True, unbiased=False)
    torch.testing.assert_close(y.double(), (x - mean) / std.clamp_min(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("normalize", ["fixed", "frame", "clip"])
def test_the_order_in_memory_and_the_batch_change_no_bit(normalize):
    x, preprocess = (
        torch.randint(0, 256, (3, 5, 3, 40, 24), dtype=torch.uint8),
        Preprocess(clip=ClipSpec(normalize=normalize)),
    )
    whole = preprocess(x)
    last = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert torch.equal(preprocess(last), whole)
    assert torch.equal(torch.cat([preprocess(last[:1]), preprocess(x[1:])]), whole)


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
    ("arguments", "text"),
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
def test_impossible_clips_are_told(arguments, text):
    with pytest.raises(InputError) as error:
        ClipSpec(**arguments)
    assert text in str(error.value)


def test_a_difference_image_is_its_formula():
    earlier = torch.tensor([100, 100, 100, 100], dtype=torch.uint8).view(1, 1, 1, 4)
    later = torch.tensor([100, 110, 90, 200], dtype=torch.uint8).view(1, 1, 1, 4)
    assert difference_image(earlier, later, gain=3).flatten().tolist() == [127, 157, 97, 255]


@pytest.mark.parametrize(("requested", "channels"), [("rgb", 3), ("diff", 3), ("rgb_diff", 6)])
def test_the_input_is_what_was_asked_for(requested, channels):
    clip = ClipSpec(input=requested, diff_gain=2)
    pictures = torch.randint(0, 60, (8, 3, 4, 4), dtype=torch.uint8)
    earlier, frames = pictures[:4], pictures[4:]
    moved = 127 + 2 * (frames.int() - earlier.int())
    actual = as_input(frames if requested == "rgb" else pictures, clip)
    assert actual.shape == (4, channels, 4, 4) == (4, clip.channels, 4, 4)
    assert actual.dtype == torch.uint8
    if "rgb" in requested:
        assert torch.equal(actual[:, :3], frames)
    if "diff" in requested:
        assert torch.equal(actual[:, -3:].int(), moved)


def test_differences_keep_their_scale_beside_pictures_that_do_not():
    x = torch.cat([clips(), torch.full((2, 5, 3, 6, 6), 143, dtype=torch.uint8)], dim=2)
    y = Preprocess(clip=ClipSpec(input="rgb_diff", normalize="frame"))(x)
    torch.testing.assert_close(y[:, :3], Preprocess(clip=ClipSpec())(x[:, :, :3]))
    torch.testing.assert_close(y[:, 3:], torch.full((2, 3, 5, 6, 6), 0.5))
    fixed = Preprocess(clip=ClipSpec(input="rgb_diff", normalize="fixed", mean=(0.5,) * 3, std=(0.5,) * 3))(x)
    torch.testing.assert_close(fixed[:, 3:], torch.full((2, 3, 5, 6, 6), (143 / 255 - 0.5) / 0.5))


def test_preprocessing_leaves_the_batch_as_it_is():
    x = clips()
    before = x.clone()
    Preprocess(clip=ClipSpec(normalize="clip"))(x, torch.tensor([5, 3]))
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"input": "flow"}, "clip.input .=flow. must be one of rgb, diff, rgb_diff"),
        ({"diff_gain": 0}, "diff_gain .=0. must be above 0"),
        ({"num_frames": 0}, "at least 1, or null for whole videos"),
    ],
)
def test_impossible_inputs_are_told(options, text):
    with pytest.raises(InputError, match=text):
        ClipSpec(**options)
