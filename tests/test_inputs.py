"""Which videos words name, and mistakes in the files that are to be made of them."""

import os
from pathlib import Path

import pytest

from stvid.data.layouts.shards import shards
from stvid.deploy.inputs import find_output_mistakes, find_sources, output_files
from stvid.errors import InputError
from stvid.video.shard_index import find_member, read_index


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/x.mp4", "a/deep/y.mkv", "b/x.avi", "frames/1.png", "frames/2.png", "text/readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    return tmp_path


def test_words_name_videos_in_order_and_each_once(root):
    (root / "b" / "list.csv").write_text("note,path\nx,x.avi\ny,../a/x.mp4\n")
    found = find_sources(["b/list.csv", "a", "./a/x.mp4", "frames"])
    assert [os.path.normpath(source.path) for source in found] == ["b/x.avi", "a/x.mp4", "a/deep/y.mkv", "frames"]
    assert [str(source.name) for source in found] == ["b/x", "a/x", "deep/y", "frames"]


def test_patterns_match_videos_and_frame_folders_and_nothing_else(root):
    assert [str(source.path) for source in find_sources(["*/x.*"])] == ["a/x.mp4", "b/x.avi"]
    assert [str(source.path) for source in find_sources(["**/*"])] == ["a/deep/y.mkv", "a/x.mp4", "b/x.avi", "frames"]
    odd = root / "odd[1].mp4"
    odd.touch()
    assert [str(source.path) for source in find_sources(["odd[1].mp4"])] == ["odd[1].mp4"]  # a name, not a pattern


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("absent.mp4", "absent.mp4 does not exist; give video files"),
        ("text", "text holds no video files and no folders of images"),
        ("*.webm", "*.webm matches nothing"),
        ("text/*", "text/* matches no video, only other files"),
        ("wrong.csv", "missing: path"),
        ("empty.csv", "names no videos"),
        ("absent.csv", "absent.csv does not exist"),
        ("gone.csv", "none of the 1 videos of gone.csv exists, the first: gone.mp4"),
    ],
)
def test_words_that_name_nothing_are_told(root, word, message):
    (root / "wrong.csv").write_text("file\nx.mp4\n")
    (root / "empty.csv").write_text("path\n")
    (root / "gone.csv").write_text("path\ngone.mp4\n")
    with pytest.raises(InputError) as error:
        find_sources([word])
    assert message in str(error.value)
    with pytest.raises(InputError, match="2 mistakes"):
        find_sources([word, "a", "nowhere.mp4"])


def test_a_video_of_a_tar_is_named_like_a_file_in_a_folder(shard_folder):
    video = Path(shards(root=str(shard_folder)).items[0].path)
    tar = find_member(video).shard
    count = len([name for name in read_index(shard_folder).members if name.startswith(tar.name)])
    (shard_folder / "list.csv").write_text(f"path\n{video.relative_to(shard_folder)}\n")
    for word in (str(video), str(shard_folder / "list.csv")):
        (source,) = find_sources([word])
        assert (source.path, source.name.name) == (video, video.stem)
    for word, problem in ((tar.path, "is a tar, not a video"), (f"{tar.path}/no.mp4", "does not exist")):
        with pytest.raises(InputError, match=f"{problem}; {count} videos are in {tar.name}, name one of them") as error:
            find_sources([word])
        named = str(error.value).partition("such as ")[2]
        assert find_member(named).shard.name == tar.name
    with pytest.raises(InputError, match="no folders of images; 16 videos are in its tars, name one of them"):
        find_sources([str(shard_folder)])
    (shard_folder / "index.jsonl").unlink()
    with pytest.raises(InputError, match="is a tar, not a video; no index.jsonl beside it lists its videos: unpack it"):
        find_sources([tar.path])
    with pytest.raises(InputError, match="no.mp4 does not exist; give video files"):
        find_sources([f"{tar.path}/no.mp4"])


def test_one_video_gives_a_file_and_several_a_folder_with_their_structure(root):
    one, several = find_sources(["a/x.mp4"]), find_sources(["a"])
    assert output_files("s.srt", one, ending=".srt") == [Path("s.srt")]
    assert output_files("out/", one, ending=".srt") == [Path("out/x.srt")]
    assert output_files("b", one, ending=".srt") == [Path("b/x.srt")]
    assert output_files("o", several, ending=".vtt") == [Path("o/deep/y.vtt"), Path("o/x.vtt")]
    (root / "v1.cut").mkdir()
    (root / "v1.cut" / "1.png").touch()
    assert output_files("o/", find_sources(["v1.cut"]), ending=".mp4") == [Path("o/v1.cut.mp4")]


def mistakes(words, single=(), each=()):
    return list(find_output_mistakes(find_sources(words), words, single=dict(single), each=dict(each)))


