"""`stvid cost`: the report, the comparison of both families, and mistakes in the options."""

import json

import pytest
from conftest import in_process

from stvid.cli import main
from stvid.commands import cost as cost_command
from stvid.commands.cost import compare_costs, make_plan
from stvid.errors import InputError

TINY = ("clip.num_frames=4", "clip.size=32", "data.batch_size=4", "trainer.accelerator=cpu", "trainer.precision=32")


def cost(*arguments):
    return in_process(["stvid", "cost", *map(str, arguments)], lambda: main(["cost", *map(str, arguments)]))


def test_cost_prints_layers_and_totals_and_writes_them_as_json(tmp_path):
    out = tmp_path / "cost.json"
    done = cost(*TINY, "--json", out)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["input_shape"] == [3, 4, 32, 32]
    assert (report["batch_size"], report["precision"]) == (4, "32-true")
    assert report["layers"][-1]["output_shape"] == [8]  # classes of the built-in data set
    for text in ("layers.0.0", f"{report['parameters']:,}", "multiply-adds", "training step", "fits"):
        assert text in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.parametrize(
    ("arguments", "classes"),
    [((), 8), (("data=ucf101", "data.root=nowhere"), 101), (("data=folder", "data.root=nowhere"), 400)],
)
def test_the_number_of_classes_follows_from_the_name_of_the_data_set(arguments, classes):
    plan = make_plan([*TINY, *arguments], classes=None, frames=None, device="cpu")
    assert plan.estimate(1).layers[-1].output_shape == (classes,)
    plan = make_plan([*TINY, *arguments], classes=5, frames=None, device="cpu")
    assert plan.estimate(1).layers[-1].output_shape == (5,)


def test_weights_take_no_memory_and_are_not_loaded():
    plan = make_plan([*TINY, "model=r3d_18", "model.weights=DEFAULT"], classes=None, frames=None, device="cpu")
    assert {parameter.device.type for parameter in plan.model.parameters()} == {"meta"}


def test_whole_videos_need_the_option_frames():
    overrides = [*TINY, "data.whole_video=true"]
    with pytest.raises(InputError, match="--frames N"):
        make_plan(overrides, classes=None, frames=None, device="cpu")
    assert make_plan(overrides, classes=None, frames=40, device="cpu").estimate(1).input_shape == (3, 40, 32, 32)


def test_a_mistake_is_one_message_and_exit_code_2(tmp_path):
    for arguments, message in (
        (("model=conv3d", "model.width=[16]"), "model.width"),
        (("--classes", "0"), "--classes (=0)"),
        (("--out", "picture.png"), "add --compare"),
        (("--compare", "--out", "picture.bmp"), "picture.bmp: the picture must end in"),
        (("--compare", "--frames", "3"), "leave it out"),
        (("--compare", "model.no_such_key=1"), "model.no_such_key"),
    ):
        done = cost(*TINY, *arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_both_families_are_estimated_on_the_same_clips(monkeypatch, tmp_path):
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
    lines = cost(*TINY, "--compare").stdout.splitlines()
    assert len(lines) == 2 + 1 + 3
    assert max(map(len, lines)) <= 120
