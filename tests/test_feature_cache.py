"""Features are kept, found again, and never those of something else."""

import contextlib
import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from stvid import files
from stvid.data import feature_cache
from stvid.data.feature_cache import FeatureCache
from stvid.data.feature_entries import CachedFeatures
from stvid.files import replacing


def stored(value, label="a"):
    return CachedFeatures(features_VTF=np.full((1, 2, 3), value, dtype=np.float32), label=label)


def fill(store, **items):
    with store.writer() as add:
        for key, value in items.items():
            add(key, stored(value, label=f"label {key}"))


def test_what_was_added_is_found_again_with_its_label(tmp_path):
    fill(FeatureCache(tmp_path, {"encoder": "a"}), one=1.0, two=2.0)
    store = FeatureCache(tmp_path, {"encoder": "a"})
    assert len(store) == 2
    assert "one" in store
    assert "three" not in store
    assert store["two"].label == "label two"
    np.testing.assert_array_equal(store["two"].features_VTF, np.full((1, 2, 3), 2.0))


def test_other_facts_are_another_file(tmp_path):
    fill(FeatureCache(tmp_path, {"encoder": "a"}), one=1.0)
    assert "one" not in FeatureCache(tmp_path, {"encoder": "b"})


def test_more_can_be_added(tmp_path):
    store = FeatureCache(tmp_path, {})
    fill(store, one=1.0)
    assert "one" in store
    fill(store, two=2.0)
    assert store["one"].features_VTF[0, 0, 0] == 1.0
    assert store["two"].features_VTF[0, 0, 0] == 2.0
    assert [path.suffix for path in tmp_path.iterdir()] == [".h5"]


def test_an_interruption_keeps_what_was_there_and_what_was_added(tmp_path):
    store = FeatureCache(tmp_path, {})
    fill(store, one=1.0)
    with contextlib.suppress(KeyboardInterrupt), store.writer() as add:
        add("two", stored(2.0))
        raise KeyboardInterrupt
    assert {"one", "two"} <= {key for key in ("one", "two", "three") if key in store}


def test_what_another_run_has_added_meanwhile_is_kept(tmp_path):
    item, other = FeatureCache(tmp_path, {}), FeatureCache(tmp_path, {})
    with item.writer() as add:
        add("one", stored(1.0))
        with_other_process = other.path.with_name("other.h5")
        with FeatureCache(tmp_path / "elsewhere", {}).writer() as add_other:
            add_other("two", stored(2.0))
        (tmp_path / "elsewhere" / other.path.name).rename(with_other_process)
        with_other_process.replace(other.path)
    assert all(key in FeatureCache(tmp_path, {}) for key in ("one", "two"))


@pytest.fixture
def at_once(monkeypatch):
    """Every item is written as soon as it is added."""
    monkeypatch.setattr(feature_cache, "_SAVE_EVERY", 0.0)


def test_while_items_are_added_others_read_those_that_are_written(tmp_path, at_once):
    """Not the store that adds, which looks again when it has closed its files."""
    writer = FeatureCache(tmp_path, {})
    fill(writer, zero=0.0)
    early = FeatureCache(tmp_path, {})
    assert len(early) == 1
    with writer.writer() as add:
        for number, key in enumerate(("one", "two", "three"), start=1):
            add(key, stored(number))
            late = FeatureCache(tmp_path, {})
            assert len(late) == number + 1
            assert late[key].features_VTF[0, 0, 0] == number
    assert len(late) == 4, "its files have been merged and removed"
    assert late["one"].features_VTF[0, 0, 0] == 1
    assert late["zero"].label == "label zero"
    assert len(early) == 1
    early.close()
    assert len(early) == 4
    assert [path.name for path in tmp_path.iterdir()] == [writer.path.name]


