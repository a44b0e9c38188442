import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

from stvid.clip import ClipSpec
from stvid.data.transforms import MEAN_COLOUR, Augment, erase_box
from stvid.errors import InputError
from stvid.preprocess import as_input, crop_and_resize, crop_box, reading_size


def still_clip(num_frames=4, height=40, width=60):
    """The same picture T times, with a gradient that tells left from right."""
    ramp = torch.linspace(0, 255, width).expand(3, height, width).to(torch.uint8)
    return ramp.expand(num_frames, 3, height, width)


@pytest.mark.parametrize(
    ("crop", "num_crops", "expected"),
    [(0, 1, (0, 30, 40, 40)), (0, 3, (0, 0, 40, 40)), (1, 3, (0, 30, 40, 40)), (2, 3, (0, 60, 40, 40))],
)
def test_crops_lie_along_the_longer_side(crop, num_crops, expected):
    assert crop_box(40, 100, (64, 64), crop=crop, num_crops=num_crops) == expected


def test_a_crop_has_the_clips_shape():
    assert crop_box(100, 100, (64, 128)) == (25, 0, 50, 100)
    assert crop_and_resize(still_clip(), (0, 10, 40, 40), (20, 24)).shape == (4, 3, 20, 24)


def cut_and_changed(augment, clip, label, size, *, seed):
    """What a training clip goes through."""
    rng = np.random.default_rng(seed)
    box = augment.random_box(*clip.shape[-2:], size, rng)
    return augment(crop_and_resize(clip, box, size), label, rng=rng)


@pytest.mark.parametrize("box", [(0, 0, 720, 720), (0, 560, 720, 720), (101, 333, 512, 600), (600, 1000, 120, 280)])
@pytest.mark.parametrize("size", [(64, 64), (112, 112), (32, 96)])
def test_a_part_cut_from_shrunk_frames_is_the_part_cut_before_shrinking(box, size):
    y, x = torch.meshgrid(torch.arange(720), torch.arange(1280), indexing="ij")
    picture = torch.stack([y * 255 // 720, x * 255 // 1280, (x // 40 + y // 40) % 2 * 255]).to(torch.uint8)[None]
    short_side = reading_size(720, 1280, box, size)
    wanted = crop_and_resize(picture, box, size)
    shrunk = crop_and_resize(picture, (0, 0, 720, 1280), (short_side, round(1280 * short_side / 720)))
    got = crop_and_resize(shrunk, box, size, native=(720, 1280))
    off = (got.float() - wanted.float()).abs().mean(dim=(0, 2, 3))
    assert off[:2].max() < 3  # the ramps: half a pixel of the small picture
    assert got.shape[-2:] == size


def test_all_frames_of_a_clip_are_changed_alike():
    augment = Augment(
        scale=(0.3, 0.9), ratio=(0.7, 1.4), flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
    )
    for seed in range(20):
        out, _ = cut_and_changed(augment, still_clip(), "x", (32, 32), seed=seed)
        assert out.shape == (4, 3, 32, 32)
        assert out.dtype == torch.uint8
        assert (out == out[:1]).all()


def test_contrast_does_not_flicker_with_a_frames_own_brightness():
    clip = still_clip().clone()
    clip[2] = 0  # one dark frame must not change what happens to the others
    out, _ = Augment(contrast=0.5)(clip, "x", rng=np.random.default_rng(1))
    assert (out[0] == out[3]).all()
    assert (out[0] != clip[0]).any()


def test_the_same_random_state_gives_the_same_clip_and_another_another():
    augment = Augment(scale=(0.3, 1.0), flip=0.5)
    item, again, other = (cut_and_changed(augment, still_clip(), "x", (16, 16), seed=s)[0] for s in (1, 1, 2))
    assert torch.equal(item, again)
    assert not torch.equal(item, other)


def test_a_mirror_image_swaps_the_labels_of_a_pair_and_no_others():
    augment = Augment(flip=1.0, flip_pairs=[["swipe_left", "swipe_right"]])
    rng = np.random.default_rng(0)
    mirrored, label = augment(still_clip(width=40), "swipe_left", rng=rng)
    assert label == "swipe_right"
    assert torch.equal(mirrored, still_clip(width=40).flip(-1))
    assert augment(still_clip(), "jump", rng=rng)[1] == "jump"
    assert Augment(flip_pairs=augment.flip_pairs)(still_clip(), "swipe_left", rng=rng)[1] == "swipe_left"


def test_nothing_asked_for_changes_nothing():
    clip = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8)
    out, _ = cut_and_changed(Augment(), clip, "x", (24, 24), seed=0)
    assert torch.equal(out, clip)


def test_the_kept_area_stays_in_the_given_range():
    augment = Augment(scale=(0.25, 0.5))
    areas = [np.prod(augment.random_box(100, 100, (64, 64), np.random.default_rng(s))[2:]) for s in range(200)]
    assert 2300 < min(areas) < 2800
    assert 4700 < max(areas) <= 5000


def test_speeds_are_as_likely_below_one_as_above():
    augment, rng = Augment(speed=(0.5, 2.0)), np.random.default_rng(0)
    speeds = np.array([augment.random_speed(rng) for _ in range(400)])
    assert 0.5 <= speeds.min() < 0.52
    assert 1.95 < speeds.max() <= 2.0
    assert 0.4 < (speeds < 1).mean() < 0.6


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"scale": (0.0, 1.0)}, "augment.scale"),
        ({"speed": (0.0, 2.0)}, "augment.speed (=[0.0, 2.0])"),
        ({"speed": (1.5, 1.2)}, "augment.speed (=[1.5, 1.2])"),
        ({"flip": 2}, "augment.flip (=2)"),
        ({"hue": 0.7}, "[0, 0.5]"),
        ({"rand_augment": -1}, "augment.rand_augment (=-1)"),
        ({"rand_magnitude": 31}, "augment.rand_magnitude (=31) must be in 0 to 30"),
        ({"erase": 1.5}, "augment.erase (=1.5)"),
        ({"device": "tpu"}, "augment.device (=tpu) must be one of auto, cpu, gpu"),
        ({"flip_pairs": 5}, "augment.flip_pairs (=5) must be pairs"),
        ({"flip_pairs": [["left", "right"], ["up"]]}, "must be pairs of class names"),
        ({"flip_pairs": [[1, 2]]}, "must be pairs of class names"),
    ],
)
def test_invalid_augmentations_are_errors(arguments, expected):
    with pytest.raises(InputError) as error:
        Augment(**arguments)
    assert expected in str(error.value)


