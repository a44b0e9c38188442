"""What `stvid check` prints about groups: that none are named, which it can see, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stvid.data.group_proposals import HASH_SIZE, MAX_DISTANCE
from stvid.data.manifest import NAME_GROUPS
from stvid.terminal import visible

_MAX_SHARE = 0.5  # a larger group of linked videos shows one place, not one recording


def groups_section(groups: Mapping, shorten: Callable[[str], str]) -> list[str]:
    """Lines about the groups of a data set; none if all videos have one.

    Args:
        groups: the result of `propose_groups`.
        shorten: path -> path as it is printed.
    """
    if not groups["num_unnamed"]:
        return []
    lines = [f"groups: {groups['num_unnamed']} videos have none, so clips of one recording may be in train and in test"]
    if groups["names"]:
        lines += _pattern_lines("file names", groups["names"])
    if groups["folders"]:
        lines += _pattern_lines("folders in the classes", groups["folders"])
    lines += _picture_lines(groups["pictures"], shorten)
    return [*lines, f"Name groups, which stay in one split: {NAME_GROUPS}."]


def _pattern_lines(title: str, found: Mapping) -> list[str]:
    name, group = found["example"]
    checked, confirmed = found["checked"], found["confirmed"]
    if not checked:
        verdict = "not sure: no pictures were compared"
    elif 2 * confirmed >= checked:
        verdict = f"quite sure: in {confirmed} of {checked} groups the pictures agree"
    else:
        verdict = f"not sure: the pictures agree in only {confirmed} of {checked} groups"
    return [
        f"  {title}: {found['num_groups']} groups, {found['num_leaks']} of them in several splits; {verdict}",
        f"    such as {group!r} of {visible(name)}; use them with \"data.group_pattern='{found['pattern']}'\"",
    ]


def _picture_lines(pictures: Mapping, shorten: Callable[[str], str]) -> list[str]:
    compared = pictures["num_compared"]
    if not pictures["num_linked"]:
        note = "which does not exclude recordings with changing views"
        return [f"  pictures: no near-duplicate frames among {compared} videos, {note}"] if compared else []
    lines = [
        f"  pictures: {seen} of {total} {split} videos have a near-duplicate frame in train"
        for split, (seen, total) in pictures["seen"].items()
    ]
    lines += [
        f"    {shorten(a)} ~ {shorten(b)} ({distance} of {HASH_SIZE**2} bits differ)"
        for a, b, distance in pictures["examples"][:3]
    ]
    if pictures["largest"] > _MAX_SHARE * compared:
        lines.append(
            f"    not sure: {pictures['largest']} of {compared} videos are linked, so they may only show the same place"
        )
    else:
        groups = "1 group" if pictures["num_groups"] == 1 else f"{pictures['num_groups']} groups"
        lines.append(
            f"    quite sure: at most {MAX_DISTANCE} of {HASH_SIZE**2} bits differ, unrelated pictures have about "
            f"{HASH_SIZE**2 // 2}; {pictures['num_linked']} videos in {groups}, see --json"
        )
    return lines
