"""What the words of `stvid` do; cli.py parses them."""

from __future__ import annotations

import argparse


def num_workers_of(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def compose_data_set(options: argparse.Namespace):
    """The manifest, clip and number of processes that the overrides name; all cores where it is left to us."""
    from hydra.utils import instantiate

    from stvid.data.loading import resolve_workers
    from stvid.device import num_cores
    from stvid.run.config import compose_config

    config = compose_config(options.overrides)
    manifest = instantiate(config.data.datamodule.manifest, _convert_="all")
    workers = config.data.num_workers
    workers = num_cores() if workers == "auto" else max(resolve_workers(workers), 1)
    clip = instantiate(config.clip, _convert_="all", **({"num_frames": None} if config.data.whole_video else {}))
    return manifest, clip, workers, config.data.probe_timeout
