"""Which pixels an item is made of. Videos carry their frame number as a grey level, so that a clip tells its frames."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from stvid.clip import ClipSpec
from stvid.data.dataset import Failure, TrainingClips, Views, collate, item_frames
from stvid.data.manifest import Item
from stvid.data.sampler import EpochSampler, SampleKey
from stvid.data.transforms import Augment
from stvid.errors import VideoError
from stvid.video.probe import probe
from stvid.video.writer import write_video

STEP = 6  # grey levels from one frame to the next
CLASSES = ("a", "b")


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Two videos of 40 frames at 20 fps, and a file that is no video."""
    folder = tmp_path_factory.mktemp("numbered")
    frames = np.arange(40, dtype=np.uint8)[:, None, None, None] * STEP + np.zeros((1, 32, 48, 3), dtype=np.uint8)
    for name in ("one.mp4", "two.mp4"):
        write_video(folder / name, frames, fps=20)
    (folder / "bad.mp4").write_bytes(b"this is no video" * 100)
    return folder


def dataset(kind, folder, names=("one.mp4", "two.mp4"), clip=None, times=(None, None), **options):
    items = [
        Item(path=str(folder / name), label=CLASSES[i % 2], split="train", start=times[0], end=times[1])
        for i, name in enumerate(names)
    ]
    infos = []
    for item in items:
        try:
            infos.append(probe(item.path))
        except VideoError as error:
            infos.append(error)
    clip = clip or ClipSpec(num_frames=4, frame_stride=3, size=16)
    return kind(items=items, infos=infos, class_names=CLASSES, clip=clip, **options)


def shown(clip_TCHW):
    """Frame numbers that a clip shows."""
    return [round(level / STEP) for level in clip_TCHW.float().mean(dim=(1, 2, 3)).tolist()]


def test_views_spread_over_the_video_and_show_exactly_their_frames(numbered):
    sample = dataset(Views, numbered, num_clips=3)[0, 0]
    assert sample["clips"].shape == (3, 4, 3, 16, 16)
    assert sample["clips"].dtype == torch.uint8
    assert [shown(view) for view in sample["clips"]] == [[5, 8, 11, 14], [15, 18, 21, 24], [25, 28, 31, 34]]


def test_crops_come_beside_each_clip(numbered):
    sample = dataset(Views, numbered, num_clips=2, num_crops=3)[0, 1]
    assert [shown(view)[0] for view in sample["clips"]] == [7, 7, 7, 22, 22, 22]
    assert sample["label"] == 1


def test_a_video_is_decoded_once_for_all_its_views(numbered, monkeypatch):
    calls = []
    views = dataset(Views, numbered, num_clips=5, num_crops=3)
    monkeypatch.setattr(
        "stvid.data.dataset.read_frames",
        lambda p, i, **k: calls.append(p) or torch.zeros(len(i), 3, 32, 48, dtype=torch.uint8),
    )
    views[0, 0]
    assert len(calls) == 1


def test_frames_can_be_put_out_of_order(numbered):
    clip = ClipSpec(num_frames=16, frame_stride=2, size=16)
    reversed_ = dataset(Views, numbered, clip=clip, playback="reversed")[0, 0]["clips"][0]
    shuffled = dataset(Views, numbered, clip=clip, playback="shuffled", seed=1)[0, 0]["clips"][0]
    forward = shown(dataset(Views, numbered, clip=clip)[0, 0]["clips"][0])
    assert shown(reversed_) == forward[::-1]
    assert sorted(shown(shuffled)) == forward
    assert shown(shuffled) != forward


def test_videos_can_be_played_slower_faster_and_frozen(numbered):
    def frames(playback: str, **options) -> list[int]:
        clip = ClipSpec(num_frames=4, frame_stride=3, size=16, **options)
        return shown(dataset(Views, numbered, clip=clip, playback=playback)[0, 0]["clips"][0][:, :3])

    assert frames("normal") == [15, 18, 21, 24]
    assert frames("half_speed") == [17, 19, 20, 22]  # of 80 frames, each twice: 35, 38, 41, 44
    assert frames("double_speed") == [10, 16, 22, 28]
    assert frames("frozen") == [21, 21, 21, 21]


