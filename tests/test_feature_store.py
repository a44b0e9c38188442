"""Features are kept, found again, and never those of something else."""

import contextlib

import numpy as np
import pytest

from stvid.feature_store import FeatureStore, Stored


def stored(value, label="a"):
    return Stored(features_VTF=np.full((1, 2, 3), value, dtype=np.float32), label=label)


def fill(store, **items):
    with store.adding() as add:
        for key, value in items.items():
            add(key, stored(value, label=f"label {key}"))


def test_what_was_added_is_found_again_with_its_label(tmp_path):
    fill(FeatureStore(tmp_path, {"encoder": "a"}), one=1.0, two=2.0)
    store = FeatureStore(tmp_path, {"encoder": "a"})
    assert len(store) == 2
    assert "one" in store
    assert "three" not in store
    assert store["two"].label == "label two"
    np.testing.assert_array_equal(store["two"].features_VTF, np.full((1, 2, 3), 2.0))


def test_other_facts_are_another_file(tmp_path):
    fill(FeatureStore(tmp_path, {"encoder": "a"}), one=1.0)
    assert "one" not in FeatureStore(tmp_path, {"encoder": "b"})


def test_more_can_be_added(tmp_path):
    store = FeatureStore(tmp_path, {})
    fill(store, one=1.0)
    assert "one" in store
    fill(store, two=2.0)
    assert store["one"].features_VTF[0, 0, 0] == 1.0
    assert store["two"].features_VTF[0, 0, 0] == 2.0
    assert [path.suffix for path in tmp_path.iterdir()] == [".h5"]


def test_an_interruption_keeps_what_was_there_and_what_was_added(tmp_path):
    store = FeatureStore(tmp_path, {})
    fill(store, one=1.0)
    with contextlib.suppress(KeyboardInterrupt), store.adding() as add:
        add("two", stored(2.0))
        raise KeyboardInterrupt
    assert {"one", "two"} <= {key for key in ("one", "two", "three") if key in store}


def test_what_another_run_has_added_meanwhile_is_kept(tmp_path):
    one, other = FeatureStore(tmp_path, {}), FeatureStore(tmp_path, {})
    with one.adding() as add:
        add("one", stored(1.0))
        with_other_process = other.path.with_name("other.h5")
        with FeatureStore(tmp_path / "elsewhere", {}).adding() as add_other:
            add_other("two", stored(2.0))
        (tmp_path / "elsewhere" / other.path.name).rename(with_other_process)
        with_other_process.replace(other.path)
    assert all(key in FeatureStore(tmp_path, {}) for key in ("one", "two"))


def test_a_trouble_of_the_system_leaves_the_file(tmp_path, monkeypatch):
    fill(FeatureStore(tmp_path, {}), one=1.0)
    store = FeatureStore(tmp_path, {})
    trouble = OSError(24, "Too many open files")
    monkeypatch.setattr("h5py.File", lambda *a, **k: (_ for _ in ()).throw(trouble))
    with pytest.raises(OSError, match="Too many"):
        len(store)
    monkeypatch.undo()
    assert "one" in store


def test_a_file_that_is_no_store_is_begun_anew(tmp_path, caplog):
    store = FeatureStore(tmp_path, {})
    store.path.write_bytes(b"nothing" * 100)
    assert "one" not in store
    assert "two" not in store
    assert caplog.text.count("begun anew") == 1
    fill(store, one=1.0)
    assert "one" in store
