"""A folder or a table alone: which data set it holds."""

import re

import pytest
from conftest import REAL_DATA

from stvid.data.layouts import kth, ut_interaction
from stvid.data.layouts.discovery import VIDEO_EXTENSIONS
from stvid.data.layouts.recognition import IMAGE, MARKS, UT_INTERACTION, VIDEO, recognize
from stvid.video.types import IMAGE_EXTENSIONS

FILES = {
    "ucf101": ["UCF-101/YoYo/v_YoYo_g01_c01.avi", "ucfTrainTestlist/trainlist01.txt"],
    "hmdb51": ["wave/a.avi", "test_train_splits/testTrainMulti_7030_splits/wave_test_split1.txt"],
    "ssv2": ["20bn-something-something-v2/1.webm", "something-something-v2-train.json"],
    "kth": ["boxing/person01_boxing_d1_uncomp.avi"],
    "ut_interaction": ["hugging/0_1_1.avi", "kicking/1_1_2.avi"],
    "frames": ["wave/clip 1/0001.jpg", "clap/clip 2/0001.png"],
    "folder": ["wave/1.mp4", "clap/0_1_1.mp4", "wave/cover.jpg"],
}


def make(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("choice", FILES)
def test_a_published_data_set_is_recognised_by_its_files(choice, tmp_path):
    make(tmp_path, FILES[choice])
    assert recognize(tmp_path)[:3] == (choice, "data.root", tmp_path)


def test_the_official_lists_may_lie_beside_the_videos(tmp_path):
    make(tmp_path, ["UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", "ucfTrainTestlist/classInd.txt"])
    make(tmp_path, ["mine/wave/1.avi"])
    assert recognize(tmp_path / "UCF-101")[0] == "ucf101"
    assert recognize(tmp_path / "mine")[0] == "folder"


def test_tables_of_kinetics_are_recognised_by_their_columns(tmp_path):
    make(tmp_path, ["train/clap/1.mp4"])
    (tmp_path / "train.csv").write_text("path,label\n")
    assert recognize(tmp_path)[0] == "folder"
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end,split\n")
    assert recognize(tmp_path)[0] == "kinetics"


def test_a_table_and_a_prepared_folder_are_manifests(tmp_path):
    table = tmp_path / "manifest.csv"
    table.write_text("path,label,split\n")
    assert recognize(table)[:3] == ("manifest", "data.path", table)
    assert recognize(tmp_path)[:3] == ("manifest", "data.path", table)


def test_the_names_are_those_of_the_layouts():
    """Which cannot be imported here: they import torch."""
    assert all(VIDEO.fullmatch(f"a{extension.upper()}") for extension in VIDEO_EXTENSIONS)
    assert all(IMAGE.fullmatch(f"a{extension}") for extension in IMAGE_EXTENSIONS)
    assert not VIDEO.fullmatch("a.txt")
    for action in kth.ACTIONS:
        name = f"person01_{action}_d1_uncomp"
        assert kth.RECORDING.fullmatch(name)
        assert re.fullmatch(MARKS["kth"][0], f"{name}.avi")
    for stem in ("0_1_4", "59_10_2", "a_1_2", "1_2_6"):
        assert bool(ut_interaction.VIDEO.fullmatch(stem)) == bool(UT_INTERACTION.fullmatch(f"{stem}.avi"))


@pytest.mark.skipif(not (REAL_DATA / "ut_interaction").is_dir(), reason="no real videos here")
def test_real_folders():
    assert recognize(REAL_DATA / "ut_interaction")[0] == "ut_interaction"
    assert recognize(REAL_DATA / "fight_part")[0] == "folder"