def test_difference_images_know_how_the_video_is_played(numbered):
    """A second has 20 frames, 0.2 s are 4; at half speed they hold the change of 2, at double speed that of 8."""
    change = {}
    for playback in ("normal", "half_speed", "double_speed", "frozen"):
        clip = ClipSpec(num_frames=2, frame_stride=1, size=16, input="diff", diff_seconds=0.2, diff_gain=1)
        view = dataset(Views, numbered, clip=clip, playback=playback)[0, 0]["clips"][0]
        change[playback] = (view.float().mean().item() - 127) / STEP
    assert change == pytest.approx({"normal": 4, "half_speed": 2, "double_speed": 8, "frozen": 0}, abs=0.4)


def test_training_clips_start_anywhere_and_stay_inside(numbered):
    clips = dataset(TrainingClips, numbered, augment=Augment())
    starts = {shown(clips[epoch, 0]["clips"][0])[0] for epoch in range(300)}
    assert starts == set(range(31))


@pytest.mark.parametrize("rate", [{"frame_stride": 3}, {"frame_stride": None, "fps": 20 / 3}])
def test_training_clips_are_played_at_random_speeds(numbered, rate):
    clip = ClipSpec(num_frames=4, size=16, **rate)
    faster = dataset(TrainingClips, numbered, clip=clip, augment=Augment(speed=(2.0, 2.0)))
    frames = shown(faster[0, 0]["clips"][0])
    assert np.diff(frames).tolist() == [6, 6, 6]
    changing = dataset(TrainingClips, numbered, clip=clip, augment=Augment(speed=(0.5, 2.0)))
    distances = {tuple(np.diff(shown(changing[epoch, 0]["clips"][0])).tolist()) for epoch in range(40)}
    assert len(distances) > 8
    assert 1 <= min(min(d) for d in distances) < 3 < max(max(d) for d in distances) <= 6


def test_a_part_of_a_video_ends_where_it_says(numbered):
    views = dataset(Views, numbered, times=(0.5, 1.5), num_clips=2)
    assert [shown(view) for view in views[0, 0]["clips"]] == [[12, 15, 18, 21], [17, 20, 23, 26]]


def test_an_item_depends_on_seed_epoch_and_index_alone(numbered):
    augment = Augment(scale=(0.3, 1.0), flip=0.5, brightness=0.3)
    entry, twin = (dataset(TrainingClips, numbered, augment=augment, seed=5) for _ in range(2))
    other = dataset(TrainingClips, numbered, augment=augment, seed=6)
    for key in ((0, 0), (3, 1)):
        entry[1, 1]  # what was asked before plays no part
        assert torch.equal(entry[key]["clips"], twin[key]["clips"])
    assert not torch.equal(entry[0, 0]["clips"], other[0, 0]["clips"])
    assert not torch.equal(entry[0, 0]["clips"], entry[1, 0]["clips"])


@pytest.mark.parametrize("epoch", [0, 1])
def test_batches_are_the_same_with_no_workers_and_with_two(numbered, epoch):
    clips = dataset(
        TrainingClips, numbered, names=["one.mp4", "two.mp4"] * 4, augment=Augment(scale=(0.5, 1.0), flip=0.5)
    )
    batches = []
    for num_workers in (0, 2):
        sampler = EpochSampler(num_items=len(clips), shuffle=True, seed=1)
        sampler.set_epoch(epoch)
        batches.append(list(DataLoader(clips, 3, sampler=sampler, collate_fn=collate, num_workers=num_workers)))
    for entry, other in zip(*batches, strict=True):
        assert all(torch.equal(entry[key], other[key]) for key in ("clips", "labels", "videos"))


def test_short_clips_are_padded_and_the_batch_has_their_lengths(numbered):
    clip = ClipSpec(num_frames=6, frame_stride=10, size=8, short="pad")
    short = dataset(Views, numbered, clip=clip)[0, 0]
    full = dataset(Views, numbered, clip=ClipSpec(num_frames=6, frame_stride=2, size=8))[0, 1]
    batch = collate([short, full])
    assert batch["lengths"].tolist() == [4, 6]
    assert batch["clips"].shape == (2, 6, 3, 8, 8)
    assert shown(batch["clips"][0])[:4] == [0, 10, 20, 30]
    assert (batch["clips"][0, 4:] == 0).all()
    assert collate([full])["lengths"] is None


