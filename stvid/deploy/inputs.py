"""Which videos a user names, and the files that are made of each. Imports nothing heavy: it is checked first."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stvid.data.layouts.discovery import find_frame_folders, find_videos, is_frame_folder, is_video
from stvid.data.tables import read_table
from stvid.errors import InputError, raise_mistakes
from stvid.files import file_in_the_way, is_special, why_not_writable
from stvid.video.shard_index import INDEX, read_index, video_exists

HINT = "give video files, folders of them, patterns in quotes, or a table .csv with a column path"
EACH = {"srt": ".srt", "vtt": ".vtt", "out": ".mp4"}  # option -> ending of the file that is made of each video


@dataclass(frozen=True)
class Source:
    """One video.

    Attributes:
        path: a video file or a folder of images, as the user named it.
        name: what files made of it are called, without their ending: its name; or its path from the folder on that the
            user named, that stands before the first wildcard of a pattern, or that holds all videos of a table.
    """

    path: Path
    name: Path


def find_sources(words: Sequence[str]) -> list[Source]:
    """The videos that a user names, each once, in this order.

    A folder of images is one video; another folder stands for all videos below it, a table `.csv` for its column
    `path` (relative paths are relative to the table), a pattern such as `data/*.mp4` or `data/**/*.mp4` for what it
    matches. A video of a tar is named as in `shard_index`: `DIR/train-000000.tar/videos/one.mp4`. Files in a table need
    not exist: a batch goes on without them.

    Raises:
        InputError: for all words that name nothing.
    """
    found: dict[str, Source] = {}
    mistakes = []
    for word in words:
        try:
            for source in _sources_of(word):
                found.setdefault(os.path.abspath(source.path), source)
        except InputError as error:
            mistakes.append(str(error))
    raise_mistakes(mistakes)
    return list(found.values())


def _sources_of(word: str) -> list[Source]:
    path = Path(word).expanduser()
    if path.is_dir():
        if is_frame_folder(path):
            return [Source(path, Path(path.absolute().name))]
        videos = find_videos(path) + find_frame_folders(path)
        if not videos:
            raise InputError(f"{word} holds no video files and no folders of images{_tar_hint(path)}")
        return [_named(video, video.relative_to(path)) for video in videos]
    if path.is_file() and path.suffix.lower() == ".csv":
        return _sources_of_table(path)
    tar = next((file for file in (path, *path.parents) if file.suffix == ".tar" and file.is_file()), None)
    if tar == path:
        hint = _tar_hint(tar.parent, tar.name) or f"; no {INDEX} beside it lists its videos: unpack it"
        raise InputError(f"{word} is a tar, not a video{hint}")
    if video_exists(path):
        return [_named(path, Path(path.name))]
    if tar is not None:
        raise InputError(f"{word} does not exist{_tar_hint(tar.parent, tar.name) or f'; {HINT}'}")
    if not glob.has_magic(word):
        raise InputError(f"{word} does not exist; {HINT}")
    matches = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    videos = [match for match in matches if is_video(match) or is_frame_folder(match)]
    if not videos:
        what = "matches no video, only other files" if matches else "matches nothing"
        raise InputError(f"{word} {what}; {HINT}")
    parts = path.parts
    fixed = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    names = [video.relative_to(fixed) for video in videos]
    names = [Path(name.name) if ".." in name.parts else name for name in names]  # outputs stay in their folder
    return [_named(video, name) for video, name in zip(videos, names, strict=True)]


def _tar_hint(folder: Path, tar: str = "") -> str:
    """How to name a video of a tar, or of any tar in a folder; empty if no index lists them."""
    try:
        videos = [name for name in read_index(folder).members if name.startswith(tar)]
    except InputError:
        return ""
    one = f"name one of them, such as {folder / videos[0]}" if videos else ""
    return one and f"; {len(videos)} videos are in {tar or 'its tars'}, {one}"


def _sources_of_table(path: Path) -> list[Source]:
    table = read_table(path, required=["path"])
    videos = [path.parent / row.cells["path"] for row in table.rows if row.cells["path"]]
    if not videos:
        raise InputError(f"{path} names no videos in its column path")
    if not any(map(video_exists, videos)):
        raise InputError(f"none of the {len(videos)} videos of {path} exists, the first: {videos[0]}")
    folders = [os.path.abspath(video.parent) for video in videos]
    try:
        common = os.path.commonpath(folders)
    except ValueError:  # on Windows: on several drives
        return [_named(video, Path(video.name)) for video in videos]
    names = [Path(os.path.relpath(folder, common), video.name) for folder, video in zip(folders, videos, strict=True)]
    return [_named(video, name) for video, name in zip(videos, names, strict=True)]


def _named(path: Path, name: Path) -> Source:
    return Source(path, name if path.is_dir() else name.with_suffix(""))


def output_files(target: str, sources: Sequence[Source], *, ending: str) -> list[Path]:
    """The file that is made of each source: `target` for one, else a file in the folder `target`.

    Args:
        target: as the user named it; for one source it may also be an existing folder, or end in a slash.
        sources: the videos.
        ending: such as `.srt`.
    """
    if len(sources) == 1 and not (os.path.isdir(target) or target.endswith(("/", os.sep))):
        return [Path(target)]
    return [Path(target) / source.name.with_name(source.name.name + ending) for source in sources]


def find_output_mistakes(
    sources: Sequence[Source],
    words: Sequence[str],
    *,
    single: Mapping[str, str],
    each: Mapping[str, str],
    resume: bool = False,
) -> Iterator[str]:
    """Yields what is wrong with the files that a command is to write, before it computes anything.

    Args:
        sources: the videos.
        words: what the user named, tables among them.
        single: option -> the file to write.
        each: option, one of `EACH` -> the file, or the folder for several sources.
        resume: existing files of `out` may be those of an earlier call, which are looked at later.
    """
    read = [*map(Path, words), *(source.path for source in sources)]
    inputs = {_identity(path): str(path) for path in read}
    taken: dict[str, str] = {}
    for option, target in single.items():
        yield from _mistakes_of(Path(target), f"--{option} {target}", f"--{option}", inputs, taken)
    for option, target in each.items():
        ending = EACH[option]
        is_file_name = Path(target).suffix.lower() == ending and not os.path.isdir(target)
        if len(sources) > 1 and (is_file_name or os.path.isfile(target)):
            yield f"--{option} {target}: there are {len(sources)} videos, so it must be a folder"
            continue
        files = output_files(target, sources, ending=ending)
        if len(sources) == 1 and files[0].suffix.lower() != ending:
            what = "the video" if option == "out" else "the file"
            yield f"--{option} {target}: {what} must end in {ending}"
        for source, file in zip(sources, files, strict=True):
            if is_special(file):
                yield f"--{option} {target}: {file} is no ordinary file, and would be replaced; name another file"
            yield from _mistakes_of(file, f"--{option} {target}", str(source.path), inputs, taken, resume=resume)
        folder = files[0].parent if len(files) == 1 else Path(target)
        yield from _folder_mistakes(f"--{option} {target}", folder)
        if option == "out" and (word := _read_folder_around(folder, words)) is not None:
            yield f"--out {target} lies in {word}, whose videos are read: the next call would read the results, too"


def exists_text(said: str, file: Path) -> str:
    """What is wrong with an output that is a video already; `said` is the option with its value."""
    return f"{said}: {file} exists already, and videos are never replaced; name another file"


def _mistakes_of(
    file: Path, said: str, origin: str, inputs: Mapping, taken: dict[str, str], *, resume: bool = False
) -> Iterator[str]:
    if (read := inputs.get(_identity(file))) is not None:
        yield f"{said} would overwrite {read}, which is to be read; name another file"
    elif is_video(file) and not resume:
        yield exists_text(said, file)
    other = taken.setdefault(os.path.realpath(file).casefold(), origin)  # many file systems do not distinguish case
    if other != origin:
        remedy = "name the folder that holds them, or predict each into a folder of its own"
        yield f"{said}: {other} and {origin} would both be written to {file}; {remedy}"


def _identity(path: Path) -> tuple[int, int] | str:
    """Equal for two names of one file, also through links."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _read_folder_around(folder: Path, words: Sequence[str]) -> str | None:
    """The word for a folder of videos in which a folder lies, or which it is."""
    place = Path(os.path.realpath(folder))
    for word in words:
        named = Path(word).expanduser()
        if named.is_dir() and place.is_relative_to(os.path.realpath(named)) and not is_frame_folder(named):
            return word
    return None


def _folder_mistakes(said: str, folder: Path) -> Iterator[str]:
    if (file := file_in_the_way(folder)) is not None:
        yield f"{said}: {file} is a file, so there can be no such folder"
    elif (reason := why_not_writable(folder)) is not None:
        yield f"{said}: no file can be written into {folder}: {reason}"
