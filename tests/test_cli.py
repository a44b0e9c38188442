"""`stvid evaluate` and `stvid predict` on a real run, and their errors."""

import csv
import json
import runpy
import shutil

import pytest
from conftest import in_process

from stvid import __version__
from stvid.cli import main


def command(*arguments):
    return in_process(["stvid", *map(str, arguments)], lambda: main(list(map(str, arguments))))


def test_the_package_runs_as_a_program():
    done = in_process(["stvid", "--version"], lambda: runpy.run_module("stvid", run_name="__main__"))
    assert (done.returncode, done.stdout) == (0, f"stvid {__version__}\n")


@pytest.fixture(scope="module")
def evaluated(run_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "result.json"
    done = command("evaluate", run_folder, "--json", out, "--workers", 0)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, out


def test_evaluate_writes_the_documented_result(run_folder, evaluated):
    result = json.loads((run_folder / "evaluate" / "test" / "result.json").read_text())
    assert result == json.loads(evaluated[1].read_text())
    assert {
        *("split", "class_names", "num_videos", "num_failed", "protocol", "video_accuracy", "video_accuracy_ci95"),
        *("clip_accuracy", "top5_accuracy", "mean_class_accuracy", "loss", "ece", "per_class", "confusion"),
    } <= set(result)
    assert result["split"] == "test"
    assert result["class_names"] == ["to_left", "to_right"]
    views = {"num_clips": 3, "num_crops": 1, "temperature": 1.0}
    assert result["protocol"] == {**views, "num_frames": 4, "frame_stride": 2, "size": [32, 32]}
    assert sum(map(sum, result["confusion"])) == result["num_videos"]
    low, high = result["video_accuracy_ci95"]
    assert 0 <= low <= result["video_accuracy"] <= high <= 1


def test_accuracies_follow_from_the_predictions(run_folder, evaluated):
    folder = run_folder / "evaluate" / "test"
    result = json.loads((folder / "result.json").read_text())
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["num_videos"]
    assert sum(row["predicted"] == row["label"] for row in rows) / len(rows) == result["video_accuracy"]
    for row in rows:
        p = {name: float(row[f"p_{name}"]) for name in result["class_names"]}
        assert sum(p.values()) == pytest.approx(1, abs=1e-4)
        assert max(p, key=p.get) == row["predicted"]


def test_evaluate_prints_the_result(run_folder, evaluated):
    text = evaluated[0].stdout
    result = json.loads(evaluated[1].read_text())
    assert f"video accuracy       {result['video_accuracy']:.3f}" in text
    assert "3 clips x 1 crops of 4 frames, stride 2, 32 x 32 pixels" in text
    assert "to_right" in text


def test_the_number_of_views_can_be_set(run_folder, evaluated, tmp_path):
    done = command("evaluate", run_folder, "--split", "val", "--clips", 5, "--crops", 3, "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["protocol"]["num_clips"], result["protocol"]["num_crops"]) == (5, 3)


def test_evaluating_val_gives_the_result_of_the_training_run(run_folder, tmp_path):
    done = command("evaluate", run_folder, "--split", "val", "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    again, first = json.loads((tmp_path / "r.json").read_text()), json.loads((run_folder / "result.json").read_text())
    assert all(again[key] == pytest.approx(first[key]) for key in ("video_accuracy", "clip_accuracy", "loss", "ece"))


def test_a_video_that_cannot_be_read_counts_as_wrong(run_folder, video_folder, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video" * 1000)
    good = {label: video_folder / label / "00.mp4" for label in ("to_left", "to_right")}
    table = tmp_path / "held_out.csv"
    lines = [f"{good['to_left']},to_left,test", f"{good['to_right']},to_right,test", f"{bad},to_left,test"]
    table.write_text("path,label,split\n" + "\n".join(lines))
    done = command("evaluate", run_folder, "--manifest", table, "--json", tmp_path / "r.json", "--allow-leaks")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["num_videos"], result["num_failed"]) == (3, 1)
    assert result["video_accuracy"] <= 2 / 3
    assert result["per_class"]["to_left"]["num_videos"] == 2
    assert "1 unreadable" in done.stdout
    assert (run_folder / "evaluate" / "test_held_out" / "result.json").is_file()  # beside the run's own, not over it


def test_predict_takes_files_and_folders(run_folder, video_folder, tmp_path):
    done = command(
        "predict",
        run_folder,
        video_folder / "to_left",
        video_folder / "to_right" / "01.mp4",
        "--json",
        tmp_path / "p.json",
    )
    assert done.returncode == 0, done.stderr
    predictions = json.loads((tmp_path / "p.json").read_text())
    assert [entry["path"] for entry in predictions] == [
        *(str(video_folder / "to_left" / f"{i:02d}.mp4") for i in range(8)),
        str(video_folder / "to_right" / "01.mp4"),
    ]
    for entry in predictions:
        probabilities = [actual["probability"] for actual in entry["top"]]
        assert {actual["class"] for actual in entry["top"]} == {"to_left", "to_right"}
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)


def test_predict_agrees_with_evaluate(run_folder, evaluated, tmp_path):
    with (run_folder / "evaluate" / "test" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    done = command("predict", run_folder, *(row["path"] for row in rows), "--json", tmp_path / "p.json")
    assert done.returncode == 0
    for row, entry in zip(rows, json.loads((tmp_path / "p.json").read_text()), strict=True):
        best = entry["top"][0]
        assert best["class"] == row["predicted"]
        assert best["probability"] == pytest.approx(float(row[f"p_{best['class']}"]), abs=1e-5)


def test_predict_reports_a_file_that_cannot_be_read_and_continues(run_folder, video_folder, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    good = video_folder / "to_left" / "00.mp4"
    done = command("predict", run_folder, tmp_path / "bad.mp4", good, "--json", tmp_path / "p.json")
    assert done.returncode == 1
    first, second = json.loads((tmp_path / "p.json").read_text())
    assert first == {"path": str(tmp_path / "bad.mp4"), "top": [], "error": "unreadable"}
    assert second["top"]


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["evaluate", "/nowhere"], ["/nowhere does not exist"]),
        (["evaluate", "RUN", "--split", "tset"], ["tset", "train, val, test"]),
        (["evaluate", "RUN", "--crops", "2"], ["num_crops (=2)"]),
        (["evaluate", "RUN", "--clips", "0"], ["num_clips (=0)"]),
        (["evaluate", "RUN", "--manifest", "/nowhere.csv"], ["/nowhere.csv does not exist"]),
        (["evaluate", "RUN", "--workers", "-1"], ["num_workers"]),
        (["predict", "RUN", "/nowhere.mp4"], ["/nowhere.mp4 does not exist"]),
        (["predict", "RUN", "RUN/checkpoints"], ["holds no video files"]),
        (["predict", "RUN/config.yaml", "RUN/config.yaml"], ["no readable checkpoint"]),
        (["evalute", "RUN"], ["evalute"]),
        ([], ["COMMAND"]),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(run_folder, arguments, messages):
    done = command(*(argument.replace("RUN", str(run_folder)) for argument in arguments))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert all(message in done.stderr for message in messages), done.stderr


def test_an_unknown_class_is_named(run_folder, video_folder, tmp_path):
    table = tmp_path / "other.csv"
    table.write_text(
        f"path,label,split\n{video_folder}/to_left/00.mp4,to_left,test\n{video_folder}/to_left/01.mp4,up,test\n"
    )
    done = command("evaluate", run_folder, "--manifest", table)
    assert done.returncode == 2
    assert "has classes that the model does not know: up; there is: to_left, to_right" in done.stderr


def test_training_videos_cannot_be_a_test_split(run_folder, tmp_path):
    trained_on = (run_folder / "manifest.csv").read_text().replace(",train,", ",test,")
    (tmp_path / "other.csv").write_text(trained_on)
    done = command("evaluate", run_folder, "--manifest", tmp_path / "other.csv")
    assert done.returncode == 2
    assert "belong to the run's own train or val" in done.stderr
    assert "--allow-leaks" in done.stderr


def test_an_output_file_is_checked_before_the_work(run_folder, video_folder, tmp_path):
    done = command("predict", run_folder, video_folder, "--json", tmp_path / "no" / "such" / "p.json")
    assert done.returncode == 2
    assert f"there is no folder {tmp_path / 'no' / 'such'}" in done.stderr
    assert not done.stdout


def test_an_empty_split_is_an_error_that_lists_the_others(run_folder, video_folder, tmp_path):
    table = tmp_path / "other.csv"
    rows = [f"{video_folder}/{label}/00.mp4,{label},train" for label in ("to_left", "to_right")]
    table.write_text("path,label,split\n" + "\n".join(rows))
    done = command("evaluate", run_folder, "--manifest", table)
    assert done.returncode == 2
    assert "splits with videos: train" in done.stderr


def test_a_data_set_that_was_moved_is_an_error(run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    text = (run / "manifest.csv").read_text()
    (run / "manifest.csv").write_text(text.replace("/squares/", "/gone/"))
    done = command("evaluate", run)
    assert done.returncode == 2
    assert "Moved? Go on with stvid evaluate" in done.stderr
