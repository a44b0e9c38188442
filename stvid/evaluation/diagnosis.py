"""What the result of a training says about it: at chance, overfitting, a training loss above the val loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stvid.evaluation.text import percent
from stvid.terminal import visible

FEW_VIDEOS = 1000  # training videos, below which the recipes for small data sets fit
MIN_EPOCHS = 4  # a shorter training does not show whether it overfits
OVERFITTING_GAP = 0.2  # clip accuracy of the last epoch, train minus val
WEAK_CROP = 0.5  # smallest crop (augment.scale) above which augment=strong is stronger


def diagnose(result: Mapping, epochs: Sequence[Mapping[str, str]]) -> list[str]:
    """One sentence with one suggestion for each of these that holds.

    - At chance: the 95 % interval of the video accuracy contains the chance level `1 / classes` or the share of the
      most common class, or is below it.
    - Overfitting: in the last epoch, the clip accuracy on train is at least 0.2 above that on val, and the best epoch
      is in the first half of at least 4 epochs.

    Args:
        result: `result.json` of the run itself, with `config` and `data`.
        epochs: rows of `metrics.csv`.
    """
    sentences, used = [], set()
    for found, advices in ((_at_chance(result), _chance_advice), (_overfitting(result, epochs), _overfitting_advice)):
        if found:
            advice = next(text for text in advices(result) if text not in used)
            used.add(advice)
            sentences.append(f"{found} Try {advice}.")
    return sentences


def _at_chance(result: Mapping) -> str:
    sizes = {name: metrics["num_videos"] for name, metrics in result["per_class"].items()}
    if len(sizes) < 2:
        return ""
    common = max(sizes, key=lambda name: sizes[name])
    chance, share = 1 / len(sizes), sizes[common] / result["num_videos"]
    if result["video_accuracy_ci95"][0] > max(chance, share):
        return ""
    level = f"{percent(chance)}"
    if share > chance:
        level += f"; always predicting {visible(common)} gives {percent(share)}"
    return f"At chance: the val accuracy of {percent(result['video_accuracy'])} is not clearly above chance ({level})."


def _overfitting(result: Mapping, epochs: Sequence[Mapping[str, str]]) -> str:
    accuracies = _last_pair(epochs, "train_clip_accuracy", "val_clip_accuracy")
    if accuracies is None or len(epochs) < MIN_EPOCHS or result["epoch"] > len(epochs) / 2:
        return ""
    train, val = accuracies
    if train - val < OVERFITTING_GAP:
        return ""
    return (
        f"Overfitting: the clip accuracy ends at {percent(train)} on train and {percent(val)} on val, and the best "
        f"epoch is {result['epoch']} of {len(epochs)}."
    )


def _last_pair(epochs: Sequence[Mapping[str, str]], first: str, second: str) -> tuple[float, float] | None:
    """Two columns of the last epoch that has both."""
    pairs = [(row[first], row[second]) for row in epochs if row.get(first) and row.get(second)]
    return (float(pairs[-1][0]), float(pairs[-1][1])) if pairs else None


def _num_train(result: Mapping) -> int:
    return sum(result["data"]["num_videos"].get("train", {}).values())


def _pretrained_recipe(result: Mapping) -> list[str]:
    """A recipe for so many videos, if the model has no pretrained weights."""
    if result["config"]["model"].get("weights") is not None:
        return []
    number = _num_train(result)
    if number < FEW_VIDEOS:
        difference = result["config"].get("clip", {}).get("input") == "diff"
        scratch = "" if difference else ", or experiment=small_real_conv3d without pretrained weights"
        return [f"experiment=small_real, the recipe for {number:,} training videos{scratch}"]
    return [f"pretrained weights, such as experiment=r3d_18_kinetics, for {number:,} training videos"]


def _chance_advice(result: Mapping) -> list[str]:
    views = [f"more views: stvid evaluate RUN --split {result['split']} --clips 10"]
    views *= result["protocol"]["num_clips"] == 1
    return [*_pretrained_recipe(result), "find_lr=true, which suggests a learning rate", *views]


def _overfitting_advice(result: Mapping) -> list[str]:
    config = result["config"]
    frozen = config["model"].get("freeze")
    freeze = ["model.freeze=all, which trains only what comes after the pretrained layers"]
    freeze *= config["model"].get("weights") is not None and frozen in (0, None) and _num_train(result) < FEW_VIDEOS
    scale = config.get("augment", {}).get("scale") or [1.0]
    augment = ["augment=strong"] * (scale[0] > WEAK_CROP)
    return [*_pretrained_recipe(result), *freeze, *augment, "early_stopping=5, a higher model.dropout, or more videos"]


def loss_note(config: Mapping, epochs: Sequence[Mapping[str, str]]) -> str:
    """Why the training loss is above the val loss at the end; empty if it is not."""
    losses = _last_pair(epochs, "train_loss", "val_loss")
    if losses is None or losses[0] <= losses[1]:
        return ""
    mixing, loss, model = (config.get(key) or {} for key in ("mixing", "loss", "model"))
    reasons = ["on augmented clips"] if config.get("augment") else []
    reasons += ["with dropout"] * bool(model.get("dropout"))
    reasons += ["with label smoothing"] * bool(loss.get("label_smoothing"))
    reasons += ["with mixed clips"] * bool(mixing.get("mixup") or mixing.get("cutmix"))
    named = ", ".join(reasons) or "on other clips and before each step"
    return (
        f"The training loss ({losses[0]:.3f}) is above the val loss ({losses[1]:.3f}): it is measured {named}, the val "
        "loss without. The two cannot be compared; compare each with itself over the epochs."
    )
