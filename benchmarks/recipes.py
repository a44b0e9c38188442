"""Chooses the recipe `experiment=small_real` by inner cross-validation by group over two data sets together.

    python benchmarks/recipes.py --ut DIR --fight DIR
    python benchmarks/recipes.py --ut DIR --fight DIR --study checkpoint --seeds 0 1

DIR: the segmented UT-Interaction videos (only sequences 1 to 7 and 11 to 17 are read: the others stay unseen, for the
test of docs/results.md), and a folder of class folders with `groups.csv` (path,group). A setting is a list of overrides
of `train.py`, see `recipe_studies.yaml`. Its frozen encoder encodes each data set once, by stvid's own feature cache;
the model behind it is then trained in each fold, as `train.py` trains it, in seconds. Prints a table per study: video
accuracy on each data set (the mean over all videos, each in the fold that left its group out), their mean, and its
standard deviation over the seeds. A seed also changes the folds. Results are kept in `--results`; a second run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from recipe_training import Features, Setting, train_fold

from stvid.data.layouts.class_folders import folder
from stvid.data.layouts.ut_interaction import ut_interaction
from stvid.data.manifest import Item
from stvid.data.splitting import hold_out_fold
from stvid.run.config import compose_config
from stvid.run.config_help import read_yaml
from stvid.run.config_tree import to_plain
from stvid.training.callbacks.checkpoints import ValScore

STUDIES = Path(__file__).with_name("recipe_studies.yaml")
UT_GROUPS = [f"sequence {first + i}" for first in (0, 10) for i in range(1, 8)]
NUM_FOLDS = {"ut": 7, "fight": 6}
VAL_FRACTION = 0.15
SMOOTHING = 5  # epochs around one, over which `select: smoothed` averages the val loss


def read_items(options: argparse.Namespace) -> dict[str, list[Item]]:
    """The items of both data sets, with their groups."""
    ut = ut_interaction(root=options.ut, fold=1, both_sets=True).items
    fight = folder(root=options.fight, group_csv=str(Path(options.fight) / "groups.csv")).items
    return {"ut": [item for item in ut if item.group in UT_GROUPS], "fight": list(fight)}


def make_folds(items: Sequence[Item], num_folds: int, seed: int) -> list[dict[str, list[int]]]:
    """Indices of train, val and test of each fold: whole groups, stratified by class; val is a part of the rest."""
    place = {item.path: i for i, item in enumerate(items)}
    folds = []
    for fold in range(1, num_folds + 1):
        parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        for item in hold_out_fold(items, fold=fold, num_folds=num_folds, val_fraction=VAL_FRACTION, seed=seed):
            parts[item.split].append(place[item.path])
        folds.append({name: sorted(indices) for name, indices in parts.items()})
    return folds


class Results:
    """The results of all folds, in a file with one line of JSON for each; a line is written when its fold is done."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.is_file() else []
        self.records = {record["key"]: record for record in map(json.loads, lines)}

    def add(self, record: dict) -> None:
        self.records[record["key"]] = record
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def run_setting(
    setting: Setting, base: tuple[str, ...], items: Mapping[str, list[Item]], results: Results, seeds: Sequence[int]
) -> dict[str, list[list[dict]]]:
    """Trains what is missing. Returns for each data set and seed the records of all folds."""
    words, found, features = (*base, *setting.overrides), {}, None
    for name, members in items.items():
        features, found[name] = None, []
        for seed in seeds:
            records = []
            for fold, parts in enumerate(make_folds(members, NUM_FOLDS[name], seed)):
                encoded = [*words, setting.images, setting.frames, setting.beside, setting.refit]
                encoded += [setting.centred] if setting.centred else []
                encoded += [f"draw {setting.draw}"] if setting.draw else []
                encoded += [f"train {setting.num_train}"] if setting.num_train else []
                key = hashlib.sha256(json.dumps([*encoded, name, len(members), seed, fold]).encode()).hexdigest()[:16]
                if key not in results.records:
                    config = compose_config(words)
                    features = features or Features(tuple(members), setting, base)
                    began = time.perf_counter()
                    if setting.refit:
                        parts = {"train": sorted(parts["train"] + parts["val"]), "val": [], "test": parts["test"]}
                    if setting.num_train:
                        chosen = np.random.default_rng(seed).permutation(parts["train"])[: setting.num_train]
                        parts = {**parts, "train": sorted(chosen.tolist())}
                    draw = setting.draw * 10_000 + seed * 100 + fold
                    run = train_fold(to_plain(config), features, parts, config=config, seed=draw)
                    seconds = round(time.perf_counter() - began, 1)
                    truth = [features.labels[i] for i in parts["test"]]
                    about = {"name": setting.name, "data": name, "seed": seed, "fold": fold, "seconds": seconds}
                    results.add({"key": key, **about, "truth": truth, **run})
                records.append(results.records[key])
            found[name].append(records)
    return found


