"""From datasets to data loaders: probing, checks, worker processes. Without Lightning."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from stvid.clip import ClipSpec
from stvid.data import sampling
from stvid.data.dataset import VideoDataset, Views, collate
from stvid.data.manifest import Item, Manifest
from stvid.data.sampler import EpochSampler
from stvid.device import cores_per_process
from stvid.errors import InputError, VideoError
from stvid.files import file_lock
from stvid.preprocess import CROPS
from stvid.video.probe import probe_all
from stvid.video.shard_cache import cache_limit
from stvid.video.shard_index import find_member, read_index
from stvid.video.types import MAX_PIXELS, VideoInfo

log = logging.getLogger(__name__)

CACHE_NAME = ".stvid_probe.jsonl"


def views_loader(
    dataset: Views,
    *,
    batch_size: int,
    num_workers: int,
    cached: Dataset | None = None,
    collate_fn: Callable = collate,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Batches of about `batch_size` views; a video's views are in one batch, and each video is on one rank.

    The worker processes end after each pass, to free memory for training.

    Args:
        dataset: the views.
        batch_size: views per batch and rank, at least one video.
        num_workers: worker processes.
        cached: a dataset with cached features of the same items, used instead of `dataset`.
        collate_fn: for samples of `cached`, or of `dataset`.
        rank: rank of this process.
        world_size: number of processes.
    """
    batch_size = max(batch_size // (dataset.num_clips * dataset.num_crops), 1)
    return DataLoader(
        cached or dataset,
        batch_size=batch_size,
        sampler=EpochSampler(
            num_items=len(dataset),
            shuffle=False,
            lengths=clip_lengths(dataset),
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
        ),
        collate_fn=collate_fn,
        **worker_options(num_workers),
    )


def clip_lengths(dataset: VideoDataset) -> list[int] | None:
    """Frames of each item's clip if clips are whole videos (0: unreadable); None if all clips have equal length."""
    if dataset.clip.num_frames is not None:
        return None
    lengths = []
    for index in range(len(dataset)):
        try:
            frames, fps = dataset.timeline(index)
        except VideoError:
            lengths.append(0)
        else:
            lengths.append(sampling.resolve_num_frames(dataset.clip, len(frames), fps).num_frames or 0)
    return lengths


def tar_places(items: Sequence[Item]) -> list[tuple[str, int]] | None:
    """Name of the tar of each item, and its offset in it; None if a video is not in a tar."""
    members = [find_member(item.path) for item in items]
    places = [(member.shard.name, member.offset) for member in members if member is not None]
    return places if len(places) == len(items) else None


def warn_of_small_cache(items: Sequence[Item], *, window: int) -> None:
    """Warns once if the tars that are shuffled together do not fit into the cache of their URL.

    Args:
        items: of an epoch.
        window: of `EpochSampler`.
    """
    member = find_member(items[0].path) if items else None
    limit = None if member is None else cache_limit(member.shard.folder)
    if member is None or limit is None:
        return
    splits = tuple({f"{item.split}-" for item in items})
    num_bytes = sum(tar.num_bytes for tar in read_index(member.shard.folder).shards if tar.name.startswith(splits))
    spanned = num_bytes * min(window / len(items), 1)
    if spanned > limit:
        _log_small_cache(window, spanned, limit)


@functools.cache  # once, not for every loader
def _log_small_cache(window: int, spanned: float, limit: float) -> None:
    log.warning(
        "data.shuffle_buffer (=%d) spans tars of %.3g GB, data.cache_gb (=%.3g) holds less: tars are fetched many "
        "times in an epoch. Raise data.cache_gb or lower data.shuffle_buffer",
        window,
        spanned / 1e9,
        limit / 1e9,
    )


def worker_options(num_workers: int, *, persistent: bool = False) -> dict:
    """Worker arguments of a DataLoader. `persistent`: the processes live until the loader is deleted."""
    _kill_workers_at_exit(os.getpid())
    return {
        "num_workers": num_workers,
        "persistent_workers": persistent and num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
        # each loader draws a seed; from the global generator, dropout would depend on the number of loaders
        "generator": torch.Generator(),
        "worker_init_fn": _leave_signals_to_the_parent,
    }


def _leave_signals_to_the_parent(worker: int) -> None:
    """A terminal's Ctrl-C and Slurm's signals reach every process; readers go on until they are no longer needed."""
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):
        signal.signal(number, signal.SIG_IGN)


@functools.cache
def _kill_workers_at_exit(pid: int) -> None:
    """Registers `_kill_workers`, once per process: a child process inherits the cache, but not the finalizer.

    When Python exits, multiprocessing runs its finalizers, then sends SIGTERM to the remaining workers and waits for
    them. They ignore SIGTERM (see above), so it would wait forever. `atexit` is not enough: a process that
    multiprocessing started does not run its functions in time.
    """
    multiprocessing.util.Finalize(None, _kill_workers, exitpriority=0)


def _kill_workers() -> None:
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report each of them as a crash
    for worker in workers:
        worker.kill()


