"""`stvid cost`, and what a run says about its cost before it starts."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from conftest import in_process

from stvid.cli import main
from stvid.clip import ClipSpec
from stvid.commands import cost as cost_command
from stvid.commands.cost import compare_costs, plan
from stvid.cost import planning
from stvid.errors import InputError
from stvid.models.conv3d import Conv3D
from stvid.training import batch_size as batch_size_module
from stvid.training.batch_size import plan_batch
from stvid.training.optim import OptimizerFactory

TINY = ("clip.num_frames=4", "clip.size=32", "data.batch_size=4", "trainer.accelerator=cpu", "trainer.precision=32")
GB = 2**30


def cost(*arguments):
    return in_process(["stvid", "cost", *map(str, arguments)], lambda: main(["cost", *map(str, arguments)]))


def test_cost_prints_layers_and_totals_and_writes_them_as_json(tmp_path):
    out = tmp_path / "cost.json"
    done = cost(*TINY, "--json", out)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["input_shape"] == [3, 4, 32, 32]
    assert (report["batch_size"], report["precision"]) == (4, "32-true")
    assert report["layers"][-1]["output_shape"] == [8]  # classes of the built-in data set, which is not looked at
    for words in ("layers.0.0", f"{report['parameters']:,}", "multiply-adds", "training step", "fits"):
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.parametrize(
    ("arguments", "classes"),
    [((), 8), (("data=ucf101", "data.root=nowhere"), 101), (("data=folder", "data.root=nowhere"), 400)],
)
def test_classes_are_those_of_the_named_data_set_without_looking_at_it(arguments, classes):
    planned = plan([*TINY, *arguments], classes=None, frames=None, device="cpu")
    assert planned.price(1).layers[-1].output_shape == (classes,)
    asked = plan([*TINY, *arguments], classes=5, frames=None, device="cpu")
    assert asked.price(1).layers[-1].output_shape == (5,)


def test_weights_are_neither_loaded_nor_made():
    planned = plan([*TINY, "model=r3d_18", "model.weights=DEFAULT"], classes=None, frames=None, device="cpu")
    assert {parameter.device.type for parameter in planned.model.parameters()} == {"meta"}


def test_whole_videos_are_priced_at_the_number_of_frames_that_is_asked_for():
    overrides = [*TINY, "data.whole_video=true"]
    with pytest.raises(InputError, match="--frames N"):
        plan(overrides, classes=None, frames=None, device="cpu")
    assert plan(overrides, classes=None, frames=40, device="cpu").price(1).input_shape == (3, 40, 32, 32)


def test_a_mistake_is_one_message_and_exit_code_2(tmp_path):
    for arguments, words in (
        (("model=conv3d", "model.width=[16]"), "model.width"),
        (("--classes", "0"), "--classes (=0)"),
        (("--out", "picture.png"), "add --compare"),
        (("--compare", "--out", "picture.bmp"), "picture.bmp: the picture must end in"),
        (("--compare", "--frames", "3"), "leave it out"),
        (("--compare", "model.no_such_key=1"), "model.no_such_key"),
    ):
        done = cost(*TINY, *arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_families_are_compared_on_the_same_clips_as_they_grow(monkeypatch, tmp_path):
    monkeypatch.setattr(cost_command, "FRAMES", (1, 8, 64))
    reports = compare_costs([*TINY, "model=r3d_18", "model.hidden_size=32"], classes=3, device="cpu")
    assert list(reports) == ["conv3d", "cnn_lstm"]
    for series in reports.values():
        assert [report.input_shape for report in series] == [(3, t, 32, 32) for t in (1, 8, 64)]
        assert series[0].activation_bytes < series[1].activation_bytes < series[2].activation_bytes
    lstm = next(layer for layer in reports["cnn_lstm"][1].layers if layer.type == "LSTM")
    assert lstm.output_shape == (8, 32)  # the key that conv3d does not have
    out = tmp_path / "growth.png"
    done = cost(*TINY, "--compare", "--out", out)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().startswith(b"\x89PNG")
    assert len(cost(*TINY, "--compare").stdout.splitlines()) == 2 + 1 + 3


@pytest.fixture
def run(monkeypatch, caplog):
    """`plan_batch` for a small model on a device with so many free bytes."""
    caplog.set_level(logging.INFO, logger="stvid")

    def planned(batch_size, free, *, num_videos=1000, num_processes=1, model=None, device="cpu", try_step=None):
        for module in (planning, batch_size_module):
            monkeypatch.setattr(module, "free_bytes", lambda device: free)
        model = Conv3D(num_classes=2) if model is None else model
        optimization = OptimizerFactory(optimizer=torch.optim.AdamW, lr=1e-3)
        data = SimpleNamespace(
            batch_size=batch_size,
            clip=ClipSpec(num_frames=4, size=32),
            manifest=SimpleNamespace(class_names=("a", "b")),
            train=range(num_videos),
        )
        device = torch.device(device)
        size = plan_batch(model, optimization, data, device, "32-true", num_processes, try_step=try_step)
        return size, caplog.text

    return planned


def test_a_run_says_what_it_takes_and_keeps_its_batch_size(run):
    size, text = run(16, 100 * GB)
    assert size == 16
    assert "a training step on 16 clips takes" in text
    assert "WARNING" not in text


def test_a_run_that_will_not_fit_is_warned_with_the_batch_that_does(run):
    size, text = run(64, 12 * 2**20)
    assert size == 64
    fits = int(text.split("data.batch_size=")[1])
    assert 2 <= fits < 64


class Foreign(Conv3D):
    """A user's own, which can be trained and not be simulated."""

    def __init__(self, step):
        super().__init__(num_classes=2)
        self.step = step

    def forward(self, clips, lengths=None):
        return super().forward(clips, lengths) + self.step(clips)


