"""Features are kept, found again, and never those of something else."""

import contextlib

import numpy as np

from stvid.feature_store import FeatureStore, Stored


def stored(value, **options):
    return Stored(features_VTF=np.full((1, 2, 3), value, dtype=np.float32), **options)


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


def test_a_file_that_is_no_store_is_begun_anew(tmp_path, caplog):
    store = FeatureStore(tmp_path, {})
    store.path.write_bytes(b"nothing" * 100)
    assert "one" not in store
    assert "begun anew" in caplog.text
    fill(store, one=1.0)
    assert "one" in store
