"""Results are exact in their files, in the order of the videos, and written while a batch works."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stvid.deploy import predictions
from stvid.deploy.predictions import PredictionFiles, fingerprint_of, make_entry
from stvid.deploy.segments import Segment
from stvid.errors import InputError
from stvid.video.types import VideoInfo

INFO = VideoInfo(num_frames=30, fps=30000 / 1001, duration=1.001, height=8, width=8, codec="x", start=5.0)
ODD = 'a,"b"\n\x1b[31m\udcff.mp4'  # quotes, a line break, a control character, a byte that is not UTF-8


def entry_of(path, start=5.0):
    segments = [Segment(start=start, end=6.0 + 1e-4, label=ODD, probability=0.12345678)]
    return make_entry(Path(path), INFO, np.array([0.2, 0.5, 0.3]), ("x", "y", "z"), top=2, segments=segments)


def test_an_entry_has_the_documented_keys():
    assert entry_of("v.mp4") == {
        "path": "v.mp4",
        "duration": 1.001,
        "fps": 29.97003,
        "top": [{"class": "y", "probability": 0.5}, {"class": "z", "probability": 0.3}],
        "segments": [{"start": 5.0, "end": 6.0, "class": ODD, "probability": 0.123457}],
    }


def test_names_are_exact_in_both_files(tmp_path):
    files = PredictionFiles([Path(ODD)], json=tmp_path / "p.json", csv=tmp_path / "s.csv")
    files.add(entry_of(ODD))
    files.write()
    (entry,) = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert (entry["path"], entry["segments"][0]["class"]) == (ODD, ODD)
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        (row,) = csv.DictReader(file)
    assert row == {"path": ODD, "start": "5.000", "end": "6.000", "class": ODD, "probability": "0.123457"}


def test_entries_are_in_the_order_of_the_videos_whenever_they_were_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "WRITE_EVERY", -1.0)
    files = PredictionFiles([Path("a"), Path("b"), Path("c")], json=tmp_path / "p.json", csv=None)
    for path, expected in (("c", "c"), ("a", "ac")):
        files.add(entry_of(path))  # it writes at once, since the time is over
        assert [entry["path"] for entry in json.loads((tmp_path / "p.json").read_text())] == list(expected)


def test_nothing_is_written_over_an_earlier_file_before_the_first_entry(tmp_path):
    (tmp_path / "p.json").write_text("old")
    PredictionFiles([Path("a")], json=tmp_path / "p.json", csv=None).write()
    assert (tmp_path / "p.json").read_text() == "old"


@pytest.mark.parametrize("content", ["{}", "[", '[{"path": "a"}]', '[{"path": "a", "top": [{"class": "x"}]}]'])
def test_resume_refuses_another_kind_of_file(tmp_path, content):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(InputError, match="Leave --resume out to start anew"):
        PredictionFiles([Path("a")], json=tmp_path / "p.json", csv=None, resume=True)


def test_a_checkpoint_that_was_replaced_has_another_fingerprint(tmp_path):
    checkpoint, video = tmp_path / "best.ckpt", tmp_path / "a.mp4"
    video.write_bytes(b"video")
    checkpoint.write_bytes(b"weights")
    trained = SimpleNamespace(path=checkpoint, epoch=3, step=9, temperature=1.0)
    first = fingerprint_of(video, trained, [])
    assert fingerprint_of(video, trained, []) == first
    checkpoint.write_bytes(b"others!!")  # as long a training with another seed
    assert fingerprint_of(video, trained, []) != first