def test_flip_pairs_must_name_classes():
    with pytest.raises(InputError, match="'hop'"):
        Augment(flip_pairs=[["run", "hop"]]).check_classes(["run", "sit"])


def test_frames_are_shrunk_to_where_the_part_has_just_its_size():
    assert reading_size(720, 1280, (0, 280, 720, 720), (112, 112)) == 112
    assert reading_size(720, 1280, (0, 280, 360, 360), (112, 112)) == 224
    assert reading_size(720, 1280, (0, 0, 100, 100), (112, 112)) is None  # it is to be enlarged
    shrunk = torch.randint(0, 256, (2, 3, 224, 398), dtype=torch.uint8)
    cut = crop_and_resize(shrunk, (100, 900, 360, 360), (112, 112), native=(720, 1280))
    left = round((900 + 180) * 398 / 1280 - 56)
    assert torch.equal(cut, shrunk[..., 31:143, left : left + 112]), "nothing is resampled a second time"


def picture(height=24, width=32, *, dark=10, bright=200):
    """3 x H x W with edges and colours, so that every operation can be seen."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    levels = torch.stack([x / width, y / height, (x // 4 + y // 4) % 2])
    return (dark + (bright - dark) * levels).to(torch.uint8)


def test_rand_augment_does_the_same_to_all_frames_and_is_a_function_of_its_random_state():
    clip = picture().expand(5, -1, -1, -1)
    augment = Augment(rand_augment=2, rand_magnitude=20)
    actual = []
    for seed in range(60):
        out, _ = augment(clip, "x", rng=np.random.default_rng(seed))
        assert out.shape == clip.shape
        assert type(out) is torch.Tensor
        assert out.dtype == torch.uint8
        assert (out == out[:1]).all()
        actual.append(out)
    assert all(
        torch.equal(augment(clip, "x", rng=np.random.default_rng(s))[0], out) for s, out in enumerate(actual[:20])
    )
    assert len({out.numpy().tobytes() for out in actual}) > 30


@pytest.mark.parametrize("num_ops", [1, 3])
def test_rand_augment_does_not_flicker_with_a_frames_own_brightness(num_ops):
    """Of a clip with one dark frame, the others stay alike; what is stretched, is by the range of the whole clip."""
    clip = torch.stack([picture(), picture(dark=0, bright=40), picture(), picture()])
    tall = clip.transpose(0, 1).flatten(1, 2)  # the clip's frames below each other, as one picture
    seen = set()
    for seed in range(100):
        augment = Augment(rand_augment=num_ops, rand_magnitude=15)
        out, _ = augment(clip, "x", rng=np.random.default_rng(seed))
        assert torch.equal(out[0], out[2])
        assert torch.equal(out[0], out[3])
        for name, oracle in (("autocontrast", v2.functional.autocontrast), ("equalize", v2.functional.equalize)):
            wanted = oracle(tall).unflatten(1, (4, -1)).transpose(0, 1)
            seen |= {name} if torch.equal(out, wanted) else set()
    assert num_ops > 1 or seen == {"autocontrast", "equalize"}


def test_a_stronger_magnitude_changes_more():
    clip = picture().expand(2, -1, -1, -1)

    def change(magnitude):
        augment = Augment(rand_augment=1, rand_magnitude=magnitude)
        outs = [augment(clip, "x", rng=np.random.default_rng(s))[0] for s in range(60)]
        return sum((out.float() - clip.float()).abs().mean().item() for out in outs)

    assert change(3) < change(10) < change(25)


def test_erasing_takes_one_box_from_every_frame_and_leaves_the_rest():
    clip = torch.randint(0, 100, (6, 3, 40, 60), dtype=torch.uint8)
    before = clip.clone()
    shares = []
    for seed in range(100):
        out, _ = Augment(erase=0.5)(clip, "x", rng=np.random.default_rng(seed))
        gone = (out != clip).any(1)
        assert (gone == gone[:1]).all()
        shares.append(gone[0].float().mean().item())
        if not shares[-1]:
            continue
        rows, columns = gone[0].any(1).nonzero()[:, 0], gone[0].any(0).nonzero()[:, 0]
        box = out[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert gone[0].sum() == box[0, 0].numel(), "a box without holes"
        assert len(box.transpose(0, 1).flatten(1).unique(dim=1).T) == 1, "in one colour"
    assert torch.equal(clip, before)
    assert 0.35 < np.mean([share > 0 for share in shares]) < 0.65
    taken = [share for share in shares if share]
    assert min(taken) > 0.01
    assert 0.25 < max(taken) < 0.36


def test_what_stands_still_stands_still_after_every_change():
    """Pictures and the ones before them are changed alike, so a difference image shows nothing where nothing moved."""
    augment = Augment(flip=0.5, contrast=0.3, rand_augment=2, rand_magnitude=15, erase=0.5)
    spec = ClipSpec(num_frames=3, size=24, input="rgb_diff")
    for seed in range(20):
        out, _ = augment(picture(24, 24).expand(6, -1, -1, -1), "x", rng=np.random.default_rng(seed))
        seen = as_input(out, spec)
        assert seen.shape == (3, 6, 24, 24)
        assert (seen[:, 3:] == 127).all()


def test_new_options_draw_after_the_old_ones_and_leave_torchs_own_randomness_alone():
    clip = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8)
    old = {"flip": 0.5, "brightness": 0.4, "hue": 0.1}
    state = torch.get_rng_state()
    for seed in range(10):
        item, other = np.random.default_rng(seed), np.random.default_rng(seed)
        plain, _ = Augment(**old)(clip, "x", rng=item)
        erased, _ = Augment(**old, erase=1.0)(clip, "x", rng=other)
        same = (plain == erased).all(1)
        assert 0.6 < same.float().mean() < 1.0
        assert item.random() != other.random(), "what is erased depends on the generator"
    assert torch.equal(torch.get_rng_state(), state)


EVERYTHING = Augment(
    flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, rand_augment=2, rand_magnitude=15, erase=0.5
)


def test_the_memory_order_of_a_clip_changes_no_bit():
    """The reader's frames may be cut out of larger ones; those of a batch are channels last."""
    clip = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    orders = [
        clip,
        clip.contiguous(memory_format=torch.channels_last),
        torch.nn.functional.pad(clip, (4, 4))[..., 4:-4],
    ]
    for seed in range(30):
        first, *others = (EVERYTHING(frames, "x", rng=np.random.default_rng(seed))[0] for frames in orders)
        assert all(torch.equal(first, other) for other in others)


