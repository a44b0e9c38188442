"""What a page says that a model costs: as it was trained, whatever machine draws the page."""

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
    """The machines that pages are drawn on."""
    capability = {"new GPU": (9, 0), "old GPU": (7, 0)}.get(request.param)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "cpu_has_fast_bf16", lambda: request.param == "fast CPU")


def priced(run, precision="auto"):
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
def test_what_the_run_wrote_down_counts(reader, device, expected, precision):
    assert priced({**RUN, "device": device, "precision": precision}) == (expected, precision)


def test_an_older_run_is_priced_alike_everywhere(reader):
    """It did not write down its precision: a GPU's memory tells the device, the config the precision if it is one."""
    cpu = {**RUN, "peak_memory_gib": {"host": 1.0, "gpu": None}}
    assert priced(RUN) == ("cuda", "bf16-mixed")
    assert priced(cpu) == priced({}) == ("cpu", "32-true")
    assert priced(RUN, precision=16) == ("cuda", "16-mixed")
    assert priced(cpu, precision="bf16") == ("cpu", "bf16-mixed")


def test_the_machine_that_is_named_is_that_of_the_training():
    for run, named in (
        (RUN, "A GPU"),
        ({**RUN, "device": "cpu", "precision": "32-true"}, "A CPU, 2 cores"),  # the GPU was there and was not used
    ):
        ((_, note, _),) = cost_tables(None, {}, run)
        assert named in note
