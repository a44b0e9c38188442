"""`data=ut_interaction`: the segmented UT-Interaction videos, one sequence held out.

Ryoo, Aggarwal: UT-Interaction Dataset, ICPR contest on Semantic Description of Human Activities (SDHA), 2010.
"""

from __future__ import annotations

import re
from pathlib import Path

from stvid.data.layouts.discovery import (
    build_manifest,
    check_fold,
    find_videos,
    index_videos,
    resolve_folder,
)
from stvid.data.manifest import Item, Manifest
from stvid.data.splitting import take_val_from_train
from stvid.errors import InputError

CLASS_NAMES = ("hand_shaking", "hugging", "kicking", "pointing", "punching", "pushing")
VIDEO = re.compile(r"\d+_(\d+)_([0-5])")  # sample, sequence, label
SET_SIZE = 10  # sequences 1 to 10 are set 1, 11 to 20 set 2


def ut_interaction(
    *, root: str, fold: int = 1, both_sets: bool = False, val_fraction: float = 0.15, seed: int = 0
) -> Manifest:
    """`SAMPLE_SEQUENCE_LABEL.avi` anywhere below the root; a group is a sequence.

    The published protocol is leave-one-sequence-out per set: ten folds of set 1 and ten of set 2. Val is taken from the
    other sequences, by whole sequences. Classes are in the order of their labels.

    Args:
        root: the folder.
        fold: the test sequence, 1 to 20; train and val are the other sequences of its set (1 to 10, or 11 to 20).
        both_sets: train on the sequences of both sets.
        val_fraction: fraction of the training videos for val, in (0, 1).
        seed: of the choice of val.

    Raises:
        InputError: no such folder or fold, no UT-Interaction videos, no videos of the test sequence.
    """
    folder = resolve_folder(root)
    check_fold(fold, 2 * SET_SIZE)
    videos = index_videos(find_videos(folder), lambda path: path.stem, root=folder)
    matches = {video: match for stem, video in videos.items() if (match := VIDEO.fullmatch(stem))}
    if not matches:
        raise InputError(
            f"no UT-Interaction videos below data.root {folder}: {len(videos)} videos are there, none is named "
            "SAMPLE_SEQUENCE_LABEL.avi with a LABEL from 0 to 5, for example 4_1_0.avi"
        )
    first = 1 if both_sets or fold <= SET_SIZE else SET_SIZE + 1
    used = range(first, first + (2 * SET_SIZE if both_sets else SET_SIZE))
    items = [_item(video, match, fold) for video, match in matches.items() if int(match[1]) in used]
    if not any(item.split == "test" for item in items):
        sequences = ", ".join(map(str, sorted({int(match[1]) for match in matches.values()})))
        raise InputError(
            f"no videos of sequence {fold} (data.fold) below data.root {folder}; it has sequences {sequences}"
        )
    items = take_val_from_train(items, val_fraction=val_fraction, seed=seed)
    rest = f"the other sequences of {'both sets' if both_sets else f'set {1 if first == 1 else 2}'}"
    split_source = f"sequence {fold} is test; val is {val_fraction:.0%} of {rest}, seed {seed}"
    if num_unused := len(matches) - len(items):
        split_source += (
            f"; {num_unused} videos of the other set are not used, see data.both_sets; as class folders: data=folder"
        )
    return build_manifest(folder, items, split_source=split_source, class_names=CLASS_NAMES)


def _item(video: Path, match: re.Match, fold: int) -> Item:
    sequence, label = int(match[1]), CLASS_NAMES[int(match[2])]
    split = "test" if sequence == fold else "train"
    return Item(path=str(video), label=label, split=split, group=f"sequence {sequence}")
