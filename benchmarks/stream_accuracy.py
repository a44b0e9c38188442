"""Compares the answers of a stream with those of windows, on the test split of a run.

    python benchmarks/stream_accuracy.py RUN
    python benchmarks/stream_accuracy.py RUN --split val --videos 100

Each video is a stream of its own: its frames are pushed in order, and the probabilities of the answers are averaged.
Windows are what `stvid evaluate` predicts. Prints accuracy and mean probability of the right class of both.
"""

from __future__ import annotations

import argparse

import numpy as np

import stvid
from stvid.data.manifest import read_manifest
from stvid.recognizer import Recognizer
from stvid.video.playback import iter_frames


def stream_probabilities(recognizer: Recognizer, path: str) -> np.ndarray | None:
    """The mean over all answers to a video, `K`; None: it is too short for one."""
    info = stvid.probe(path)
    stream, answers = recognizer.stream(info.fps), []
    for _, frame in iter_frames(path, info=info, max_pixels=recognizer.trained.max_pixels):
        before = stream.probabilities_K
        answer = stream.push(frame)
        if answer is not None and answer is not before:
            answers.append(answer.numpy())
    return np.mean(answers, axis=0) if answers else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run folder")
    parser.add_argument("--split", default="test")
    parser.add_argument("--videos", type=int, help="default: all of the split")
    options = parser.parse_args()
    recognizer = stvid.load(options.run)
    manifest = read_manifest(path=str(recognizer.trained.folder / "manifest.csv"))
    items = [item for item in manifest.items if item.split == options.split]
    rng = np.random.default_rng(0)
    chosen = [items[i] for i in rng.permutation(len(items))[: options.videos]]
    rows: dict[str, list[np.ndarray]] = {"windows": [], "stream": []}
    labels = []
    for item in chosen:
        from_stream = stream_probabilities(recognizer, item.path)
        if from_stream is not None:
            rows["stream"].append(from_stream)
            rows["windows"].append(recognizer.predict(item.path).probabilities)
            labels.append(recognizer.class_names.index(item.label))
    stream = recognizer.stream(25)
    if not labels:
        raise SystemExit(f"no video has the {stream.first} frames (at 25 frames/s) that the first answer needs")
    print(f"{recognizer}; {stream.mode}; {len(labels)} of {len(chosen)} videos are long enough")
    for name, probabilities in rows.items():
        table_NK, right_N = np.stack(probabilities), np.array(labels)
        accuracy = (table_NK.argmax(axis=1) == right_N).mean()
        print(f"{name:<8} accuracy {accuracy:.3f}, right class {table_NK[np.arange(len(right_N)), right_N].mean():.3f}")


if __name__ == "__main__":
    main()
