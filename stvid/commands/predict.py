"""`stvid predict`: the most probable classes of video files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from stvid.data.manifest import Item
from stvid.device import default_device, limit_cpu_threads
from stvid.errors import UNREADABLE, InputError
from stvid.files import write_json
from stvid.inference import classify
from stvid.run.checkpoint import TrainedModel, load_checkpoint
from stvid.terminal import show, visible


def run(options: argparse.Namespace) -> None:
    limit_cpu_threads(default_device().type)
    trained = load_checkpoint(options.run, trust=options.trust)
    predictions = predict_files(trained, options.paths, top=options.top, num_workers=options.workers)
    for prediction in predictions:
        show(visible(prediction["path"]))
        if "error" in prediction:
            reason = "no video, or damaged" if prediction["error"] == UNREADABLE else prediction["error"]
            show(f"  could not be read: {visible(reason)}")
        for entry in prediction["top"]:
            show(f"  {entry['probability']:6.1%}  {visible(entry['class'])}")
    if options.json:
        write_json(options.json, predictions)
    if any("error" in prediction for prediction in predictions):
        raise SystemExit(1)


def predict_files(
    trained: TrainedModel, paths: Sequence[Path], *, top: int = 5, num_workers: int | str = "auto"
) -> list[dict]:
    """The classes of each video, most probable first.

    Args:
        trained: the model.
        paths: video files.
        top: number of classes to name, at least 1; all classes if there are fewer.
        num_workers: processes that read videos.

    Returns:
        One `{"path", "top": [{"class", "probability"}, ...]}` for each path, in the same order; for a file that cannot
        be read `{"path", "top": [], "error": reason}`.

    Raises:
        InputError: `top` below 1.
    """
    if top < 1:
        raise InputError(f"--top (={top}) must be at least 1")
    items = [Item(path=str(path.absolute()), label="", split="test") for path in paths]
    results = classify(trained, items, num_workers=num_workers, progress=len(paths) > 20)
    probabilities_K = dict(zip(results.videos_N.tolist(), results.probabilities_NK, strict=True))
    predictions: list[dict] = []
    for video, path in enumerate(paths):
        if video not in probabilities_K:
            predictions.append({"path": str(path), "top": [], "error": results.failed[video]})
            continue
        best = probabilities_K[video].topk(min(top, len(trained.class_names)))
        classes = [
            {"class": trained.class_names[index], "probability": probability}
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        predictions.append({"path": str(path), "top": classes})
    return predictions
