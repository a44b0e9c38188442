"""`data=kth`: the KTH actions, split by person as published.

Schuldt, Laptev, Caputo: Recognizing Human Actions: A Local SVM Approach, ICPR 2004.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from stvid.data.layouts.discovery import build_manifest, find_videos, index_videos, read_lines, resolve_folder
from stvid.data.manifest import Item, Manifest
from stvid.errors import InputError

ACTIONS = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")
PERSONS = {
    "train": (11, 12, 13, 14, 15, 16, 17, 18),
    "val": (19, 20, 21, 23, 24, 25, 1, 4),
    "test": (22, 2, 3, 5, 6, 7, 8, 9, 10),
}
SPLIT_OF = {person: split for split, persons in PERSONS.items() for person in persons}
RECORDING = re.compile(rf"(person(\d\d)_({'|'.join(ACTIONS)})_d\d)(?:_uncomp)?")
SEQUENCES = "00sequences.txt"
FPS = 25

Span = tuple[float, float]  # seconds


def kth(*, root: str, whole: bool = False) -> Manifest:
    """`personNN_ACTION_dM_uncomp.avi` anywhere below the root; a group is a person.

    A recording shows its action about four times. `00sequences.txt` lists their frame ranges, from 1 and with inclusive
    ends; each range becomes an item, in seconds at 25 frames per second. Classes are sorted by name.

    Args:
        root: the folder; without `00sequences.txt` directly in it, whole recordings are used.
        whole: use whole recordings, and ignore `00sequences.txt`.

    Raises:
        InputError: no such folder, no recordings, a split without recordings, an invalid range.
    """
    folder = resolve_folder(root)
    videos = index_videos(find_videos(folder), lambda path: path.stem.removesuffix("_uncomp"), root=folder)
    recordings = {name: video for name, video in videos.items() if RECORDING.fullmatch(name)}
    if not recordings:
        raise InputError(
            f"no KTH recordings below data.root {folder}: {len(videos)} videos are there, none is named "
            f"personNN_ACTION_dM_uncomp.avi with an ACTION of {', '.join(ACTIONS)}"
        )
    sequences = folder / SEQUENCES
    spans = _read_sequences(sequences) if sequences.is_file() and not whole else {}
    items = [item for name, video in recordings.items() for item in _items(name, video, spans.get(name, ()))]
    for split, persons in PERSONS.items():
        if not any(item.split == split for item in items):
            raise InputError(f"no recordings of {split} (persons {persons}) below data.root {folder}")
    description = _describe_sequences(recordings, videos, spans, whole)
    return build_manifest(folder, items, split_source=f"split by person as published, {description}")


def _describe_sequences(recordings: Mapping, videos: Mapping, spans: Mapping, whole: bool) -> str:
    if not spans:
        text = "whole recordings" + ("" if whole else f" because there is no {SEQUENCES} in the root")
    else:
        unlisted = sum(name not in spans for name in recordings)
        missing = sum(name not in recordings for name in spans)
        text = f"cut into sequences by {SEQUENCES}"
        text += f"; {unlisted} recordings without sequences are whole" if unlisted else ""
        text += f"; {missing} listed recordings are missing" if missing else ""
    num_others = len(videos) - len(recordings)
    return text + (f"; {num_others} other videos left out" if num_others else "")


def _items(name: str, video: Path, spans: Sequence[Span | tuple[None, None]]) -> list[Item]:
    match = RECORDING.fullmatch(name)
    assert match is not None  # as of all recordings
    _, person, action = match.groups()
    if int(person) not in SPLIT_OF:
        raise InputError(f"{video}: there is no person {person} in KTH; persons are 01 to 25")
    return [
        Item(path=str(video), label=action, split=SPLIT_OF[int(person)], start=start, end=end, group=f"person{person}")
        for start, end in spans or [(None, None)]
    ]


def _read_sequences(path: Path) -> dict[str, list[Span]]:
    """Recording -> spans. Lines that do not start with a recording are comments; `*missing*` has no spans."""
    spans = {}
    for where, line in read_lines(path):
        name, *rest = line.split(None, 1)
        if not RECORDING.fullmatch(name) or "missing" in "".join(rest):
            continue
        ranges = [(int(first), int(last)) for first, last in re.findall(r"(\d+)\s*-\s*(\d+)", "".join(rest))]
        if not ranges or any(not 1 <= first <= last for first, last in ranges):
            raise InputError(f"{where}: {line!r} is not RECORDING frames FIRST-LAST, FIRST-LAST, ...")
        spans[name] = [((first - 1) / FPS, last / FPS) for first, last in ranges]
    if not spans:
        raise InputError(f"{path} has no line RECORDING frames FIRST-LAST, ...; data.whole=true ignores it")
    return spans