class RandomOperations(TorchDispatchMode):
    """Collects the devices of all random numbers."""

    def __init__(self):
        super().__init__()
        self.devices = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in function.tags:
            self.devices.append(result.device.type)
        return result


def test_on_a_device_random_numbers_come_from_the_cpu_and_no_pixel_is_read():
    """Of a tensor on the device `meta` nothing can be read: it has no pixels."""
    clip = torch.empty(4, 3, 40, 60, dtype=torch.uint8, device="meta")
    with RandomOperations() as operations:
        for seed in range(60):
            out, _ = EVERYTHING(clip, "x", rng=np.random.default_rng(seed))
            assert (out.shape, out.dtype, out.device.type) == (clip.shape, torch.uint8, "meta")
    assert len(operations.devices) > 100
    assert set(operations.devices) == {"cpu"}


def test_an_erased_box_is_that_of_torchvision():
    clip = torch.randint(0, 256, (3, 3, 40, 60), dtype=torch.uint8)
    erased = 0
    for seed in range(30):
        out = erase_box(clip, probability=0.5, rng=np.random.default_rng(seed))
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**63)))
        wanted = v2.RandomErasing(0.5, value=MEAN_COLOUR)(clip)
        assert torch.equal(out, wanted)
        erased += not torch.equal(out, clip)
    assert 5 < erased < 25