def test_a_model_that_cannot_be_simulated_is_trained_unpriced(run):
    size, text = run(16, 100 * GB, model=Foreign(lambda clips: clips.sum().item()))
    assert size == 16
    assert "cost not known: Foreign cannot be priced" in text
    assert "Traceback" not in text
    with pytest.raises(InputError, match="cannot be priced"):
        run("auto", 100 * GB, model=Foreign(lambda clips: clips.sum().item()))


def test_an_error_in_a_simulation_is_shown_with_its_traceback(run):
    size, text = run(16, 100 * GB, model=Foreign(lambda clips: float(clips.detach().numpy().sum())))
    assert size == 16
    assert "cost not known" in text
    assert "Traceback" in text
    with pytest.raises(RuntimeError, match="numpy"):
        run("auto", 100 * GB, model=Foreign(lambda clips: float(clips.detach().numpy().sum())))


def test_auto_takes_what_fits_at_most_256_and_at_most_the_videos(run):
    assert run("auto", 100 * GB)[0] == 256
    assert run("auto", 100 * GB, num_videos=40)[0] == 40
    assert 2 <= run("auto", 12 * 2**20)[0] < 40
    assert run("auto", None)[0] == 16
    with pytest.raises(InputError, match="2 processes must have the same batch size"):
        run("auto", 100 * GB, num_processes=2)
    with pytest.raises(InputError, match="data.batch_size=auto: a training step on 2 clips needs"):
        run("auto", 2**20)


def memory_for(most):
    """A training step that runs out of memory above so many clips, and the sizes it was tried with."""
    tried = []

    def step(batch_size):
        tried.append(batch_size)
        if batch_size > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return step, tried


@pytest.mark.parametrize(("most", "sizes"), [(256, [256]), (100, [256, 128, 64]), (2, [256, 128, 64, 32, 16, 8, 4, 2])])
def test_auto_is_tried_on_a_gpu_and_halved_until_it_fits(run, most, sizes):
    step, tried = memory_for(most)
    size, text = run("auto", 100 * GB, device="cuda", try_step=step)
    assert (size, tried) == (sizes[-1], sizes)
    assert f"data.batch_size=auto takes {size} clips" in text


def test_where_nothing_fits_on_a_gpu_it_is_said(run):
    with pytest.raises(InputError, match="on 2 clips runs out of the memory of cuda"):
        run("auto", 100 * GB, device="cuda", try_step=memory_for(1)[0])


@pytest.mark.parametrize(("batch_size", "device"), [(16, "cuda"), ("auto", "cpu")])
def test_what_is_not_a_guess_about_a_gpu_is_not_tried(run, batch_size, device):
    step, tried = memory_for(0)
    run(batch_size, 100 * GB, device=device, try_step=step)
    assert not tried