def resolve_workers(num_workers: int | str, *, num_processes: int | None = None) -> int:
    """Worker processes per rank.

    Args:
        num_workers: a number; `auto`: half of the cores that are this process's share, but at least 2 (on one core
            1) and at most 8.
        num_processes: processes that share the machine's cores, see `cores_per_process`.

    Raises:
        InputError: neither `auto` nor a whole number of 0 or more.
    """
    if num_workers == "auto":
        cores = cores_per_process(num_processes)
        return min(max(cores // 2, min(cores, 2)), 8)  # one reader would let a training on two cores wait
    if not isinstance(num_workers, int) or num_workers < 0:
        raise InputError(f"num_workers (={num_workers}) must be 'auto' or a whole number, 0 or more")
    return num_workers


def check_views(num_clips: int, num_crops: int, clip: ClipSpec) -> None:
    """Raises InputError unless `num_clips` is at least 1 (for whole videos: 1) and `num_crops` is 1, 3 or 5."""
    if clip.num_frames is None and num_clips != 1:
        raise InputError(f"num_clips (={num_clips}) must be 1: the model sees whole videos")
    if num_clips < 1:
        raise InputError(f"num_clips (={num_clips}) must be at least 1")
    if num_crops not in CROPS:
        raise InputError(
            f"num_crops (={num_crops}) must be 1 (centre), 3 (both ends and centre) or 5 (corners and centre)"
        )


def probe_cache(manifest: Manifest) -> Path | None:
    """The cache file for `probe_all`, in the common folder of all videos; None if they have none."""
    try:
        common = Path(os.path.commonpath({os.path.dirname(item.path) for item in manifest.items}))
    except ValueError:  # videos on several drives
        return None
    return common / CACHE_NAME if common != Path(common.anchor) else None


def probe_items(
    items: Sequence[Item],
    *,
    num_workers: int,
    cache: Path | None,
    decode_all: bool = True,
    timeout: float = 60.0,
    max_pixels: int = MAX_PIXELS,
) -> list[VideoInfo | VideoError]:
    """Probes the items' files with a cache, see `probe_all`.

    Of several processes with the same cache one probes at a time, so the files are decoded only once.
    """
    with contextlib.nullcontext() if cache is None else file_lock(cache):
        return probe_all(
            [item.path for item in items],
            num_workers=max(num_workers, 1),  # a hang can only be killed in another process
            cache=cache,
            decode_all=decode_all,
            timeout=timeout,
            max_pixels=max_pixels,
            progress=sys.stderr.isatty(),
        )


def check_bad(bad: Sequence[VideoError], *, num_items: int, max_bad: float) -> None:
    """Raises InputError with a list if more than the fraction `max_bad` of the videos cannot be read."""
    if len(bad) > max_bad * num_items:
        needed = math.ceil(100 * len(bad) / num_items) / 100
        listing = "\n".join(f"  {error}" for error in bad[:20])
        more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise InputError(
            f"{len(bad)} of {num_items} videos cannot be read, more than data.max_bad={max_bad:g} allows:\n"
            f"{listing}{more}\nRepair or remove them, or allow more: data.max_bad={needed:g}"
        )


def check_enough_frames(dataset: Views) -> None:
    """Raises InputError if a video has fewer frames than `num_clips`: some clips would be equal."""
    shortest = min(((num_frames, path) for _, num_frames, _, path in _clip_spans(dataset)), default=None)
    if shortest is not None and shortest[0] < dataset.num_clips:
        raise InputError(
            f"num_clips (={dataset.num_clips}) is larger than the number of frames of {shortest[1]}: {shortest[0]}. "
            "Use fewer clips"
        )


def check_short(dataset: VideoDataset) -> None:
    """Raises InputError if a video is shorter than a clip and `clip.short=error`."""
    for slack, num_frames, span, path in _clip_spans(dataset):
        if slack < 0 and dataset.clip.short == "error":
            raise InputError(
                f"{path} has {num_frames} frames, a clip spans {span}, and clip.short=error. "
                "Use a shorter clip (clip.num_frames, clip.frame_stride) or clip.short=repeat_last"
            )


def _clip_spans(dataset: VideoDataset) -> Iterator[tuple[int, int, int, str]]:
    """For every readable video: slack (frames - span), frames, span of a clip in frames, path."""
    for index in range(len(dataset)):
        try:
            frames, fps = dataset.timeline(index)
        except VideoError:
            continue
        num_frames = len(frames)
        span = sampling.clip_span(sampling.resolve_num_frames(dataset.clip, num_frames, fps), fps)
        yield num_frames - span, num_frames, span, dataset.items[index].path


def check_lengths(dataset: VideoDataset) -> None:
    """Raises InputError if every video is shorter than a clip, or one is and `clip.short=error`.

    With `clip.short=pad`, a clip is at most so long, and every video may be shorter.
    """
    check_short(dataset)
    if dataset.clip.short == "pad":
        return
    spans = list(_clip_spans(dataset))
    if spans and max(spans)[0] < 0:
        _, num_frames, span, _ = max(spans)
        raise InputError(
            f"a clip of {dataset.clip.num_frames} frames (frame_stride={dataset.clip.frame_stride}, "
            f"fps={dataset.clip.fps}) spans {span} video frames, more than any video has: the longest has "
            f"{num_frames}. Use a smaller clip.num_frames or clip.frame_stride, or "
            "clip.short=pad"
        )