def test_many_parts_become_one_file_before_they_are_too_many_to_open(tmp_path, at_once, monkeypatch):
    monkeypatch.setattr(feature_cache, "_MAX_PARTS", 4)
    store, most = FeatureCache(tmp_path, {}), 0
    with store.writer() as add:
        for number in range(19):
            add(str(number), stored(number))
            most = max(most, len(list(tmp_path.iterdir())))
    assert most == 4  # three parts and the file that the others have become
    assert [store[str(number)].features_VTF[0, 0, 0] for number in range(19)] == list(range(19))


def test_items_are_written_together_until_they_are_many(tmp_path, monkeypatch):
    size = stored(0.0).features_VTF.nbytes
    monkeypatch.setattr(feature_cache, "_MAX_PART_BYTES", 3 * size)
    with FeatureCache(tmp_path, {}).writer() as add:
        seen = []
        for number in range(7):
            add(str(number), stored(number))
            seen.append(len(list(tmp_path.iterdir())))
    assert seen == [0, 0, 1, 1, 1, 2, 2]


def test_parts_of_an_interrupted_call_are_merged_by_the_next(tmp_path, at_once):
    store = FeatureCache(tmp_path, {})
    with contextlib.suppress(KeyboardInterrupt), store.writer() as add:
        add("one", stored(1.0))
        add("two", stored(2.0))
        raise KeyboardInterrupt
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 2
    parts[0].write_bytes(b"nothing" * 100)  # a disk that lost it
    assert len(store) == 1
    fill(store, three=3.0)
    assert len(store) == 2
    assert list(tmp_path.iterdir()) == [store.path]