@pytest.mark.parametrize(
    ("words", "single", "each", "message"),
    [
        (["a/x.mp4"], {}, {"out": "a/x.mp4"}, "--out a/x.mp4 would overwrite a/x.mp4, which is to be read"),
        (["a/x.mp4"], {}, {"out": "a/../link.mp4"}, "would overwrite a/x.mp4"),
        (["a/x.mp4"], {}, {"out": "hard.mp4"}, "would overwrite a/x.mp4"),
        (["a"], {}, {"out": "a"}, "--out a would overwrite a/x.mp4"),
        (["list.csv"], {"csv": "list.csv"}, {}, "--csv list.csv would overwrite list.csv"),
        (["a/x.mp4"], {"json": "r", "csv": "./r"}, {}, "--json and --csv would both be written to r"),
        (["a/x.mp4", "b/x.avi"], {}, {"srt": "o"}, "a/x.mp4 and b/x.avi would both be written to o/x.srt"),
        (["a"], {}, {"srt": "s.srt"}, "there are 2 videos, so it must be a folder"),
        (["a"], {}, {"srt": "text/readme.txt"}, "there are 2 videos, so it must be a folder"),
        (["a"], {}, {"srt": "text/readme.txt/o"}, "readme.txt is a file, so there can be no such folder"),
        (["a/x.mp4"], {}, {"out": "x.webm"}, "the video must end in .mp4"),
        (["a"], {}, {"out": "a/annotated"}, "--out a/annotated lies in a, whose videos are read"),
        (["b", "."], {}, {"out": "new"}, "--out new lies in ., whose videos are read"),
        (["a/x.mp4"], {}, {"srt": "x.vtt"}, "--srt x.vtt: the file must end in .srt"),
        (["a/x.mp4"], {}, {"vtt": "x"}, "--vtt x: the file must end in .vtt"),
        (
            ["a/x.mp4"],
            {},
            {"out": "mine.mp4"},
            "--out mine.mp4: mine.mp4 exists already, and videos are never replaced",
        ),
        (["a/x.mp4"], {}, {"srt": "mine.mp4"}, "must end in .srt"),
        (["a/x.mp4"], {"json": "mine.mp4"}, {}, "--json mine.mp4: mine.mp4 exists already"),
        (["a"], {"csv": "mine.mp4"}, {}, "--csv mine.mp4: mine.mp4 exists already"),
        (["a"], {}, {"out": "o"}, "--out o: o/deep/y.mp4 exists already"),
    ],
)
def test_files_that_cannot_be_made_are_told(root, words, single, each, message):
    (root / "link.mp4").symlink_to("a/x.mp4")
    (root / "hard.mp4").hardlink_to("a/x.mp4")
    (root / "list.csv").write_text("path\na/x.mp4\n")
    (root / "mine.mp4").write_text("mine")
    (root / "o" / "deep").mkdir(parents=True)
    (root / "o" / "deep" / "y.mp4").write_text("mine")
    found = mistakes(words, single, each)
    assert any(message in mistake for mistake in found), found


def test_files_beside_the_videos_are_no_mistake(root):
    assert not mistakes(["a"], {"json": "r.json", "csv": "r.csv"}, {"srt": "o", "vtt": "o", "out": "o"})
    assert not mistakes(["a/x.mp4"], {}, {"srt": "a/x.srt", "out": "new/folder/x.mp4"})
    for name in ("r.json", "r.csv", "o/x.srt"):  # text files are replaced
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    assert not mistakes(["a"], {"json": "r.json", "csv": "r.csv"}, {"srt": "o"})


@pytest.mark.parametrize("pattern", ["data/*/clip.mp4", "{}/data/*/clip.mp4", "data/**/clip.mp4", "data/[12]/c*.mp4"])
def test_videos_of_a_pattern_are_named_by_their_path_from_the_first_wildcard_on(root, pattern):
    for name in ("data/1/clip.mp4", "data/2/clip.mp4"):
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    assert [source.name for source in find_sources([pattern.format(root)])] == [Path("1/clip"), Path("2/clip")]
    assert not mistakes([pattern.format(root)], {}, {"srt": "subs"})
    assert [source.name for source in find_sources(["data/[1]/../../a/x.mp4"])] == [Path("x")]


def test_videos_of_a_table_are_named_by_their_path_from_their_common_folder_on(root):
    (root / "list.csv").write_text(f"path\ndata/1/clip.mp4\ndata/2/clip.mp4\n{root}/data/3.mp4\n")
    (root / "data").mkdir()
    (root / "data" / "3.mp4").touch()
    names = [Path("1/clip"), Path("2/clip"), Path("3")]
    assert [source.name for source in find_sources(["list.csv"])] == names
    (root / "one.csv").write_text("path\na/deep/y.mkv\n")
    assert [source.name for source in find_sources(["one.csv"])] == [Path("y")]
