"""Comparison of evaluations on the same videos."""

import dataclasses
import itertools
import json
import math
import re
import shutil
from dataclasses import replace

import pytest

from stvid.cost.estimate import estimate
from stvid.errors import InputError
from stvid.evaluation.compare import compare_runs, comparison_text, find_disagreements
from stvid.evaluation.results import PredictionRow, read_evaluation, write_predictions
from stvid.evaluation.statistics import mcnemar
from stvid.run.checkpoint import load_checkpoint

CLASSES = ("kick", "punch")


def row(path, label, predicted, confidence=0.8, **more):
    """A prediction for one of two classes."""
    probabilities = tuple(confidence if name == predicted else 1 - confidence for name in CLASSES)
    right = int(label == predicted)
    return PredictionRow(
        path=path, label=label, predicted=predicted, views=1, views_right=right, probabilities=probabilities, **more
    )


def unreadable(path, label):
    return PredictionRow(path=path, label=label, failed="truncated")


def write_evaluation(run, predictions, *, split="test", classes=CLASSES, result=(), own=False):
    """Writes an evaluation as `stvid evaluate` does, or (`own`) as training does."""
    folder = run if own else run / "evaluate" / split
    folder.mkdir(parents=True)
    accuracy = sum(row.is_correct for row in predictions) / len(predictions)
    content = {
        "split": split,
        "class_names": list(classes),
        "num_videos": len(predictions),
        "num_groups": None,
        "num_seen": 0,
        "protocol": {"num_clips": 3, "num_crops": 1, "num_frames": 16, "frame_stride": 2, "size": [64, 64]},
        "video_accuracy": accuracy,
        "video_accuracy_ci95": [max(accuracy - 0.1, 0), min(accuracy + 0.1, 1)],
        "clip_accuracy": accuracy,
        "per_class": {name: {"precision": None, "recall": None, "f1": None, "num_videos": 0} for name in classes},
        **dict(result),
    }
    (folder / "result.json").write_text(json.dumps(content))
    write_predictions(folder / "predictions.csv", predictions, classes)
    return run


def many(pattern):
    """`.` for a video that is classified correctly, `x` for a wrong one."""
    return [row(f"/v/{i:03}.mp4", "kick", "kick" if c == "." else "punch") for i, c in enumerate(pattern)]


def read_all(*runs, split="test"):
    return [read_evaluation(run, split) for run in runs]


def test_videos_are_paired_and_counted(tmp_path):
    one = write_evaluation(tmp_path / "one", many("....xx....x"))
    two = write_evaluation(tmp_path / "two", many("..x.x.....x"))
    comparison = compare_runs(read_all(one, two))
    (test,) = comparison.tests
    assert (comparison.split, comparison.num_common, comparison.left_out) == ("test", 11, {"one": 0, "two": 0})
    assert (test.first, test.second, test.only_first, test.only_second) == ("one", "two", 1, 1)
    assert test.p == test.p_corrected == 1
    assert test.difference == 0
    assert [video.path for video in comparison.differing] == ["/v/002.mp4", "/v/005.mp4"]


def test_an_unreadable_video_counts_as_wrong(tmp_path):
    one = write_evaluation(tmp_path / "one", [unreadable("/v/a.mp4", "kick"), *many("..")])
    two = write_evaluation(tmp_path / "two", [row("/v/a.mp4", "kick", "kick", 0.9), *many("..")])
    comparison = compare_runs(read_all(one, two))
    assert (comparison.tests[0].only_first, comparison.tests[0].only_second) == (0, 1)
    assert comparison.differing[0].predictions[0] == (None, None)
    assert "(unreadable)" in comparison_text(comparison)


def test_parts_of_a_file_are_separate_videos(tmp_path):
    def parts(first, second):
        times = ((None, 2.0, first), (2.0, 4.5, second))
        return [row("/v/long.mp4", "kick", answer, start=start, end=end) for start, end, answer in times]

    runs = [
        write_evaluation(tmp_path / "one", parts("kick", "punch")),
        write_evaluation(tmp_path / "two", parts("kick", "kick")[::-1]),
    ]
    comparison = compare_runs(read_all(*runs))
    assert comparison.num_common == 2
    assert [(video.path, video.start, video.end) for video in comparison.differing] == [("/v/long.mp4", 2.0, 4.5)]
    assert "long.mp4, 2 s to 4.5 s" in comparison_text(comparison)


def test_videos_that_are_not_in_all_runs_under_the_same_label_are_left_out(tmp_path):
    one = write_evaluation(tmp_path / "one", [*many("..."), row("/v/extra.mp4", "kick", "punch")])
    relabelled = [row("/v/002.mp4", "punch", "punch")]
    two = write_evaluation(tmp_path / "two", [*many(".."), *relabelled])
    comparison = compare_runs(read_all(one, two))
    assert (comparison.num_common, comparison.left_out) == (2, {"one": 2, "two": 1})
    assert comparison.common_accuracy == {"one": 1.0, "two": 1.0}
    assert "on common" in comparison_text(comparison)
    assert "2 videos of one are not in all others" in comparison_text(comparison)


