"""With a frozen encoder, training on stored features gives the same results as training on clips."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import TINY, break_half_way, in_process, make_folder, train_py

from stvid.cli import main
from stvid.clip import ClipSpec
from stvid.data.cached_clips import CachedClips
from stvid.data.dataset import TrainingClips, Views
from stvid.data.feature_cache import FeatureCache
from stvid.data.feature_entries import CachedFeatures
from stvid.data.feature_filling import explain_stops, fill_cache, weights_fingerprint
from stvid.data.manifest import Item, Manifest
from stvid.data.sampler import EpochSampler, SampleKey
from stvid.data.transforms import Augment
from stvid.errors import TRUNCATED, InputError, VideoError
from stvid.evaluation.evaluation_run import EvaluationOptions, EvaluationRun, evaluate_run
from stvid.models.encoders import SmallEncoder
from stvid.run.checkpoint import load_checkpoint
from stvid.training.callbacks.progress import EpochTable
from stvid.video.probe import probe

FROZEN = ("model=cnn_lstm", "model.freeze=all", "trainer.max_epochs=2", "data.passes=1", "trainer.precision=32", *TINY)
FEATURES = ".stvid_features"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("features") / "squares", videos=7)


def run(videos, folder, *overrides):
    done = train_py("data=folder", f"data.root={videos}", *FROZEN, *overrides, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    timed = ("seconds", "clips_per_second", "memory_gib", "waiting", "free_clips_per_second")
    return [{key: row[key] for key in row if key not in timed} for row in rows], done


def clear(videos):
    shutil.rmtree(videos / FEATURES, ignore_errors=True)


def stores(videos):
    return sorted((videos / FEATURES).glob("*.h5"))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("data.whole_video=true", "augment.flip_pairs=[[to_left,to_right]]"),
        ("data.balance=classes", "data.passes=2"),
    ],
    ids=["clips", "whole videos", "two passes"],
)
def test_a_run_from_stored_features_is_the_run_without_them(videos, tmp_path, overrides):
    clear(videos)
    with_store, _ = run(videos, tmp_path / "on", *overrides)
    assert len(stores(videos)) == 2
    without, _ = run(videos, tmp_path / "off", *overrides, "data.features=off")
    assert with_store == without
    entry, other = (
        load_checkpoint(tmp_path / "on").model.state_dict(),
        load_checkpoint(tmp_path / "off").model.state_dict(),
    )
    for name, value in entry.items():
        # features are encoded video by video, so float32 rounds otherwise than in batches of clips
        torch.testing.assert_close(value, other[name], atol=5e-6, rtol=1e-5)


def test_a_second_run_reads_no_video_in_training(videos, tmp_path, monkeypatch):
    clear(videos)
    first, _ = run(videos, tmp_path / "first")
    read = []
    monkeypatch.setattr("stvid.data.dataset.TrainingClips.__getitem__", lambda self, key: read.append(key))
    second, _ = run(videos, tmp_path / "second")
    assert second == first
    assert not read


def test_only_what_changed_is_encoded_again(videos, tmp_path):
    clear(videos)
    run(videos, tmp_path / "first")
    before = stores(videos)
    changed = [item.path for item in Manifest.read_csv(tmp_path / "first/manifest.csv").items if item.split == "train"][
        3
    ]
    os.utime(changed, ns=(1, 1))
    _, done = run(videos, tmp_path / "second")
    assert stores(videos) == before
    assert re.search(r"features of train: \d+ cached, 1 to encode", done.stdout)


@pytest.mark.parametrize(
    "override", ["seed=1", "clip.size=40", "clip.input=diff", "augment=none", "trainer.precision=bf16"]
)
def test_another_encoder_or_preprocessing_is_another_store(videos, tmp_path, override):
    clear(videos)
    run(videos, tmp_path / "first")
    before = set(stores(videos))
    run(videos, tmp_path / "second", override)
    assert set(stores(videos)) - before


def test_videos_that_break_are_left_out_as_ever(tmp_path):
    videos = make_folder(tmp_path / "squares", videos=7)
    for name in ("to_left/03.mp4", "to_right/05.mp4"):
        break_half_way(videos / name)
    options = ("data.max_bad=0.5", "data.probe=count", "clip.num_frames=12", "clip.frame_stride=1")
    with_store, _ = run(videos, tmp_path / "on", *options)
    without, _ = run(videos, tmp_path / "off", *options, "data.features=off")
    assert with_store == without
    assert (tmp_path / "on/bad_videos.csv").read_text() == (tmp_path / "off/bad_videos.csv").read_text()


def test_a_resumed_run_goes_on_from_the_features_of_its_own_encoder(videos, tmp_path, monkeypatch):
    """A pretrained encoder is not loaded anew; what the checkpoint holds must be there before anything is encoded."""
    clear(videos)
    donor = tmp_path / "donor"
    run(videos, donor, "model.freeze=0", "seed=7", "trainer.max_epochs=1")
    start = (f"model.weights={donor}", "trainer.max_epochs=3")
    run(videos, tmp_path / "whole", *start)
    before = stores(videos)
    begin = EpochTable.on_train_epoch_start

    def stop(self, trainer, task):
        begin(self, trainer, task)
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EpochTable, "on_train_epoch_start", stop)
        train_py("data=folder", f"data.root={videos}", *FROZEN, *start, f"hydra.run.dir={tmp_path / 'cut'}")
    shutil.rmtree(donor)
    done = train_py(f"resume={tmp_path / 'cut'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert stores(videos) == before
    entry, other = (
        load_checkpoint(tmp_path / name / "checkpoints/last.ckpt").model.state_dict() for name in ("whole", "cut")
    )
    assert all(torch.equal(entry[name], other[name]) for name in entry)


def test_only_the_draws_that_failed_are_left_out(tmp_path):
    """Two keys of one video in a batch, of which one meets the broken end."""
    videos = make_folder(tmp_path / "squares", videos=3, classes=("a",))
    paths = sorted(videos.glob("a/*.mp4"))
    infos = [probe(path) for path in paths]
    items = [Item(path=str(path), label="a", split="train") for path in paths]
    clip = ClipSpec(num_frames=2, frame_stride=1, size=16)
    clips = TrainingClips(items=items, infos=infos, class_names=("a",), clip=clip, augment=Augment())
    bad = SampleKey(0, 0, 1)

    class Breaking(TrainingClips):
        def __getitem__(self, key):
            broken = SampleKey(*key) == bad
            return self.make_failure(0, VideoError(paths[0], TRUNCATED)) if broken else super().__getitem__(key)

    breaking = Breaking(**{field.name: getattr(clips, field.name) for field in dataclasses.fields(clips)})
    cached = CachedClips(breaking, FeatureCache(tmp_path, {}))
    keys = [bad, SampleKey(0, 0, 0), SampleKey(0, 1), SampleKey(0, 2)]
    with cached.cache.writer() as add:
        for part, batch in cached.batches(keys, batch_size=4, num_workers=0):
            means = batch["clips"].float().mean(dim=(2, 3, 4))[..., None]  # as if the encoder gave mean grey levels
            for key, content in cached.entries(part, batch, means):
                add(key, content)
    assert cached.missing_keys(keys) == []
    assert cached[bad].reason == TRUNCATED
    for key in keys[1:]:
        expected = clips[key]["clips"].float().mean(dim=(2, 3, 4))
        torch.testing.assert_close(cached[key]["features"][..., 0], expected)
        if key == SampleKey(0, key.index):
            torch.testing.assert_close(cached[key.index]["features"], cached[key]["features"])
    assert cached[-1]["video"] == 2
    assert [sample["video"] for sample in cached] == [0, 1, 2]
    with pytest.raises(IndexError):
        cached[3]
    again = CachedClips(clips, FeatureCache(tmp_path, {}))
    assert again.missing_keys(keys) == [bad]


def encode_until(folder: Path, number: int | None, *, verify: bool = True) -> int:
    """Encodes the clips in a folder, as if the encoder gave mean grey levels.

    Args:
        folder: with `videos/`; the store lies beside it.
        number: of batches after which this process is killed; None: it goes on to the end.
        verify: the stored features, first.

    Returns:
        How many batches were encoded.
    """
    items = [Item(path=str(path), label="a", split="train") for path in sorted(folder.glob("videos/a/*.mp4"))]
    clip = ClipSpec(num_frames=2, frame_stride=1, size=16)
    infos = [probe(item.path) for item in items]
    clips = TrainingClips(items=items, infos=infos, class_names=("a",), clip=clip, augment=Augment())
    cached = CachedClips(clips, FeatureCache(folder, {}))
    keys = [SampleKey(epoch, index) for epoch in range(2) for index in range(len(items))]
    encoded = 0

    def encode(clips_BTCHW, lengths):
        nonlocal encoded
        if encoded == number:
            os.kill(os.getpid(), signal.SIGKILL)
        encoded += 1
        return clips_BTCHW.float().mean(dim=(2, 3, 4))[..., None]

    options = {"name": "train", "switch": "data.features=off"}
    fill_cache(cached, keys, encode, batch_size=1, num_workers=0, verify=verify, **options)
    for key in keys:
        torch.testing.assert_close(cached[key]["features"][..., 0], clips[key]["clips"].float().mean(dim=(2, 3, 4)))
    return encoded


def test_a_killed_process_has_kept_what_it_encoded(tmp_path):
    """Items are written twice a minute; here at once, so that it is known what has been written."""
    make_folder(tmp_path / "videos", videos=4, classes=("a",))
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path\n"
        "from stvid.data import feature_cache; feature_cache._SAVE_EVERY = 0\n"
        f"from test_feature_encoding import encode_until; encode_until(Path({str(tmp_path)!r}), 5)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert encode_until(tmp_path, None) == 8 - 5
    assert [path.suffix for path in tmp_path.iterdir() if path.is_file() and path.suffix != ".lock"] == [".h5"]
    assert encode_until(tmp_path, None) == 0


def test_features_that_cannot_be_read_back_are_an_error_and_not_an_endless_loop(tmp_path, monkeypatch):
    make_folder(tmp_path / "videos", videos=1, classes=("a",))
    rounds = []

    def find(self, key):
        rounds.append(key)
        assert len(rounds) < 20, "endless"

    monkeypatch.setattr(FeatureCache, "find", find)
    with pytest.raises(InputError, match=r"2 of 2 features of train were written to .*\.h5, but cannot be read"):
        encode_until(tmp_path, None)


def test_a_start_verifies_what_is_stored_unless_another_process_does(tmp_path):
    """A damaged array is encoded again; the process that does not verify never trains with it."""
    make_folder(tmp_path / "videos", videos=1, classes=("a",))
    assert encode_until(tmp_path, None) == 2
    (path,) = tmp_path.glob("*.h5")
    with h5py.File(path, "r+") as file:
        file[next(iter(file))][...] = 0
    with pytest.raises(InputError, match="The same command encodes them again"):
        encode_until(tmp_path, None, verify=False)
    assert encode_until(tmp_path, None) == 1
    assert encode_until(tmp_path, None, verify=False) == 0


@pytest.mark.parametrize("change", ["label", "size", "views"])
def test_a_sample_that_is_not_of_its_video_or_encoder_is_encoded_again(tmp_path, change):
    """With valid checksums, as somebody else could write it."""
    item = Item(
        path=str(make_folder(tmp_path / "videos", videos=1, classes=("a",)) / "a/00.mp4"), label="a", split="train"
    )
    flips = Augment(flip_pairs=(("a", "b"),))
    clip = ClipSpec(num_frames=2, frame_stride=1, size=16)
    options = {"items": [item], "infos": [probe(item.path)], "class_names": ("a", "b", "c"), "clip": clip}
    cached = CachedClips(TrainingClips(**options, augment=flips), FeatureCache(tmp_path, {}))
    cached.feature_size = 5
    key = SampleKey(0, 0)

    def missing_after(label="a", views=1, size=5):
        cached.cache.close()
        cached.cache.path.unlink(missing_ok=True)
        with cached.cache.writer() as add:
            features_VTF = np.ones((views, 2, size), np.float32)
            add(cached.cache_key(key), CachedFeatures(features_VTF=features_VTF, label=label))
        missing = cached.missing_keys([key])
        assert cached.missing_keys([key], verify=False) == missing
        return missing

    assert missing_after() == []
    assert missing_after(label="b") == [], "a flip changes it"
    assert missing_after(**{"label": {"label": "c"}, "size": {"size": 6}, "views": {"views": 2}}[change]) == [key]
    with pytest.raises(InputError, match="The same command encodes them again"):
        cached[key]


@pytest.fixture
def evaluate(monkeypatch):
    """Evaluates a run, and returns the result and the numbers of videos read and of frames encoded meanwhile."""
    read, encoded = [], []
    get, encode = Views.__getitem__, SmallEncoder.forward
    monkeypatch.setattr(Views, "__getitem__", lambda self, key: read.append(key) or get(self, key))
    monkeypatch.setattr(SmallEncoder, "forward", lambda self, frames: encoded.extend(frames) or encode(self, frames))

    def evaluate(folder: Path, **options) -> tuple[EvaluationRun, int, int]:
        read.clear()
        encoded.clear()
        evaluation = evaluate_run(folder, EvaluationOptions(num_workers=0, **options))
        return evaluation, len(read), len(encoded)

    return evaluate


def probabilities(evaluation: EvaluationRun) -> np.ndarray:
    return np.array([row.probabilities for row in evaluation.predictions])


def test_a_second_evaluation_reads_and_encodes_no_video(videos, tmp_path, evaluate):
    clear(videos)
    run(videos, tmp_path / "run", "data.num_clips=2")
    plain, num_read, _ = evaluate(tmp_path / "run", cache_features=False)
    num_videos = len(plain.predictions)
    assert num_read == num_videos
    assert len(stores(videos)) == 2, "nothing is stored without the cache"
    first, num_read, _ = evaluate(tmp_path / "run")
    assert num_read == num_videos
    second, num_read, num_encoded = evaluate(tmp_path / "run")
    assert num_read == 0
    assert num_encoded == 1, "a grey frame, whose features tell their number"
    assert second.result == first.result
    assert np.array_equal(probabilities(second), probabilities(first))
    np.testing.assert_allclose(probabilities(first), probabilities(plain), atol=1e-6, rtol=0)

    _, num_read, _ = evaluate(tmp_path / "run", num_clips=3)
    assert num_read == num_videos, "other views are other samples"
    changed = second.predictions[0].path
    os.utime(changed, ns=(5, 5))
    third, num_read, _ = evaluate(tmp_path / "run")
    assert num_read == 1, "a changed file is read again"
    assert np.array_equal(probabilities(third), probabilities(first))

    for path in stores(videos):
        copy = shutil.copy(path, tmp_path)  # HDF5 does not write to a file that this process reads
        with h5py.File(copy, "r+") as file:
            for key in file:
                file[key][...] = 0
        os.replace(copy, path)
    fourth, num_read, _ = evaluate(tmp_path / "run")
    assert num_read == num_videos, "damaged features are encoded again"
    assert np.array_equal(probabilities(fourth), probabilities(first))


def test_another_encoder_encodes_again(videos, tmp_path, evaluate):
    clear(videos)
    run(videos, tmp_path / "one")
    run(videos, tmp_path / "two", "seed=5")
    for name in ("one", "two"):
        first, num_read, _ = evaluate(tmp_path / name)
        assert num_read == len(first.predictions)
    assert evaluate(tmp_path / "one")[1] == 0


def test_val_is_evaluated_from_the_features_of_training(videos, tmp_path, evaluate):
    clear(videos)
    run(videos, tmp_path / "run")
    again, num_read, _ = evaluate(tmp_path / "run", split="val")
    assert num_read == 0
    own = json.loads((tmp_path / "run/result.json").read_text())
    assert {key: own[key] for key in again.result} == again.result
    plain, num_read, _ = evaluate(tmp_path / "run", split="val", cache_features=False)
    assert num_read == len(plain.predictions)
    np.testing.assert_allclose(probabilities(again), probabilities(plain), atol=1e-6, rtol=0)


def test_a_run_without_the_cache_is_evaluated_without_it(videos, tmp_path, evaluate):
    clear(videos)
    run(videos, tmp_path / "run", "data.features=off")
    evaluation, num_read, _ = evaluate(tmp_path / "run")
    assert num_read == len(evaluation.predictions)
    assert not stores(videos)


def test_a_report_of_the_same_result_is_kept(videos, tmp_path):
    clear(videos)
    folder = tmp_path / "run"
    run(videos, folder, "report=false")
    page = folder / "evaluate/test/report.html"

    def draw(*options: str) -> bool:
        """Evaluates again; whether the page is still the marked one."""
        words = ["evaluate", str(folder), "--workers", "0", *options]
        done = in_process(words, lambda: main(words))
        assert done.returncode == 0, done.stdout + done.stderr
        return page.read_text().endswith("<!-- marked -->")

    assert not draw()
    page.write_text(page.read_text() + "<!-- marked -->")
    assert draw()
    assert not draw("--clips", "2")


def test_signals_keep_what_was_encoded_and_a_full_disk_says_what_to_do(tmp_path, caplog):
    cache = FeatureCache(tmp_path, {})

    def stop(error):
        with explain_stops(cache, switch="data.features=off"), cache.writer() as add:
            add("one", CachedFeatures(features_VTF=np.ones((1, 2, 3), np.float32), label="a"))
            raise error

    with caplog.at_level("INFO"), pytest.raises(SystemExit):
        stop(SystemExit(143))
    assert "1 features are kept" in caplog.text
    assert "one" in cache
    with pytest.raises(InputError, match=r"No space left on device.*data\.features=off"):
        stop(OSError(28, "No space left on device", str(cache.path)))


def test_a_trainable_encoder_stores_nothing(videos, tmp_path):
    clear(videos)
    run(videos, tmp_path / "run", "model.freeze=1")
    assert not stores(videos)


def test_a_fingerprint_tells_a_single_bit():
    layer = torch.nn.BatchNorm1d(3)
    before = weights_fingerprint(layer)
    assert weights_fingerprint(torch.nn.BatchNorm1d(3)) == before
    layer.running_mean[1] += 1e-7
    assert weights_fingerprint(layer) != before


@pytest.mark.parametrize("labels", [None, ["a"] * 7 + ["b"] * 2])
def test_every_draw_of_any_epoch_is_known_beforehand(labels):
    sampler = EpochSampler(num_items=9, shuffle=True, labels=labels, passes=2)
    known = set(sampler.all_keys())
    for epoch in range(6):
        sampler.set_epoch(epoch)
        assert set(sampler) <= known
