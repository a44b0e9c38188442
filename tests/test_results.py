"""The cost in a report is that of the training, on whatever machine the report is made."""

from pathlib import Path

import pytest
import torch

from stvid import device as hardware
from stvid.clip import ClipSpec
from stvid.evaluation.results import estimate_cost
from stvid.models.conv3d import Conv3D
from stvid.report.tables import cost_tables
from stvid.run.checkpoint import TrainedModel

GPU = {"name": "A GPU", "memory_gib": 80.0}
RUN = {
    "training_seconds": 9.0,
    "clips_per_second": 1.0,
    "waiting": None,
    "peak_memory_gib": {"host": 1.0, "gpu": 2.0},
    "hardware": {"cpu": "A CPU", "cores": 2, "gpus": [GPU]},
}


@pytest.fixture(params=["slow CPU", "fast CPU", "new GPU", "old GPU"])
def reader(request, monkeypatch):
    """The machines on which reports are made."""
    capability = {"new GPU": (9, 0), "old GPU": (7, 0)}.get(request.param)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "cpu_has_fast_bf16", lambda: request.param == "fast CPU")


def estimated(run, precision="auto"):
    trained = TrainedModel(
        path=Path("run/checkpoints/best.ckpt"),
        folder=Path("run"),
        model=Conv3D(num_classes=2, widths=(4, 8), strides=((1, 2, 2), (2, 2, 2))).eval(),
        clip=ClipSpec(num_frames=4, size=32),
        class_names=("a", "b"),
        protocol={"num_clips": 1, "num_crops": 1},
        config={"data": {"datamodule": {"batch_size": 4}}, "trainer": {"precision": precision}, "ema": None},
        epoch=1,
    )
    report = estimate_cost(trained, run)
    return report.device, report.precision


@pytest.mark.parametrize(("device", "expected"), [("cuda", "cuda"), ("cpu", "cpu"), ("mps", "cpu")])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_the_recorded_device_and_precision_are_used(reader, device, expected, precision):
    assert estimated({**RUN, "device": device, "precision": precision}) == (expected, precision)


def test_the_cost_of_an_older_run_does_not_depend_on_the_machine(reader):
    """Without a record, the device follows from the GPU memory, and the precision from the config."""
    cpu = {**RUN, "peak_memory_gib": {"host": 1.0, "gpu": None}}
    assert estimated(RUN) == ("cuda", "bf16-mixed")
    assert estimated(cpu) == estimated({}) == ("cpu", "32-true")
    assert estimated(RUN, precision=16) == ("cuda", "16-mixed")
    assert estimated(cpu, precision="bf16") == ("cpu", "bf16-mixed")


def test_the_named_machine_is_that_of_the_training():
    for run, named in (
        (RUN, "A GPU"),
        ({**RUN, "device": "cpu", "precision": "32-true"}, "A CPU, 2 cores"),  # the GPU was there and was not used
    ):
        ((_, note, _),) = cost_tables(None, {}, run)
        assert named in note