def test_a_bad_video_is_left_out_of_its_batch_and_named(numbered):
    views = dataset(Views, numbered, names=["one.mp4", "bad.mp4", "two.mp4"])
    failure = views[0, 1]
    assert isinstance(failure, Failure)
    batch = collate([views[0, 0], failure, views[0, 2]])
    assert batch["videos"].tolist() == [0, 2]
    assert [(f.video, f.reason) for f in batch["failed"]] == [(1, "unreadable")]


def test_a_batch_of_nothing_but_bad_videos_is_an_empty_batch(numbered):
    batch = collate([dataset(Views, numbered, names=["bad.mp4"])[0, 0]])
    assert len(batch["labels"]) == 0
    assert len(batch["failed"]) == 1


def test_a_part_without_frames_is_a_failure_not_another_part(numbered):
    assert dataset(Views, numbered, times=(5.0, 6.0))[0, 0].reason == "empty"


def test_every_process_trains_on_its_share_and_judges_each_video_once():
    def keys(**options):
        return [[draw.index for draw in EpochSampler(num_items=10, rank=r, world_size=3, **options)] for r in range(3)]

    judged = keys(shuffle=False)
    assert sorted(sum(judged, [])) == list(range(10))
    trained = keys(shuffle=True)
    assert [len(share) for share in trained] == [3, 3, 3]
    assert len(set(sum(trained, []))) == 9


def test_the_order_is_another_in_every_epoch_and_the_same_in_every_run():
    def order(epoch, seed=0):
        sampler = EpochSampler(num_items=50, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1) == order(1)
    assert [draw.index for draw in order(1)] != [draw.index for draw in order(2)]
    assert [draw.index for draw in order(1)] != [draw.index for draw in order(1, seed=1)]
    assert {draw.epoch for draw in order(7)} == {7}


LABELS = ["many"] * 40 + ["few"] * 8 + ["one"]


def balanced(epoch=0, **options):
    sampler = EpochSampler(num_items=len(LABELS), shuffle=True, labels=LABELS, **options)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_balanced_drawing_shows_every_class_equally_often():
    draws = balanced()
    assert len(draws) == len(LABELS)
    counts = Counter(LABELS[draw.index] for draw in draws)
    assert all(16 <= count <= 17 for count in counts.values()), counts
    few = Counter(draw.index for draw in draws if LABELS[draw.index] == "few")
    assert all(count in (1, 2, 3) for count in few.values()), "each comes again only after all others came"
    assert len(few) == 8
    assert len(set(draws)) == len(draws), "a video that comes again is asked for another clip"
    assert balanced() == balanced()
    assert balanced(1) != balanced(2)


def test_balanced_drawing_is_shared_out_among_processes():
    shares = [balanced(rank=rank, world_size=2) for rank in range(2)]
    assert [len(share) for share in shares] == [24, 24]
    assert not set(shares[0]) & set(shares[1])


def test_a_video_drawn_again_gives_another_clip(numbered):
    clips = dataset(TrainingClips, numbered, augment=Augment())
    shown_clips = [shown(clips[SampleKey(0, 0, repeat)]["clips"][0]) for repeat in range(8)]
    assert len({tuple(clip) for clip in shown_clips}) > 2
    assert torch.equal(clips[SampleKey(0, 0)]["clips"], clips[0, 0]["clips"])


@pytest.mark.parametrize("kind", [Views, TrainingClips])
def test_an_index_alone_is_the_draw_of_epoch_0(numbered, kind):
    options = {"augment": Augment()} if kind is TrainingClips else {}
    data = dataset(kind, numbered, **options)
    for index in (0, 1, np.int64(1), -1, -2):
        assert data[index]["video"] == index % 2
        assert torch.equal(data[index]["clips"], data[SampleKey(0, int(index) % 2)]["clips"])
        assert data[SampleKey(0, int(index))]["video"] == index % 2
    for key in (2, -3, SampleKey(0, 2), (0, -3)):
        with pytest.raises(IndexError, match="out of range for 2 items"):
            data[key]
    with pytest.raises(TypeError):
        data["0"]
    assert [sample["video"] for sample in data] == [0, 1]
    (batch,) = DataLoader(data, 2, collate_fn=collate)  # torch's own sampler
    assert batch["videos"].tolist() == [0, 1]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """40 frames that carry their numbers: the first 20 are 50 ms apart, the others 200 ms (5 s together)."""
    path = tmp_path_factory.mktemp("uneven") / "video.mp4"
    times = [50 * i if i < 20 else 1000 + 200 * (i - 20) for i in range(40)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), number * STEP, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.parent


