"""A slice of what `python tests/fuzz.py` does at length: damaged files give frames or a VideoError, never more."""

import mmap
import random

import pytest
from conftest import REAL_DATA
from fuzz import LARGEST, damaged, fuzz, is_fine, make_sources, peak_memory

ODD_VIDEOS = REAL_DATA / "odd_videos"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return make_sources(tmp_path_factory.mktemp("sources"))


def test_damaged_files_give_frames_or_a_video_error(sources):
    outcomes = fuzz(sources, count=120, seed=1)
    assert outcomes.total() == 120
    assert all(is_fine(outcome) for _, outcome in outcomes), outcomes
    assert sum(n for (_, outcome), n in outcomes.items() if outcome == "frames") > 30, outcomes
    assert len({outcome for _, outcome in outcomes}) > 3, outcomes


@pytest.mark.skipif(not ODD_VIDEOS.exists(), reason="needs shared/data/odd_videos")
def test_damaged_odd_files_do_so_too():
    sources = [path for path in sorted(ODD_VIDEOS.iterdir()) if path.suffix != ".txt" and path.stat().st_size < LARGEST]
    outcomes = fuzz(sources, count=120, seed=2)
    assert all(is_fine(outcome) for _, outcome in outcomes), outcomes


def test_a_variant_depends_on_its_number_alone():
    content = bytes(range(256)) * 40
    assert damaged(content, random.Random("0 7")) == damaged(content, random.Random("0 7"))
    assert len({damaged(content, random.Random(f"0 {i}"))[1] for i in range(20)}) > 10


def test_peak_memory_is_measured_anew_after_a_reset():
    if not peak_memory():
        pytest.skip("needs Linux's /proc")
    before = peak_memory(reset=True)
    with mmap.mmap(-1, 64 << 20) as block:  # malloc might use memory again that this process has
        block.write(b"1" * (64 << 20))
    assert peak_memory() - before > 60 << 20
    assert peak_memory(reset=True) > 0


def test_a_crash_is_told_from_a_refusal():
    assert is_fine("frames")
    assert is_fine("truncated")
    assert not is_fine("crash (number 3)")
    assert not is_fine("memory (number 3)")
    assert not is_fine("wrong frames (a.mp4, number 3)")
