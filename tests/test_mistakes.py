"""Mistakes are told before torch is imported; a closed output and Ctrl-C leave no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

# torch cannot be imported here: a mistake that is found afterwards ends in another error
WITHOUT_TORCH = """
import contextlib, io, json, runpy, sys, traceback
sys.modules["torch"] = sys.modules["numpy"] = sys.modules["pytorch_lightning"] = None
from stvid.cli import main

results = []
for words in json.load(sys.stdin):
    out, error, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            if words[0] == "train.py":
                sys.argv = words
                runpy.run_path("train.py", run_name="__main__")
            else:
                main(words)
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
            code = 1
    results.append([code, error.getvalue()])
print(json.dumps(results))
"""
MISTAKES = [  # words, and what the message says
    *(
        (["train", word], message)
        for word, message in (
            ("optimizer=5", "optimizer=5: there is no such choice"),
            ("clip=true", "clip=true: there is no such choice"),
            ("hydra/launcher=5", "the choices of hydra/launcher are names"),
            ("data.datamodule=5", "data.datamodule (=5) must be a section"),
            ("data.datamodule.manifest=null", "data.datamodule.manifest (=null) must be a section"),
            ("data.datamodule.clip=5", "data.datamodule.clip (=5) must be a section"),
            ("model._target_=5", "model._target_ (=5) must be the dotted name of a class"),
            ("model._target_=null", "model._target_ (=null) must be the dotted name of a class"),
            ("trainer._target_=null", "trainer._target_ (=null) must be the dotted name of a class"),
            ("clip._target_=null", "clip._target_ (=null) must be the dotted name of a class"),
            (
                "optimizer.optimizer._target_=[a]",
                "optimizer.optimizer._target_ (=['a']) must be the dotted name of a class",
            ),
            ("~loss._target_", "loss._target_ is missing"),
            ("~data", "data is missing, and every run needs it"),
            ("~logger", "logger is missing, and every run needs it"),
            ("~trust", "trust is missing, and every run needs it"),
            ("~data.datamodule.manifest", "data.datamodule.manifest is missing"),
            ("hydra.run.dir=README.md", "README.md is a file, so there can be no such folder"),
            ("hydra.run.dir=README.md/x", "README.md is a file, so there can be no such folder"),
            ("trust=5", "trust (=5) must be a list"),
            ("data.max_pixels=inf", "data.max_pixels (=inf) must be"),
            ("trainer.max_epochs=nan", "trainer.max_epochs (=nan) must be a whole number"),
            ("trainer.num_nodes=1.5", "trainer.num_nodes (=1.5) must be a whole number"),
            ("optimizer.lr=inf", "optimizer.lr (=inf) must be a finite number"),
            ("save_every=[1]", "save_every (=[1]) must be a whole number"),
        )
    ),
    (["evalute", "RUN"], "stvid has no command evalute; did you mean 'evaluate'?"),
    (["evaluate", "RUN", "--calls", "3"], "--calls; did you mean '--clips'?"),
    (["evaluate", "/nowhere"], "/nowhere does not exist"),
    (["evaluate", "RUN/checkpoints"], "has no checkpoints/best.ckpt"),
    (["evaluate", "RUN/config.yaml"], "is no readable checkpoint"),
    (["evaluate", "RUN", "data.root=x"], "after a run there are no overrides"),
    (["evaluate", "RUN", "--split", "tset"], "--split tset: must be one of train, val, test"),
    (["evaluate", "RUN", "--clips", "0"], "num_clips (=0) must be at least 1"),
    (["evaluate", "RUN", "--clips", "many"], "invalid int value: 'many'"),
    (["evaluate", "RUN", "--crops", "2"], "num_crops (=2) must be 1"),
    (["evaluate", "RUN", "--workers", "-1"], "num_workers (=-1)"),
    (["evaluate", "RUN", "--processes", "0"], "--processes (=0) must be at least 1"),
    (["evaluate", "RUN", "--manifest", "/nowhere.csv"], "/nowhere.csv does not exist"),
    (["evaluate", "RUN", "--manifest", "TMP"], "is a folder; name a CSV table"),
    (["evaluate", "RUN", "--json", "TMP"], "that is a folder; name a file"),
    (["report", "RUN"], "was not evaluated on val"),
    (["report", "RUN", "--out", "page.pdf"], "the page must end in .html"),
    (["report", "RUN", "--json", "x.json"], "only a comparison"),
    (["predict", "RUN", "/nowhere.mp4"], "/nowhere.mp4 does not exist"),
    (["predict", "RUN", "VIDEO", "--top", "0"], "--top (=0)"),
    (["predict", "VIDEO", "RUN"], "the run comes first: stvid predict RUN VIDEO"),
    (["check", "/nowhere"], "there is no such folder"),
    (["check", "data=folder"], "data.root must be given"),
    (["check", "data=folder", "data.root=/nowhere"], "data.root /nowhere does not exist"),
    (["check", "data=folder", "data.root=VIDEO"], "is not a folder"),
    (["check", "VIDEO"], "is a video; name a CSV table, or a folder"),
    (["check", "CLASS"], "holds videos, but no class folders. If it is a class itself, name the folder above"),
    (["evaluate", "RUNS"], "name one of the runs in it, such as RUN"),
    (["check", "data=manifest", "data.path=TMP"], "is a folder; name the CSV table"),
    (["check", "TMP", "--jsno", "x"], "did you mean '--json'?"),
    (["prepare", "TMP", "--out", "o", "--gop", "0"], "gop (=0) must be between 1 and 1000"),
    (["cost", "--classes", "0"], "--classes (=0) must be at least 1"),
    (["cost", "--out", "x.png"], "only a comparison has a picture"),
    (["cost", "--compare", "--out", "x.bmp"], "the picture must end in .png"),
    (["cost", "model=conv4d"], "did you mean 'conv3d'?"),
]
TRAIN_MISTAKES = [
    (["nowhere"], "'nowhere' is no override"),
    (["trainer.max_epochs", "=", "3"], "'trainer.max_epochs', '3' are no overrides"),
    (["trainer.max_epochs", "=", "3"], "without spaces around ="),
    (["--epochs", "3"], "does not know --epochs: its settings are overrides"),
    (["VIDEO"], "is a video; name a CSV table"),
    (["data=folder", "data.root=CLASS"], "name the folder above"),
    (["data=folder", "data.root=/nowhere"], "data.root /nowhere does not exist"),
    (["data=folder", "data.root=TMP", "data.group_csv=/no.csv"], "data.group_csv /no.csv does not exist"),
    (["data=ucf101", "data.root=TMP", "data.splits=/no"], "data.splits /no does not exist"),
    (["model.weights=/no.pth"], "model.weights (=/no.pth): there is no such file"),
    (["model=cnn_lstn"], "did you mean 'cnn_lstm'?"),
    (["clip.num_frame=8"], "did you mean 'clip.num_frames'?"),
    (["+model.width=3"], "did you mean 'widths'?"),
    (["resume="], "resume= has no value"),
    (["resume=/nowhere"], "resume=/nowhere does not exist"),
    (["resume=TMP"], "this folder has no config.yaml"),
    (["-m", "resume=TMP"], "is no folder of a sweep"),
    (["trainer.max_epochs=-1"], "trainer.max_epochs (=-1) must be at least 1"),
    (["trainer.max_epochs=0"], "trainer.max_epochs (=0) must be at least 1"),
    (["trainer.max_epochs=null"], "trainer.max_epochs (=null) must be"),
    (["trainer.accelerator=quantum"], "must be one of auto, cpu, gpu"),
    (["optimizer.lr=fast"], "optimizer.lr (='fast') must be float"),
    (["data.balance=equal"], "data.balance (=equal) must be one of none, classes, loss"),
    (["clip.size=[1,2,3]"], "clip.size (=[1, 2, 3]) must be one number"),
    (["seed=0,1"], "several values need -m"),
    (["sweep=optuna"], "is for several runs"),
    (["-m", "model=conv3d,cnn_lstn"], "did you mean 'cnn_lstm'?"),
    (["-m", "clip.num_frames=0,4"], "clip.num_frames (=0) must be at least 1"),
    (["clip.size=???"], "clip.size must be given: clip.size=VALUE"),
    (["model=cnn_lstm", "model.hidden_size=???"], "model.hidden_size must be given"),
    (["experimnt=x"], "did you mean 'experiment'?"),
    (["augment.rand_magnitude=31"], "augment.rand_magnitude (=31) must be from 0 to 30"),
    (["data=loading"], "data=loading: there is no such choice"),
    (["optimizer.lr='"], "optimizer.lr"),
]


def test_mistakes_are_told_before_torch_is_imported(tmp_path):
    run, video = tmp_path / "run", tmp_path / "clip.mp4"
    (run / "checkpoints" / "x").mkdir(parents=True)
    with zipfile.ZipFile(run / "checkpoints" / "best.ckpt", "w") as file:
        file.writestr("archive/data.pkl", b"")
    for path in (run / "config.yaml", video):
        path.write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "wave").mkdir()
    (tmp_path / "wave" / "1.mp4").touch()
    names = {"RUNS": str(tmp_path), "RUN": str(run), "VIDEO": str(video), "TMP": str(tmp_path / "empty")}
    names["CLASS"] = str(tmp_path / "wave")

    def filled(text):
        for name, path in names.items():
            text = text.replace(name, path)
        return text

    cases = MISTAKES + [
        ([program, *words], text) for program in ("train.py", "train") for words, text in TRAIN_MISTAKES
    ]
    cases = [([filled(word) for word in words], filled(text)) for words, text in cases]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        cwd=ROOT,
        input=json.dumps([words for words, _ in cases]),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for (words, text), (code, error) in zip(cases, json.loads(done.stdout), strict=True):
        assert code == 2, (words, error)
        assert text in error, (words, error)
        assert "Traceback" not in error
        assert error.count("error: ") == 1, error


TORCH_AT_EXIT = """
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules))
from stvid.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("words", [["train", "clip.num_frame=8"], ["check", "/nowhere"]], ids=" ".join)
def test_torch_is_not_imported_when_the_program_ends(words):
    done = subprocess.run([sys.executable, "-c", TORCH_AT_EXIT, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n")


@pytest.mark.parametrize(
    "words",
    [["train.py", "--help"], ["-m", "stvid", "train", "--help"], ["-m", "stvid", "evaluate", "--help"]],
    ids=" ".join,
)
def test_a_reader_that_closes_the_output_leaves_no_traceback(words):
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does
    done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode in (0, 1)  # argparse itself ignores the error
    assert done.stderr == ""


LOGS = """
import logging, sys
from stvid.exits import ConsoleHandler, report_errors
logging.basicConfig(level=logging.INFO, handlers=[ConsoleHandler(sys.stdout)])
with report_errors():
    while True:
        logging.info("a line")
"""


def test_a_training_whose_output_is_closed_ends_without_a_traceback():
    with subprocess.Popen([sys.executable, "-c", LOGS], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"INFO:root:a line\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


BROKEN_ELSEWHERE = """
import io, sys
from stvid.exits import report_errors
sys.stdout = eval(sys.argv[1])
with report_errors():
    raise BrokenPipeError("a worker is gone")
"""


@pytest.mark.parametrize("stdout", ["sys.stdout", "io.StringIO()"])  # the latter as in a notebook
def test_another_broken_pipe_is_a_bug(stdout):
    done = subprocess.run([sys.executable, "-c", BROKEN_ELSEWHERE, stdout], capture_output=True, text=True)
    assert done.returncode == 1
    assert "BrokenPipeError: a worker is gone" in done.stderr


INTERRUPTED_IMPORT = """
import os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
if sys.argv[1] == "train.py":
    sys.argv = sys.argv[1:]
    runpy.run_path("train.py", run_name="__main__")
else:
    from stvid.cli import main
    main(sys.argv[1:])
"""


@pytest.mark.parametrize("words", [["train.py"], ["train"], ["cost"]], ids=" ".join)
def test_ctrl_c_during_the_imports_ends_with_one_line(words):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
