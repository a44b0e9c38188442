"""Hidden characters never reach a terminal, a log or a page, and tables fit the terminal."""

import logging
import re
import unicodedata
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from rich.cells import cell_len
from test_compare import read_all, write_evaluation
from test_report import Page, make_evaluation, make_report, make_result, written

from stvid.commands import predict
from stvid.commands.check import check_text
from stvid.errors import UNREADABLE, InputError, VideoError, listing
from stvid.evaluation.compare import compare_runs, comparison_text
from stvid.evaluation.results import PredictionRow, read_predictions, write_predictions
from stvid.evaluation.text import result_text, summary_sentence
from stvid.exits import report_errors
from stvid.progress import Bar
from stvid.sweep.trials import Trial, leaderboard_text
from stvid.terminal import LogFormatter, aligned, clock, show, visible, visible_lines
from stvid.training.callbacks.progress import format_row, header_lines

HIDDEN = {
    "\x1b": "\\x1b",  # escape sequences: colours, cursor, title of the window
    "\x07": "\\x07",
    "\b": "\\x08",
    "\r": "\\r",
    "\n": "\\n",
    "\t": "\\t",
    "\0": "\\x00",
    "\x7f": "\\x7f",
    "\x85": "\\x85",
    "\x9b": "\\x9b",  # the same as ESC [ for some terminals
    "\xad": "\\xad",
    "\u061c": "\\u061c",
    "\u200b": "\\u200b",
    "\u200c": "\\u200c",
    "\u200d": "\\u200d",
    "\u200e": "\\u200e",
    "\u200f": "\\u200f",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
    "\u202a": "\\u202a",
    "\u202e": "\\u202e",
    "\u2060": "\\u2060",
    "\u2066": "\\u2066",
    "\u2069": "\\u2069",
    "\u3164": "\\u3164",
    "\ue000": "\\ue000",
    "\ufeff": "\\ufeff",
    "\udcff": "\\udcff",
    "\U000e0041": "\\U000e0041",
}
PLAIN = (
    "القفز",
    "می\u200cخواهم",
    "क्\u200dष",
    "跳跃",
    "ジャンプ",
    "e\u0301",
    "👍🏽",
    "👩\u200d👩\u200d👧",
    "❤\ufe0f\u200d🔥",
    "ไทย",
    "a b\u00a0c",
    "[bold]x[/]",
)
BAD = "a\x1b[31m\r\n\u202eb\u200b[bold]x[/]"  # as a name
BAD_VISIBLE = "a\\x1b[31m\\r\\n\\u202eb\\u200b[bold]x[/]"


