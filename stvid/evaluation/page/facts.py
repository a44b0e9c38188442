"""The facts of a report that are a name and a value: headline numbers, cost, data, and what a result came from."""

from __future__ import annotations

from collections.abc import Mapping

from stvid.cost.report import CostReport
from stvid.cost.table import bytes_text, count_text
from stvid.evaluation import notation
from stvid.evaluation.page import words
from stvid.evaluation.price import on_gpu

TOPS = ("2", "3", "5")
MANY = 20  # classes, above which top 5 says more than top 2

Facts = list[tuple[str, str] | tuple[str, str, str | None]]  # name, value, and perhaps a note


def headline_numbers(result: Mapping) -> Facts:
    """All numbers of a result but the video accuracy."""

    def noted(name: str, note: str) -> tuple[str, str, str]:
        bounds = notation.interval(result[f"{name}_ci95"])
        return name.replace("_", " "), notation.percent(result[name]), f"{note}, {bounds}"

    numbers: Facts = [
        noted("clip_accuracy", "every view for itself"),
        noted("mean_class_accuracy", "every class counts alike"),
    ]
    tops = {k: notation.percent(share) for k, share in result["top_k_accuracy"].items() if k in TOPS}
    if tops:
        shown = "5" if "5" in tops and len(result["class_names"]) > MANY else "2"
        others = ", ".join(f"top {k}: {share}" for k, share in tops.items() if k != shown)
        numbers.append((f"top {shown}", tops[shown], others or "truth among the 2 most probable answers"))
    numbers.append(("macro F1", notation.decimal(result["macro_f1"]), "mean over the classes"))
    chance = notation.decimal(words.chance_loss(result))
    numbers.append(("log loss", notation.decimal(result["loss"]), f"{chance} for equal probabilities"))
    numbers.append(("calibration error", notation.percent(result["ece"]), "how far its probabilities are off"))
    return numbers


def cost_groups(cost: CostReport | None, result: Mapping, run: Mapping) -> list[tuple[str, str, Facts]]:
    """Title, what it is about, and facts: what the model needs by count, and what the training was seen to need."""
    groups = []
    if cost is not None:
        groups.append(("The model", _input_text(cost), _counted(cost, result["protocol"])))
    if run:
        groups.append(("Its training", f"As measured, on {_device(run)}.", _measured(run)))
    return groups


def _input_text(cost: CostReport) -> str:
    shape = " × ".join(map(str, cost.input_shape))
    device = {"cpu": "a CPU", "cuda": "a CUDA device"}[cost.device]
    return f"Counted, for clips of {shape} (channels × frames × height × width) in {cost.precision} on {device}."


def _counted(cost: CostReport, protocol: Mapping) -> Facts:
    views = protocol["num_clips"] * protocol["num_crops"]
    trained = cost.trainable_parameters
    share = None if trained == cost.parameters else f"{count_text(trained)} of them trained"
    step = f"on {notation.count(cost.batch_size, 'clip')}, with AdamW"
    return [
        ("parameters", count_text(cost.parameters), share),
        ("model", bytes_text(cost.model_bytes), "parameters and buffers"),
        ("compute of a clip", f"{count_text(cost.flops_forward)}FLOPs", "twice the multiply-adds"),
        ("compute of a video", f"{count_text(cost.flops_forward * views)}FLOPs", notation.count(views, "view")),
        ("memory of a training step", bytes_text(cost.peak_train_bytes), step),
        ("memory of an answer", bytes_text(cost.peak_inference_bytes), "to one clip"),
    ]


def _measured(run: Mapping) -> Facts:
    facts: Facts = [("training time", notation.duration(run["training_seconds"]), "all epochs, validation included")]
    if run["clips_per_second"] is not None:
        facts.append(("speed", f"{run['clips_per_second']:.1f} clips/s", "in training"))
    if run["waiting"] is not None:
        facts.append(("waiting for data", notation.percent(run["waiting"]), "of the training part"))
    for place, gib in run["peak_memory_gib"].items():
        if gib is not None:
            facts.append((f"memory, {place}", f"{gib:.2f} GiB", "at most"))
    return facts


def _device(run: Mapping) -> str:
    hardware = run["hardware"]
    if on_gpu(run) and hardware["gpus"]:
        return hardware["gpus"][0]["name"]
    return f"{hardware['cpu'] or 'a CPU'}, {notation.count(hardware['cores'], 'core')}"


def record_facts(result: Mapping, run: Mapping) -> Facts:
    """Checkpoint, seed, code, versions and machine."""
    facts: Facts = []
    if "folds" in result:
        facts.append(("runs", ", ".join(fold["run"] for fold in result["folds"])))
    else:
        facts.append(("checkpoint", f"{result['checkpoint']} (epoch {result['epoch']})"))
    if result["manifest"]:
        facts.append(("manifest", result["manifest"]))
    if not run:
        return facts
    facts.append(("seed", str(run["seed"])))
    if run["git"]:
        changed = ", with changes that are not committed" if run["git"]["dirty"] else ""
        facts.append(("git commit", f"{run['git']['commit']}{changed}"))
    facts.append(("versions", ", ".join(f"{name} {version}" for name, version in run["versions"].items())))
    hardware = run["hardware"]
    cores, memory = notation.count(hardware["cores"], "core"), hardware["memory_gib"]
    parts = [hardware["machine"], hardware["cpu"], cores, f"{memory} GiB of memory" if memory else None]
    parts += [f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in hardware["gpus"]]
    facts.append(("machine", ", ".join(part for part in parts if part)))
    return facts


def data_facts(result: Mapping, run: Mapping, root: str | None) -> Facts:
    """Where the judged videos lie, in how many groups, and the fingerprint of the run's data set."""
    facts: Facts = [] if root is None else [("folder", root)]
    if result["num_groups"]:
        facts.append((f"groups in {result['split']}", f"{result['num_groups']:,}"))
    if run:
        facts.append(("fingerprint (SHA-256)", run["data"]["manifest_sha256"]))
    return facts
