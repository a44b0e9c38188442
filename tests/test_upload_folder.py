"""Folders of uploads: those of processes that were killed are deleted, and no others."""

import sys
import tempfile

import pytest

from stvid.serve.upload_folder import PREFIX, UploadFolder


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no locks there")
def test_a_start_deletes_what_killed_processes_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    living = UploadFolder()
    killed, other, link = tmp_path / f"{PREFIX}killed", tmp_path / "other", tmp_path / f"{PREFIX}link"
    for folder in (living.path, killed, other):
        folder.mkdir(exist_ok=True)
        (folder / "video.mp4").touch()
    link.symlink_to(other)
    new = UploadFolder()
    assert set(tmp_path.iterdir()) == {living.path, new.path, other, link}
    assert (living.path / "video.mp4").exists()
    assert (other / "video.mp4").exists()
    for folder in (living, new):
        folder.delete()
    assert set(tmp_path.iterdir()) == {other, link}
