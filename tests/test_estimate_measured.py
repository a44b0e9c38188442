"""Estimates against the measured memory of real training steps."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from stvid.clip import ClipSpec
from stvid.cost.estimate import estimate
from stvid.models.c3d import C3D
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.preprocess import Preprocess, channels_last, run_model

CLIP = ClipSpec(num_frames=8, size=48)
BATCH = 4
MODELS = {
    "conv3d": lambda: Conv3D(num_classes=8),
    "conv3d, deeper": lambda: Conv3D(num_classes=8, widths=(16, 32), depths=2, strides=((1, 2, 2), (2, 2, 2))),
    "cnn_lstm": lambda: CNNLSTM(num_classes=8, num_layers=2, bidirectional=True),
    "resnet18 + lstm": lambda: CNNLSTM(num_classes=8, encoder="resnet18"),
    "resnet18 + lstm, recomputed": lambda: CNNLSTM(num_classes=8, encoder="resnet18", encoder_chunk=8),
    "gru": lambda: CNNLSTM(num_classes=8, recurrent="gru"),
}


def real_step(model: nn.Module, precision: str):
    """Two functions: a training step as in a run, and its forward pass alone."""
    channels_last(model).train()
    preprocess = Preprocess(clip=CLIP)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])

    def forward() -> torch.Tensor:
        clips = torch.randint(0, 256, (BATCH, CLIP.num_frames, 3, *CLIP.size), dtype=torch.uint8)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = run_model(model, preprocess, clips)
            return nn.functional.cross_entropy(logits.float(), torch.zeros(BATCH, dtype=torch.long))

    def step() -> None:
        loss = forward()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, forward


def measured_peak(build, precision: str) -> int:
    """Peak of the second step, from the profiler's memory events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step, _ = real_step(build(), precision)
        step()
        with record_function("second step"):
            step()
    events = profiled.profiler.kineto_results.events()
    begin = next(event.start_ns() for event in events if event.name() == "second step")
    in_use = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        in_use += event.nbytes()
        peak = max(peak, in_use if event.start_ns() >= begin else 0)
    return peak


def estimated(build, precision: str):
    shape = (3, CLIP.num_frames, *CLIP.size)
    return estimate(build(), shape, batch_size=BATCH, precision=precision, preprocess=Preprocess(clip=CLIP))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", MODELS)
def test_the_peak_of_a_training_step_is_within_10_percent_of_the_measured_one(name, precision):
    if precision == "bf16-mixed" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("on a CPU whose oneDNN has no bf16, convolutions work on copies that training need not have")
    peak = estimated(MODELS[name], precision).peak_train_bytes
    assert peak == pytest.approx(measured_peak(MODELS[name], precision), rel=0.1)


@pytest.mark.parametrize("build", [MODELS["conv3d"], lambda: C3D(num_classes=8), MODELS["resnet18 + lstm"]])
def test_kept_activations_are_what_autograd_saves(build):
    """The tensors that autograd saves, each storage once, without weights and the clip."""
    model = build()
    _, forward = real_step(model, "32-true")
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss = forward()
    report = estimated(build, "32-true")
    clip = 4 * 3 * CLIP.num_frames * CLIP.size[0] * CLIP.size[1]
    assert loss.requires_grad
    assert report.activation_bytes * BATCH == pytest.approx(sum(saved.values()) - clip * BATCH, rel=0.01)