def is_clean(text):
    """No hidden character besides line breaks, by categories of Unicode."""
    return not [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")]


@pytest.mark.parametrize("character", HIDDEN, ids=HIDDEN.values())
def test_hidden_characters_are_escaped(character):
    assert visible(f"a{character}b") == f"a{HIDDEN[character]}b"
    assert visible(character) == HIDDEN[character]
    assert visible_lines(f"a{character}b") == (f"a{character}b" if character in "\n\t" else f"a{HIDDEN[character]}b")


@pytest.mark.parametrize("text", PLAIN)
def test_letters_of_all_scripts_and_emoji_stay(text):
    assert visible(text) == text


def logged(message, *args):
    settings = yaml.safe_load((ROOT / "configs/hydra/job_logging/stvid.yaml").read_text(encoding="utf-8"))
    assert all(formatter["class"] == "stvid.terminal.LogFormatter" for formatter in settings["formatters"].values())
    record = logging.LogRecord("stvid", logging.INFO, __file__, 1, message, args, None)
    return LogFormatter("%(levelname)s %(message)s").format(record)


def test_a_name_in_a_log_line_stays_in_its_line():
    assert logged("left out (%s), %.3f, %d: %s", BAD, 0.5, 3, Path("x\ny")) == (
        f"INFO left out ({BAD_VISIBLE}), 0.500, 3: x\\ny"
    )
    assert logged("%s", VideoError("a\x1b.mp4", UNREADABLE, "x\ny")) == "INFO a\\x1b.mp4: unreadable (x\\ny)"
    assert logged("\nfirst\nsecond \x1b") == "INFO \nfirst\nsecond \\x1b"


@pytest.mark.parametrize(
    "error",
    [
        InputError(f"{BAD} does not exist"),
        InputError(f"no videos of: {listing([BAD, BAD])}"),
        InputError(str(VideoError(BAD, UNREADABLE, BAD))),
        PermissionError(13, "Permission denied", BAD),
    ],
)
def test_an_error_has_no_control_characters_and_cannot_forge_a_line(error, capsys):
    with pytest.raises(SystemExit), report_errors():
        raise error
    text = capsys.readouterr().err
    assert is_clean(text)
    assert "\\x1b[31m" in text
    assert all(line.startswith("  ") for line in text.splitlines()[1:])


def hostile_result(classes=(BAD, "c\x1b]0;title\x07")):
    rows = [
        PredictionRow(path=BAD, label=name, predicted=classes[0], views=1, probabilities=(0.6, 0.4)) for name in classes
    ]
    return make_result(rows, classes)


def hostile_comparison(folder):
    rows = [
        [
            PredictionRow(
                path=f"/d/{BAD}{i}", label=BAD, predicted=name, views=1, views_right=right, probabilities=pair
            )
            for i in "ab"
        ]
        for name, right, pair in ((BAD, 1, (0.6, 0.4)), ("other", 0, (0.4, 0.6)))
    ]
    runs = [write_evaluation(folder / f"run\x1b{i}", row, classes=(BAD, "other")) for i, row in enumerate(rows)]
    return comparison_text(compare_runs(read_all(*runs)))


def hostile_check():
    video = {"path": f"/d/{BAD}", "reason": UNREADABLE, "detail": BAD}
    leaks = [{"kind": k, "name": BAD, "splits": ["train"], "num_files": 1, "paths": [BAD]} for k in ("file", "group")]
    return check_text(
        {
            "num_files": 1, "num_items": 1, "num_bad": 1, "bad": [video],
            "files": [{"path": f"/d\x1b/{BAD}", "ok": False}],
            "duplicates": [[BAD, BAD]], "leaks": leaks,
            "conflicts": [{"labels": [BAD, BAD], "paths": [BAD], "start": None, "end": None}],
            "class_counts": {BAD: {"train": 9, "val": 0, "test": 1}, "\x1bb": {"train": 1, "val": 0, "test": 1}},
            "clip": {"num_frames": 4, "frame_stride": 1, "fps": None, "short": "wrap"},
            "odd": {
                "sizes": {}, "fps": {}, "median_duration": 1, "durations": [{"path": BAD, "duration": 9}],
                "damaged": [{"path": BAD, "num_damaged": 1, "num_frames": 2}],
                "short": [{"path": BAD, "start": None, "end": None, "num_frames": 1, "span": 4}],
            },
            "shortcuts": [], "similar_classes": [[BAD, BAD]],
            "groups": {
                "num_unnamed": 1, "folders": None, "pictures": {"num_compared": 0, "num_linked": 0},
                "names": {
                    "pattern": "x", "num_groups": 1, "num_leaks": 1, "example": [BAD, BAD], "checked": 0, "confirmed": 0
                },
            },
        }
    )  # fmt: skip


def hostile_predictions():
    segments = [{"start": 0.0, "end": 1.0, "class": BAD, "probability": 0.5}]
    entries = [
        {"path": BAD, "top": [{"class": BAD, "probability": 0.5}], "segments": segments},
        {"path": BAD, "top": [], "error": f"unreadable ({BAD})"},
    ]
    return "\n".join(map(predict.entry_text, entries))


@pytest.mark.parametrize("command", ["evaluate", "report", "check", "predict", "sweep", "prepare"])
def test_what_a_command_prints_has_no_control_characters(command, tmp_path, capsys):
    texts = {
        "evaluate": lambda: f"{result_text(hostile_result())}\n{summary_sentence(hostile_result())}",
        "report": lambda: hostile_comparison(tmp_path),
        "check": hostile_check,
        "predict": hostile_predictions,
        "sweep": lambda: leaderboard_text([Trial(number=0, values={BAD: BAD}, status=f"failed: x{BAD}")]),
        "prepare": lambda: f"written to {BAD}",
    }
    show(texts[command]())
    printed = capsys.readouterr().out
    assert is_clean(printed)
    assert "\\x1b" in printed
    if command != "prepare":
        assert "\nb" not in printed
        assert "[bold]" in printed
    if command == "sweep":
        assert "[/]" in printed


def test_a_bar_shows_names_as_they_are_without_markup():
    bar = Bar("x\x1b[bold]y[/]", total=2, unit="videos", shown=False)
    assert bar.bar.tasks[0].description == "x\\x1b[bold]y[/]"
    bar.advance(note="n\rn")
    assert bar.bar.tasks[0].fields["note"] == "n\\rn"


def test_names_in_files_are_exact(tmp_path):
    row = PredictionRow(path=BAD, group=BAD, label=BAD, predicted=BAD, views=1, probabilities=(1.0,))
    write_predictions(tmp_path / "p.csv", [row], [BAD])
    assert read_predictions(tmp_path / "p.csv", [BAD]) == [row]


def test_a_page_shows_hidden_characters(tmp_path):
    names = (BAD, "b\u2067", "c")
    text = written(make_report(names, name=f"run{BAD}", config="a: 1\nb: \x1b"), tmp_path)
    assert is_clean(text)
    assert "a: 1\nb: \\x1b" in text
    page = Page(text)
    assert page.data["classes"] == [BAD_VISIBLE, "b\\u2067", "c"]
    assert BAD_VISIBLE in page.text


def test_columns_of_a_table_are_cut_and_dropped_to_fit(monkeypatch):
    rows = [
        ("run", "accuracy", "less", "least"),
        ("a/long/name/" * 9 + "5", "0.123", "1.5", "7.25"),
        ("跳" * 30, "1", "2", "3"),
    ]
    for columns in (120, 80, 40, 30):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = aligned(rows, left=1, drop=("least", "less")).splitlines()
        assert max(map(cell_len, lines)) <= columns
        assert "name/5" in lines[1]
        assert "0.123" in lines[1]
        assert ("7.25" in lines[1]) == (columns >= 40), "not enough space at 30 only"
    assert lines[-1] == "(no space for: least)"
    assert cell_len(lines[1].partition("0.123")[0]) == cell_len(lines[2].rpartition("    1")[0])


@pytest.mark.parametrize("columns", [80, 110])
def test_printed_tables_fit_the_terminal(columns, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", str(columns))
    names = ("a very long name of a class " * 3, "second")
    header = ("layer", "type", "output", "parameters", "activations", "multiply-adds")
    layer = ("encoder.layer1.0.conv1", "Conv2d", "16 x 64 x 112 x 112", "1.23 M", "1.00 GiB", "1.00 G")
    epoch = {"epoch": 100, "train_loss": "10.123", "clips_per_second": "1234.5", "memory_gib": "12.5"}
    metrics = dict.fromkeys(("video_accuracy", "clip_accuracy", "mean_class_accuracy", "loss"), 0.5)
    values = {"optimizer.lr": 1e-3, "model": "cnn_lstm", "clip.num_frames": 16}
    runs = [
        make_evaluation(f"outputs/2026-11-28_19-14-11_{name}", seed)(tmp_path)
        for seed, name in enumerate(("conv3d", "cnn_lstm", "x"))
    ]
    texts = [
        result_text(hostile_result(names)),
        comparison_text(compare_runs(runs)),
        aligned([header, layer], left=3),
        "\n".join([*header_lines(), format_row(epoch, 100)]),
        leaderboard_text([Trial(number=0, values=values, status="done", metrics=metrics)]),
    ]  # fmt: skip
    for text in texts:
        tables = [line for line in text.splitlines() if re.search(r"\S  +\S", line)]
        assert max(map(cell_len, tables)) <= columns, text


def test_times_have_hours_only_if_there_are_any():
    assert [clock(t, digits=2) for t in (0, 61.239, 3723.456, -0.5)] == ["0:00.00", "1:01.24", "1:02:03.46", "-0:00.50"]
    assert [clock(t, digits=1) for t in (3.14, 59.96, 3600)] == ["0:03.1", "1:00.0", "1:00:00.0"]