def test_disagreements_are_sorted_by_confidence(tmp_path):
    def run(name, *answers):
        videos = [row(f"/v/{i}.mp4", "kick", answer, sure) for i, (answer, sure) in enumerate(answers)]
        return write_evaluation(tmp_path / name, videos)

    one = run("one", ("kick", 0.6), ("kick", 0.99), ("punch", 0.7), ("kick", 0.99), ("punch", 0.9))
    two = run("two", ("punch", 0.9), ("punch", 0.6), ("kick", 0.8), ("punch", 0.95), ("punch", 0.9))
    disagreements = find_disagreements(read_all(one, two))
    assert [video.path for video in disagreements] == ["/v/3.mp4", "/v/1.mp4", "/v/2.mp4", "/v/0.mp4"]
    assert disagreements[0].label == "kick"
    assert disagreements[0].predictions == (("kick", 0.99), ("punch", 0.95))


def test_three_runs_are_tested_pair_by_pair_and_corrected(tmp_path):
    patterns = {"a": "." * 30, "b": "." * 24 + "x" * 6, "c": "x" * 12 + "." * 18}
    runs = [write_evaluation(tmp_path / name, many(pattern)) for name, pattern in patterns.items()]
    comparison = compare_runs(read_all(*runs))
    assert [(test.first, test.second) for test in comparison.tests] == list(itertools.combinations("abc", 2))
    assert [test.p for test in comparison.tests] == [mcnemar(6, 0), mcnemar(12, 0), mcnemar(12, 6)]
    by_hand = [2 * 2 / 2**6, 3 * 2 / 2**12, mcnemar(12, 6)]
    assert [test.p_corrected for test in comparison.tests] == pytest.approx(by_hand)
    text = comparison_text(comparison)
    assert "Holm" in text
    assert "corrected for 3 tests" in text


def test_names_are_the_shortest_unique_ends_of_the_paths(tmp_path):
    runs = [write_evaluation(tmp_path / folder, many("..")) for folder in ("lstm/seed1", "lstm/seed2", "conv/seed1")]
    assert [run.name for run in compare_runs(read_all(*runs)).evaluations] == ["lstm/seed1", "lstm/seed2", "conv/seed1"]
    assert [run.name for run in compare_runs(read_all(*runs[:2])).evaluations] == ["seed1", "seed2"]


def test_a_runs_own_result_is_its_evaluation_on_val(tmp_path):
    one = write_evaluation(tmp_path / "one", many(".."), split="val", own=True)
    two = write_evaluation(tmp_path / "two", many(".x"), split="val")
    assert read_evaluation(one, "val").folder == one
    assert read_evaluation(two, "val").folder == two / "evaluate" / "val"
    assert [run.name for run in compare_runs(read_all(one, two, split="val")).evaluations] == ["one", "two"]
    (one / "checkpoints").mkdir()
    (one / "checkpoints/best.ckpt").touch()
    with pytest.raises(InputError, match="stvid evaluate .*one --split test"):
        read_evaluation(one, "test")


def test_runs_that_cannot_be_compared_are_errors(tmp_path):
    one = write_evaluation(tmp_path / "one", many(".."))
    with pytest.raises(InputError, match="at least two"):
        compare_runs(read_all(one))
    with pytest.raises(InputError, match="named twice"):
        compare_runs(read_all(one, one))
    with pytest.raises(InputError, match="does not exist"):
        read_evaluation(tmp_path / "nowhere", "test")
    other = write_evaluation(tmp_path / "other", [row("/w/0.mp4", "kick", "kick")])
    with pytest.raises(InputError, match="no video is in all"):
        compare_runs(read_all(one, other))
    val = write_evaluation(tmp_path / "val", many(".."), split="val")
    with pytest.raises(InputError, match="same split"):
        compare_runs([read_evaluation(one, "test"), read_evaluation(val, "val")])
    classes = write_evaluation(tmp_path / "classes", many(".."), classes=("kick", "shove"))
    with pytest.raises(InputError, match=r"only in .*one/evaluate/test: punch; only in .*classes/evaluate/test: shove"):
        compare_runs(read_all(one, classes))


def test_the_order_of_the_classes_does_not_matter(tmp_path):
    one = write_evaluation(tmp_path / "one", many(".."))
    turned = [replace(row, probabilities=row.probabilities[::-1]) for row in many(".x")]
    two = write_evaluation(tmp_path / "two", turned, classes=CLASSES[::-1])
    assert compare_runs(read_all(one, two)).tests[0].only_first == 1


def test_different_protocols_are_reported(tmp_path):
    protocol = {"num_clips": 10, "num_crops": 3, "num_frames": 16, "fps": 8.0, "size": [64, 64]}
    one = write_evaluation(tmp_path / "one", many(".."))
    two = write_evaluation(tmp_path / "two", many(".."), result={"protocol": protocol})
    comparison = compare_runs(read_all(one, two))
    assert comparison.protocols == {
        "num_clips": [3, 10],
        "num_crops": [1, 3],
        "frame_stride": [2, None],
        "fps": [None, 8.0],
    }
    assert "different protocol, num_clips: one 3, two 10" in comparison_text(comparison)
    assert "different protocol, fps: one –, two 8" in comparison_text(comparison)