def share_right(record: Mapping, setting: Setting) -> float:
    """The share of right test videos of a fold, in the epoch that the setting selects."""
    curve = record["average" if setting.average else "weights"]
    if setting.select == "last":
        return curve[-1][2]
    if setting.select == "smoothed":
        losses = np.array([loss for _, loss, _ in curve])
        half = SMOOTHING // 2
        smooth = [losses[max(i - half, 0) : i + half + 1].mean() for i in range(len(losses))]
        return curve[int(np.argmin(smooth))][2]
    best = 0
    for epoch, (accuracy, loss, _) in enumerate(curve):
        if ValScore(accuracy, loss).is_better_than(ValScore(*curve[best][:2])):
            best = epoch
    return curve[best][2]


def accuracies(records: Sequence[Sequence[Mapping]], setting: Setting) -> list[float]:
    """The video accuracy over all folds, for each seed."""
    counts = [[len(record["truth"]) for record in folds] for folds in records]
    shares = [[share_right(record, setting) for record in folds] for folds in records]
    return [float(np.average(share, weights=count)) for share, count in zip(shares, counts, strict=True)]


def ensemble_accuracies(members: Sequence[tuple[Setting, Sequence[Sequence[Mapping]]]]) -> list[float]:
    """The same of the mean probabilities of several settings, after their last epochs."""
    per_seed = []
    for number in range(len(members[0][1])):
        right = total = 0
        for fold, first in enumerate(members[0][1][number]):
            parts = [
                records[number][fold]["probabilities"]["average" if setting.average else "weights"]
                for setting, records in members
            ]
            right += int((np.mean(parts, axis=0).argmax(axis=1) == np.array(first["truth"])).sum())
            total += len(first["truth"])
        per_seed.append(right / total)
    return per_seed


def run_study(
    name: str, study: Mapping, items: Mapping[str, list[Item]], results: Results, seeds: Sequence[int]
) -> None:
    """Prints the table of a study, row by row."""
    print(f"\n{name}: {study['about']}\n")
    print("| setting | " + " | ".join(items) + " | mean | sd over seeds | s per fold |")
    print("|---|" + "---|" * (len(items) + 3))
    done: dict[str, tuple[Setting, dict]] = {}
    for row in study["settings"]:
        setting = Setting(**{**study.get("defaults", {}), **row})
        if setting.ensemble:
            members = [done[member] for member in setting.ensemble]
            columns = [ensemble_accuracies([(member, found[data]) for member, found in members]) for data in items]
            seconds = 0.0
        else:
            found = run_setting(setting, tuple(study["base"]), items, results, seeds)
            done[setting.name] = setting, found
            columns = [accuracies(found[data], setting) for data in items]
            seconds = mean(record["seconds"] for data in found.values() for folds in data for record in folds)
        means = [mean(pair) for pair in zip(*columns, strict=True)]
        spread = f"{stdev(means):.3f}" if len(means) > 1 else "-"
        cells = [*(f"{mean(column):.3f}" for column in columns), f"**{mean(means):.3f}**", spread, f"{seconds:.1f}"]
        print(f"| {setting.name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = read_yaml(STUDIES)
    parser.add_argument("--ut", required=True, help="folder of the UT-Interaction videos")
    parser.add_argument("--fight", required=True, help="folder of class folders with groups.csv")
    parser.add_argument("--study", nargs="+", default=list(studies), choices=list(studies), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=Path("outputs/recipes.jsonl"), help="default: %(default)s")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # what is encoded, on stderr
    items, results = read_items(options), Results(options.results)
    for name in options.study:
        run_study(name, studies[name], items, results, options.seeds)


if __name__ == "__main__":
    main()