def test_frames_a_second_are_counted_by_the_clock_where_frames_are_not_evenly_spaced(uneven):
    clip = ClipSpec(num_frames=10, frame_stride=None, fps=2, size=16)
    views = dataset(Views, uneven, names=["video.mp4"], clip=clip)
    # every half second: frames 0, 10, 20 at 0, 0.5, 1 s; then 0.2 s a frame, the last one begun is shown
    assert shown(views[0, 0]["clips"][0])[:8] == [0, 10, 20, 22, 25, 27, 30, 32]


def test_a_part_of_a_video_with_uneven_frames_follows_their_times(uneven):
    views = dataset(Views, uneven, names=["video.mp4"], times=(0.95, 2.0))
    assert list(item_frames(views.items[0], views.infos[0])) == [19, 20, 21, 22, 23, 24]  # 2.0 s is frame 25's


def test_a_part_holds_the_frames_from_its_start_up_to_its_end(numbered):
    views = dataset(Views, numbered, times=(0.51, 1.0))  # 20 frames a second
    assert list(item_frames(views.items[0], views.infos[0])) == list(range(11, 20))


@pytest.mark.parametrize("kind", [Views, TrainingClips])
def test_a_whole_video_is_one_clip_of_all_its_frames(numbered, kind):
    options = {"augment": Augment()} if kind is TrainingClips else {}
    sample = dataset(kind, numbered, clip=ClipSpec(num_frames=None, frame_stride=4, size=16), **options)[0, 0]
    assert len(sample["clips"]) == 1
    first, *others = shown(sample["clips"][0])
    assert others == list(range(first + 4, 40, 4))[: len(others)]
    assert len(others) == 9


@pytest.mark.parametrize("kind", [Views, TrainingClips])
def test_difference_images_show_what_changed_since_the_earlier_frame(numbered, kind):
    """The videos grow brighter by 6 grey levels a frame; 0.1 s are two frames."""
    options = {"augment": Augment()} if kind is TrainingClips else {}
    clip = ClipSpec(num_frames=4, frame_stride=3, size=16, input="rgb_diff", diff_seconds=0.1, diff_gain=2)
    (view,) = dataset(kind, numbered, clip=clip, **options)[7, 0]["clips"]
    assert view.shape == (4, 6, 16, 16)
    assert shown(view[:, :3])[1:] == [shown(view[:, :3])[0] + 3 * i for i in (1, 2, 3)]
    assert view[:, 3:].float().mean().item() == pytest.approx(127 + 2 * 2 * STEP, abs=3)
    backwards = dataset(Views, numbered, clip=clip, playback="reversed")[0, 0]["clips"][0]
    assert backwards[:, 3:].float().mean().item() == pytest.approx(127 - 2 * 2 * STEP, abs=3)


def test_clips_of_similar_length_share_a_batch_and_every_draw_comes_once():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 1000, 403).tolist()
    options = {"num_items": 403, "shuffle": True, "lengths": lengths, "batch_size": 8}
    sampler = EpochSampler(**options)
    draws = [draw.index for draw in sampler]
    assert sorted(draws) == list(range(403))
    batches = [[lengths[i] for i in draws[k : k + 8]] for k in range(0, 400, 8)]
    assert np.mean([max(batch) - min(batch) for batch in batches]) < 100  # unsorted, about 800
    assert [max(batch) for batch in batches] != sorted(max(batch) for batch in batches)
    sampler.set_epoch(1)
    assert [draw.index for draw in sampler] != draws
    shares = [list(EpochSampler(**options, rank=rank, world_size=2)) for rank in (0, 1)]
    assert len({draw.index for share in shares for draw in share}) == 402
    for entry, other in zip(*shares, strict=True):
        assert entry.index != other.index
    together = [abs(lengths[a.index] - lengths[b.index]) for a, b in zip(*shares, strict=True)]
    assert np.mean(together[:392]) < 50


def test_passes_bring_the_same_draws_back():
    sampler = EpochSampler(num_items=5, shuffle=True, passes=2)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert [{draw.epoch for draw in draws} for draws in epochs] == [{0}, {1}, {0}]
    assert set(epochs[0]) == set(epochs[2])
    assert epochs[0] != epochs[2]