def test_whole_videos_have_all_their_frames(tmp_path):
    protocol = {"num_clips": 1, "num_crops": 1, "num_frames": None, "frame_stride": 2, "size": [64, 48]}
    one = write_evaluation(tmp_path / "one", many(".."))
    two = write_evaluation(tmp_path / "two", many(".x"), result={"protocol": protocol})
    text = comparison_text(compare_runs(read_all(one, two)))
    assert "different protocol, num_frames: one 16, two all" in text
    assert "different protocol, size: one 64 × 64, two 64 × 48" in text
    assert "None" not in text


def test_groups_give_a_warning_about_p(tmp_path):
    runs = [
        write_evaluation(tmp_path / name, many(".."), result={"num_groups": groups})
        for name, groups in (("a", 2), ("b", 2))
    ]
    assert "videos of one group are similar" in comparison_text(compare_runs(read_all(*runs)))


def test_speed_on_cached_features_is_marked(tmp_path):
    runs = read_all(*(write_evaluation(tmp_path / name, many("..")) for name in ("a", "b")))
    measured = {"training_seconds": 1.0, "clips_per_second": 9.0, "peak_memory_gib": {}, "device": "A CPU"}
    runs = [
        dataclasses.replace(run, training={**measured, "stored_features": stored})
        for run, stored in zip(runs, (True, False), strict=True)
    ]
    assert "clips/s without decoding, on cached features: a\n" in comparison_text(compare_runs(runs))


def test_a_result_of_an_older_version_is_an_error(tmp_path):
    run = write_evaluation(tmp_path / "one", many(".."))
    file = run / "evaluate" / "test" / "result.json"
    file.write_text(
        json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "num_seen"})
    )
    with pytest.raises(InputError, match=r"result.json is of an older version of stvid; stvid evaluate RUN writes"):
        read_evaluation(run, "test")


def test_a_comparison_is_json_as_plain_data(tmp_path):
    one, two = write_evaluation(tmp_path / "one", many("..x")), write_evaluation(tmp_path / "two", many(".xx"))
    comparison = json.loads(json.dumps(compare_runs(read_all(one, two)).to_dict()))
    assert [run["name"] for run in comparison["runs"]] == ["one", "two"]
    assert comparison["runs"][0]["result"]["video_accuracy"] == 2 / 3
    assert comparison["tests"][0]["only_first"] == 1
    assert comparison["differing"][0]["answers"] == [["kick", 0.8], ["punch", 0.8]]


def test_the_text_fits_a_terminal(tmp_path):
    one = write_evaluation(tmp_path / "one", many("." * 30 + "x" * 10))
    two = write_evaluation(tmp_path / "two", many("x" * 20 + "." * 20))
    text = comparison_text(compare_runs(read_all(one, two)))
    assert max(map(len, text.splitlines())) <= 120
    assert "30 videos are classified correctly by some models and wrongly by others; the 10 most confident" in text
    assert text.count(".mp4") == 10
    assert re.search(r"^one  two  ", text, re.MULTILINE)


def test_cost_and_training_come_from_the_run(run_folder, tmp_path):
    run = tmp_path / "first"
    shutil.copytree(run_folder, run)
    shutil.rmtree(run / "evaluate", ignore_errors=True)
    write_evaluation(run, many("..x"))
    evaluation = read_evaluation(run, "test")
    trained = load_checkpoint(run)
    report = estimate(trained.model, (3, 4, 32, 32))
    assert evaluation.cost["parameters"] == sum(p.numel() for p in trained.model.parameters())
    assert evaluation.cost["flops_clip"] == report.flops_forward
    assert evaluation.cost["flops_video"] == 3 * report.flops_forward
    assert evaluation.cost["answer_bytes"] >= report.model_bytes
    assert evaluation.cost["training_bytes"] > evaluation.cost["answer_bytes"]
    assert evaluation.cost["batch_size"] == 4
    result = json.loads((run / "result.json").read_text())
    assert (evaluation.cost["device"], evaluation.cost["precision"]) == (result["device"], result["precision"])
    assert result["device"] == "cpu"
    assert evaluation.training["training_seconds"] == result["training_seconds"]
    assert evaluation.training["clips_per_second"] == result["clips_per_second"]
    assert not evaluation.training["stored_features"]
    assert evaluation.training["device"] == result["hardware"]["cpu"]
    bare = write_evaluation(tmp_path / "bare", many(".xx"))
    text = comparison_text(
        compare_runs([read_evaluation(run / "checkpoints/best.ckpt", "test"), read_evaluation(bare, "test")])
    )
    row = next(line for line in text.splitlines() if line.startswith("first"))
    assert math.isclose(float(row.split()[6]), evaluation.cost["parameters"] / 1000, rel_tol=0.01)
    gflops, mebibytes = (float(cell) for cell in row.split()[8:10])
    assert math.isclose(gflops, evaluation.cost["flops_video"] / 1e9, rel_tol=0.01)
    assert math.isclose(mebibytes, evaluation.cost["answer_bytes"] / 2**20, rel_tol=0.01)
    assert row.endswith(" s")
