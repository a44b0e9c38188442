"""Which pixels an item is made of. Videos carry their frame number as a grey level, so that a clip tells its frames."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from stvid.clip import ClipSpec
from stvid.data.dataset import EpochSampler, Failure, TrainingClips, Views, collate
from stvid.data.manifest import Item
from stvid.data.transforms import Augment
from stvid.video.errors import VideoError
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
    reversed_ = dataset(Views, numbered, clip=clip, order="reversed")[0, 0]["clips"][0]
    shuffled = dataset(Views, numbered, clip=clip, order="shuffled", seed=1)[0, 0]["clips"][0]
    forward = shown(dataset(Views, numbered, clip=clip)[0, 0]["clips"][0])
    assert shown(reversed_) == forward[::-1]
    assert sorted(shown(shuffled)) == forward
    assert shown(shuffled) != forward


def test_training_clips_start_anywhere_and_stay_inside(numbered):
    clips = dataset(TrainingClips, numbered, augment=Augment())
    starts = {shown(clips[epoch, 0]["clips"][0])[0] for epoch in range(300)}
    assert starts == set(range(31))


def test_a_part_of_a_video_ends_where_it_says(numbered):
    views = dataset(Views, numbered, times=(0.5, 1.5), num_clips=2)
    assert [shown(view) for view in views[0, 0]["clips"]] == [[12, 15, 18, 21], [17, 20, 23, 26]]


def test_an_item_depends_on_seed_epoch_and_index_alone(numbered):
    augment = Augment(scale=(0.3, 1.0), flip=0.5, brightness=0.3)
    one, twin = (dataset(TrainingClips, numbered, augment=augment, seed=5) for _ in range(2))
    other = dataset(TrainingClips, numbered, augment=augment, seed=6)
    for key in ((0, 0), (3, 1)):
        one[1, 1]  # what was asked before plays no part
        assert torch.equal(one[key]["clips"], twin[key]["clips"])
    assert not torch.equal(one[0, 0]["clips"], other[0, 0]["clips"])
    assert not torch.equal(one[0, 0]["clips"], one[1, 0]["clips"])


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
    for one, other in zip(*batches, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("clips", "labels", "videos"))


def test_short_clips_are_padded_and_their_lengths_told(numbered):
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
        return [[i for _, i in EpochSampler(num_items=10, rank=r, world_size=3, **options)] for r in range(3)]

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
    assert [i for _, i in order(1)] != [i for _, i in order(2)]
    assert [i for _, i in order(1)] != [i for _, i in order(1, seed=1)]
    assert {epoch for epoch, _ in order(7)} == {7}