@pytest.fixture(scope="module")
def colourful(tmp_path_factory):
    """Noise in colour: 40 frames of 32 x 48, and 15 of 60 x 40; both at 20 fps."""
    folder, rng = tmp_path_factory.mktemp("colourful"), np.random.default_rng(0)
    for name, size in (("long.mp4", (40, 32, 48)), ("short.mp4", (15, 60, 40))):
        write_video(folder / name, rng.integers(0, 256, (*size, 3), dtype=np.uint8), fps=20)
    return folder


EVERYTHING = {
    "flip": {"flip": 0.5},
    "flip_pairs": {"flip": 0.5, "flip_pairs": [["a", "b"]]},
    "colours": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
    "hue": {"hue": 0.1},
    "rand_augment": {"rand_augment": 2, "rand_magnitude": 15},
    "erase": {"erase": 0.5},
}
EVERYTHING["all"] = {key: value for options in list(EVERYTHING.values()) for key, value in options.items()}


def assert_equal_batches(batch, other):
    assert batch.keys() == other.keys()
    for key, value in batch.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key
    assert batch["clips"].stride() == other["clips"].stride()


def batch_of(clips, num_epochs=8):
    """A batch of clips of all videos in the first epochs."""
    return collate([clips[SampleKey(epoch, index)] for epoch in range(num_epochs) for index in range(len(clips))])


@pytest.mark.parametrize("changes", EVERYTHING)
@pytest.mark.parametrize(
    "clip", [{}, {"short": "pad"}, {"short": "pad", "input": "diff"}, {"input": "rgb_diff"}], ids=str
)
def test_a_batch_augmented_later_is_that_of_the_readers(colourful, clip, changes):
    spec = ClipSpec(num_frames=6, frame_stride=3, size=24, **clip)
    augment = Augment(scale=(0.5, 1.0), speed=(0.8, 1.25), **EVERYTHING[changes])
    names = ["long.mp4", "short.mp4", "bad.mp4"]
    readers = dataset(TrainingClips, colourful, names=names, clip=spec, augment=augment, seed=3)
    wanted, later = batch_of(readers), batch_of(replace(readers, augments_later=True))
    assert (wanted["lengths"] is not None) == ("short" in clip)
    assert not torch.equal(later["clips"][:, : spec.num_frames], wanted["clips"][:, :, -3:]), "there is something to do"
    state = torch.get_rng_state()
    done = readers.augment_batch(later)
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal_batches(done, wanted)
    changed = done["labels"] != done["videos"] % 2
    assert bool(changed.any()) == bool(augment.flip_pairs)
    assert not changed.all()


def test_a_batch_augmented_later_crosses_to_another_device(colourful):
    """`meta` stands for a GPU: pixels that are read by the CPU would be an error."""
    clips = dataset(TrainingClips, colourful, names=["long.mp4", "short.mp4"], augment=Augment(**EVERYTHING["all"]))
    batch = batch_of(replace(clips, augments_later=True))
    done = clips.augment_batch({**batch, "clips": batch["clips"].to("meta")})
    assert {done["clips"].device.type, done["labels"].device.type} == {"meta"}
    assert done["clips"].shape == batch["clips"].shape


def test_a_batch_of_nothing_but_bad_videos_has_nothing_to_augment(numbered):
    clips = dataset(TrainingClips, numbered, names=["bad.mp4"], augment=Augment(flip=1.0), augments_later=True)
    batch = clips.augment_batch(collate([clips[0, 0]]))
    assert (len(batch["labels"]), len(batch["failed"])) == (0, 1)


def test_workers_hand_over_the_generators_of_clips_that_are_augmented_later(colourful):
    names = ["long.mp4", "short.mp4"] * 4
    clips = dataset(TrainingClips, colourful, names=names, augment=Augment(**EVERYTHING["all"]))
    keys = [SampleKey(2, index) for index in range(len(names))]
    later = DataLoader(replace(clips, augments_later=True), 4, sampler=keys, collate_fn=collate, num_workers=2)
    wanted = DataLoader(clips, 4, sampler=keys, collate_fn=collate)
    for batch, other in zip(later, wanted, strict=True):
        assert_equal_batches(clips.augment_batch(batch), other)