def test_what_killed_processes_left_half_written_goes_and_what_is_being_written_stays(tmp_path):
    store = FeatureCache(tmp_path, {})
    old, new = (tmp_path / f".{store.path.stem}.{name}.partial" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    fill(store, one=1.0)
    assert {path.name for path in tmp_path.iterdir()} == {store.path.name, new.name}


def test_a_trouble_of_the_system_leaves_the_file(tmp_path, monkeypatch):
    fill(FeatureCache(tmp_path, {}), one=1.0)
    store = FeatureCache(tmp_path, {})
    trouble = OSError(24, "Too many open files")
    monkeypatch.setattr("h5py.File", lambda *a, **k: (_ for _ in ()).throw(trouble))
    with pytest.raises(OSError, match="Too many"):
        len(store)
    monkeypatch.undo()
    assert "one" in store


def test_a_damaged_file_is_replaced_with_a_warning(tmp_path, caplog):
    store = FeatureCache(tmp_path, {})
    store.path.write_bytes(b"nothing" * 100)
    assert "one" not in store
    assert "two" not in store
    assert caplog.text.count("is replaced") == 1
    fill(store, one=1.0)
    assert "one" in store


def set_zero(file, tmp_path):
    file["one"][...] = 0


def change_label(file, tmp_path):
    head = file["one"].attrs["head"]
    file["one"].attrs["head"] = np.bytes_(head.replace(b"label one", b"label two"))


def swap_samples(file, tmp_path):
    file.move("one", "old")
    file.copy("two", "one")


def other_type(file, tmp_path):
    del file["one"]
    file["one"] = np.ones((1, 2, 3))


def a_group(file, tmp_path):
    del file["one"]
    file.create_group("one")


def store_otherwise(file, **options):
    """With a valid head."""
    attributes = dict(file["one"].attrs)
    del file["one"]
    file.create_dataset("one", **options).attrs.update(attributes)


def huge(file, tmp_path):
    key, _, *rest = json.loads(file["one"].attrs["head"])
    file["one"].attrs["head"] = np.bytes_(json.dumps([key, [1, 2**30, 2**10], *rest]))
    store_otherwise(file, shape=(1, 2**30, 2**10), dtype="f4")


def compressed(file, tmp_path):
    store_otherwise(file, data=np.full((1, 2, 3), 1.0, "f4"), chunks=(1, 2, 3), compression="gzip")


def other_shape(file, tmp_path):
    store_otherwise(file, data=np.full((1, 3, 2), 1.0, "f4"))


def other_precision(file, tmp_path):
    store_otherwise(file, data=np.full((1, 2, 3), 1.0, "f8"))


def no_head(file, tmp_path):
    del file["one"].attrs["head"]


def head_of_another_type(file, tmp_path):
    file["one"].attrs["head"] = 5


def external_link(file, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        file.copy("one", other)
    del file["one"]
    file["one"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "one")


def external_storage(file, tmp_path):
    (tmp_path / "raw").write_bytes(file["one"][()].tobytes())
    store_otherwise(file, shape=(1, 2, 3), dtype="f4", external=[(str(tmp_path / "raw"), 0, 24)])


@pytest.mark.parametrize(
    "damage",
    [
        *(set_zero, change_label, swap_samples, other_type, a_group, huge, compressed, external_link),
        *(external_storage, other_shape, other_precision, no_head, head_of_another_type),
    ],
)
def test_a_sample_that_was_changed_is_missing_and_can_be_added_again(tmp_path, damage):
    store = FeatureCache(tmp_path / "cache", {})
    fill(store, one=1.0, two=2.0)
    store.close()
    with h5py.File(store.path, "r+") as file:
        damage(file, tmp_path)
    assert "one" not in store
    assert "two" in store
    # without reading the features, a change of them or of the label alone is not seen
    assert (store.find_head("one") is None) == (damage not in (set_zero, change_label))
    assert store.find_head("two") == ((1, 2, 3), "label two")
    with pytest.raises(KeyError):
        store["one"]
    fill(store, one=3.0)
    assert store["one"].features_VTF[0, 0, 0] == 3.0
    assert store["one"].label == "label one"
    assert store["two"].features_VTF[0, 0, 0] == 2.0


def test_a_block_that_the_disk_lost_is_found(tmp_path):
    store = FeatureCache(tmp_path, {})
    fill(store, one=1.5)
    store.close()
    content, value = store.path.read_bytes(), np.full(6, 1.5, np.float32).tobytes()
    assert content.count(value) == 1
    store.path.write_bytes(content.replace(value, bytes(24)))
    assert "one" not in store


def test_a_full_disk_is_an_error_of_the_disk_and_keeps_the_parts(tmp_path, monkeypatch):
    """HDF5 itself would crash the process."""
    store = FeatureCache(tmp_path, {})
    fill(store, one=1.0)

    def write(self, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", write)
        with pytest.raises(OSError, match="No space left on device") as caught:
            fill(store, two=2.0)
    assert str(tmp_path) in caught.value.filename
    assert list(tmp_path.iterdir()) == [store.path]
    assert "one" in store


def test_without_space_for_a_copy_the_parts_are_read_as_they_are(tmp_path, monkeypatch):
    store = FeatureCache(tmp_path, {})
    monkeypatch.setattr(feature_cache, "_SPARE_BYTES", 2**80)
    fill(store, one=1.0)
    fill(store, two=2.0)
    assert len(list(tmp_path.iterdir())) == 2
    assert store["one"].features_VTF[0, 0, 0] == 1.0
    assert store["two"].features_VTF[0, 0, 0] == 2.0


def test_a_partial_file_of_a_dead_process_goes_at_once_but_not_that_of_another_machine(tmp_path, monkeypatch):
    """Another machine may be writing, with a process number that is free here."""
    store = FeatureCache(tmp_path, {})
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)

    def partial_of(pid):
        files._machine.cache_clear()
        with contextlib.suppress(FileNotFoundError), replacing(store.path) as partial:
            pass
        files._machine.cache_clear()
        return partial.with_name(partial.name.replace(f".{os.getpid()}.", f".{pid}."))

    left, running = partial_of(dead.stdout.strip()), partial_of(os.getppid())
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "another")
        elsewhere = partial_of(dead.stdout.strip())
    for path in (left, running, elsewhere):
        path.touch()
    fill(store, one=1.0)
    assert {path.name for path in tmp_path.iterdir()} == {store.path.name, running.name, elsewhere.name}
