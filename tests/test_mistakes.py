"""Mistakes are told before torch is imported; a closed output and Ctrl-C leave no traceback."""

from __future__ import annotations

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

from stvid.data.manifest import Item, Manifest
from stvid.deploy.display import check_display
from stvid.errors import InputError
from stvid.exits import stop_on_signals
from stvid.run.accelerator import GPU_FILES
from stvid.run.config import compose_config
from stvid.run.config_tree import to_plain
from stvid.run.folder import RunFolder
from stvid.run.start import save_run

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
    (["evaluate", "RUN", "--unknown", "/nowhere"], "--unknown /nowhere does not exist"),
    (["evaluate", "RUN", "--unknown", "TMP"], "--unknown: TMP holds no video files and no folders of images"),
    (["evaluate", "RUN", "--background", "x"], "--background x needs --unknown DIR"),
    (["report", "RUN"], "was not evaluated on val"),
    (["report", "RUN", "--out", "page.pdf"], "the page must end in .html"),
    (["report", "RUN", "--json", "x.json"], "only a comparison"),
    (["predict", "RUN", "/nowhere.mp4"], "/nowhere.mp4 does not exist"),
    (["predict", "RUN", "TMP"], "TMP holds no video files and no folders of images"),
    (["predict", "RUN", "VIDEO", "--top", "0"], "--top (=0)"),
    (["predict", "RUN", "TMP/*.mp4"], "matches nothing"),
    (["predict", "RUN", "VIDEO", "--threshold", "1.5"], "--threshold (=1.5) must be above 0 and at most 1"),
    (["predict", "RUN", "VIDEO", "--threshold", "nan"], "--threshold (=nan)"),
    (["predict", "RUN", "VIDEO", "--window", "0"], "--window (=0) must be above 0 seconds"),
    (["predict", "RUN", "VIDEO", "--hop", "inf"], "--hop (=inf) must be above 0 seconds"),
    (["predict", "RUN", "VIDEO", "--min-duration", "-1"], "--min-duration (=-1) must be 0 or more seconds"),
    (["predict", "RUN", "VIDEO", "--no-segments", "--srt", "x"], "--no-segments: --srt is about segments"),
    (["predict", "RUN", "VIDEO", "--resume"], "--resume continues the list in --json; name it: --json F"),
    (["predict", "RUN", "VIDEO", "--out", "VIDEO"], "would overwrite VIDEO, which is to be read"),
    (["predict", "RUN", "VIDEO", "--out", "CLASS/1.mp4"], "1.mp4 exists already, and videos are never replaced"),
    (["predict", "RUN", "VIDEO", "--csv", "VIDEO"], "would overwrite VIDEO, which is to be read"),
    (["predict", "RUN", "VIDEO", "--srt", ""], "--srt has no value"),
    (["predict", "RUN", "VIDEO", "--out", "x.gif"], "the video must end in .mp4"),
    (["predict", "RUN", "CLASS", "VIDEO", "--out", "x.mp4"], "there are 2 videos, so it must be a folder"),
    (["predict", "VIDEO", "RUN"], "the run comes first: stvid predict RUN VIDEO"),
    (["stream", "RUN", "/nowhere.mp4"], "/nowhere.mp4 does not exist"),
    (["stream", "RUN", "TMP"], "TMP is a folder without images; name one video, or a folder of its images"),
    (["stream", "RUN", "VIDEO", "VIDEO"], "does not know VIDEO; stvid stream --help shows what it takes"),
    (["stream", "RUN", "gopher://host/x"], "gopher is no stream"),
    (["stream", "RUN", "-"], "add --size WxH --fps F"),
    (["stream", "RUN", "0", "--threshold", "1.5"], "--threshold (=1.5) must be above 0"),
    (["stream", "RUN", "0", "--min-duration", "-1"], "--min-duration (=-1) must be 0 or more"),
    (["stream", "RUN", "0", "--duration", "0"], "--duration (=0) must be above 0"),
    (["stream", "RUN", "0", "--out", "x.avi"], "the recording must end in .mp4"),
    (["stream", "RUN", "0", "--out", "VIDEO"], "exists already; name another file"),
    (["stream", "RUN", "0", "--out", "/nowhere/x.mp4"], "there is no folder /nowhere"),
    (["stream", "VIDEO", "RUN"], "the run comes first: stvid stream RUN VIDEO"),
    (["export", "RUN", "--triton", "VIDEO"], "VIDEO is a file; name a folder"),
    (["export", "RUN", "--triton", "TMP", "--out", "x.onnx"], "cannot be combined with --out"),
    (["export", "RUN", "--triton", "TMP", "--format", "torch"], "cannot be combined with --format torch"),
    (["stream", "/nowhere", "0"], "/nowhere does not exist"),
    (["stream", "RUN", "0", "--jsonl"], "did you mean '--json'?"),
    (["serve", "/nowhere"], "/nowhere does not exist"),
    (["serve", "VIDEO", "--port", "0"], "is no readable checkpoint"),
    (["serve", "RUN", "--port", "65536"], "--port (=65536) must be from 0 to 65535"),
    (["serve", "RUN", "--host", "192.0.2.1"], "--host 192.0.2.1 --port 8000: this machine has no such address"),
    (["serve", "RUN", "--max-upload", "0"], "--max-upload (=0) must be at least 1"),
    (["serve", "RUN", "--max-batch", "-1"], "--max-batch (=-1) must be at least 1"),
    (["serve", "RUN", "--max-delay", "nan"], "--max-delay (=nan) must be from 0 to 1000 milliseconds"),
    (["serve", "RUN", "--root", "VIDEO"], "clip.mp4: there is no such folder"),
    (["serve", "RUN", "--token", "short"], "must be at least 8 letters"),
    (["serve", "RUN", "--token", "two words of it"], "must be at least 8 letters"),
    (["serve", "RUN", "--device", "gpu"], "--device gpu: name cpu, cuda, cuda:1, mps or xpu"),
    (["demo", "/nowhere"], "/nowhere does not exist"),
    (["demo", "RUN", "--port", "70000"], "--port (=70000) must be from 0 to 65535"),
    (["demo", "RUN", "--no-brwser"], "did you mean '--no-browser'?"),
    (["export", "/nowhere"], "/nowhere does not exist"),
    (["export", "RUNS"], "name one of the runs in it, such as RUN"),
    (["export", "RUN/config.yaml"], "is no readable checkpoint"),
    (["export", "RUN", "--format", "tflite"], "invalid choice: 'tflite'"),
    (["export", "RUN", "--out", "x.pt2"], "a file of --format onnx must end in .onnx"),
    (["export", "RUN", "--out", "/nowhere/x.onnx"], "there is no folder /nowhere"),
    (["export", "RUN", "--out", ""], "--out has no value; name a file"),
    (["export", "RUN", "--format", "torch", "--out", "MODEL"], "MODEL exists already; delete it, or name another file"),
    (["export", "RUN", "--formats", "torch"], "did you mean '--format'?"),
    (["export", "RUN", "--int8", "--format", "torch"], "so it cannot be combined with --format torch"),
    (["export", "RUN", "--int8", "--stream"], "so it cannot be combined with --stream"),
    (["export", "RUN", "--max-loss", "0.1"], "--max-loss 0.1 needs --int8"),
    (["export", "RUN", "--int8", "--max-loss", "nan"], "a loss of accuracy must be from 0 to 1"),
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
    (["augment.device=tpu"], "augment.device (=tpu) must be one of auto, cpu, gpu"),
    (["augment.device=gpu", "trainer=cpu"], "augment.device (=gpu): this run trains on a CPU"),
    (["augment.rand_magnitude=31"], "augment.rand_magnitude (=31) must be from 0 to 30"),
    (["data=loading"], "data=loading: there is no such choice"),
    (["optimizer.lr='"], "optimizer.lr"),
]


TABLES = {  # name -> text; the videos a.mp4 to d.mp4 exist
    "COLUMN.csv": "path,lable,split\na.mp4,run,train\n",
    "TWICE.csv": "path,label,split,label\na.mp4,run,train,x\n",
    "SPLIT.csv": "path,label,split\na.mp4,run,train\nb.mp4,sit,dev\nb.mp4,sit,tst\n",
    "CASE.csv": "path,label,split\na.mp4,run,train\nb.mp4,Run,val\n",
    "ABSENT.csv": "path,label,split\nx.mp4,run,train\ny.mp4,sit,train\ny.mp4,sit,val\n",
    "FINE.csv": "path,label,split\na.mp4,run,train\nb.mp4,sit,train\nc.mp4,run,val\nd.mp4,sit,val\n",
    "ONE.csv": "path,label\na.mp4,run\nb.mp4,sit\n",
}
WRONG_DATA = [  # for the commands that read a data set
    (["HIGH"], "HIGH holds only one folder with videos, set, so there would be one class"),
    (["data=folder", "data.root=HIGH"], "HIGH holds only one folder with videos, set"),
    (["data.root=HIGH"], "(data=actions, the default) is rendered only into a folder of its own"),
    (["data=ucf101", "data.root=HIGH"], "the official lists"),
    (["data=kth", "data.root=HIGH"], "HIGH"),
    (["COLUMN.csv"], "COLUMN.csv has the columns path, lable, split; missing: label"),
    (["TWICE.csv"], "two columns named label"),
    (["SPLIT.csv"], "SPLIT.csv, line 3: split is 'dev'"),
    (["SPLIT.csv"], "SPLIT.csv, line 4: split is 'tst'"),
    (["ONE.csv"], "too few for 3 splits"),
]
WRONG_TRAINING_DATA = [
    (["CASE.csv"], "1 class name(s) are written in several ways"),
    (["ABSENT.csv"], "none of the 3 videos exist, the first: TABLES/x.mp4"),
    (["data=folder", "data.root=HIGH/set"], "too few for 3 splits"),
    (["FINE.csv", "augment.flip_pairs=[[run,hop]]"], "names the class 'hop'; there is: run, sit"),
    (["FINE.csv", "augment.flip_pairs=[5]"], "augment.flip_pairs (=[5]) must be pairs"),
    (["trainer.accelerator=mps"], "trainer.accelerator (=mps): PyTorch finds no such device"),
    (["resume=MOVED"], "2 of the 2 videos that MOVED trains on do not exist, the first: GONE/a.mp4. Moved? Go on with"),
    (["resume=MOVED", "model=cnn_lstm"], "leave out model=cnn_lstm"),
    (["resume=MOVED", "data.root=HIGH"], "of the 3 videos of MOVED, 0 are below HIGH"),
]
OTHERS = [
    (["prepare", "FINE.csv", "--out", "TABLES/copies"], "is in TABLES, the folder of the videos"),
    (["prepare", "FINE.csv", "--out", "HIGH"], "HIGH contains other files, such as set. Name a new or an empty folder"),
    (["evaluate", "MOVED"], "none of the 1 videos of MOVED/manifest.csv exists, the first: GONE/c.mp4. Moved? Go on"),
    (["evaluate", "MOVED", "--data-root", "HIGH"], "of the 3 videos of MOVED, 0 are below HIGH"),
    (["evaluate", "MOVED", "--manifest", "COLUMN.csv"], "missing: label"),
    (["report", "MOVED", "--data-root", "/nowhere"], "--data-root /nowhere does not exist"),
]


def make_moved_run(folder, gone):
    """A run whose videos are in a folder that does not exist."""
    items = [Item(path=f"{gone}/{name}.mp4", label=label, split=split) for name, label, split in MOVED_ITEMS]
    config = to_plain(compose_config(["data=folder", f"data.root={gone}"])) | {"class_names": ["run", "sit"]}
    (folder / "checkpoints").mkdir(parents=True)
    save_run(RunFolder(folder), config, Manifest(items=tuple(items), class_names=("run", "sit")))
    with zipfile.ZipFile(folder / "checkpoints" / "best.ckpt", "w") as file:
        file.writestr("archive/data.pkl", b"")


MOVED_ITEMS = [("a", "run", "train"), ("b", "sit", "val"), ("c", "sit", "test")]


@pytest.mark.skipif(sys.platform == "darwin", reason="may have an accelerator mps")
def test_mistakes_in_data_are_told_before_torch_is_imported(tmp_path):
    for name in (
        *(f"tables/{n}.mp4" for n in "abcd"),
        *(f"high/set/{c}/{i}.mp4" for c in ("run", "sit") for i in range(2)),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    names = {name: str(tmp_path / name.lower()) for name in ("HIGH", "MOVED", "GONE", "TABLES")}
    for name, text in TABLES.items():
        names[name] = str(tmp_path / "tables" / name)
        (tmp_path / "tables" / name).write_text(text)
    make_moved_run(tmp_path / "moved", tmp_path / "gone")
    before = sorted(tmp_path.rglob("*"))
    programs = {("check",): 99, ("train",): 99, ("train.py",): 2, ("prepare", "--out", str(tmp_path / "out")): 2}
    cases = [([*program, *words], text) for program, most in programs.items() for words, text in WRONG_DATA[:most]]
    cases += [(["train", *words], text) for words, text in WRONG_TRAINING_DATA]
    if not any(map(glob.glob, GPU_FILES)) and not shutil.which("nvidia-modprobe"):
        cases.append((["train", "trainer=gpu"], "trainer.accelerator (=gpu): PyTorch finds no such device"))
    assert_mistakes(cases + OTHERS, names)
    assert sorted(tmp_path.rglob("*")) == before


def test_mistakes_are_told_before_torch_is_imported(tmp_path):
    run, video = tmp_path / "run", tmp_path / "clip.mp4"
    (run / "checkpoints" / "x").mkdir(parents=True)
    with zipfile.ZipFile(run / "checkpoints" / "best.ckpt", "w") as file:
        file.writestr("archive/data.pkl", b"")
    for path in (run / "config.yaml", video, tmp_path / "model.pt2"):
        path.write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "wave").mkdir()
    (tmp_path / "wave" / "1.mp4").touch()
    names = {"RUNS": str(tmp_path), "RUN": str(run), "VIDEO": str(video), "TMP": str(tmp_path / "empty")}
    names |= {"CLASS": str(tmp_path / "wave"), "MODEL": str(tmp_path / "model.pt2")}

    cases = MISTAKES + [
        ([program, *words], text) for program in ("train.py", "train") for words, text in TRAIN_MISTAKES
    ]
    assert_mistakes(cases, names)


def assert_mistakes(cases, names):
    """Each command ends with exit code 2 and its message, without torch; names are replaced by their paths."""

    def filled(text):
        for name, path in names.items():
            text = text.replace(name, path)
        return text

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


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_work_that_only_signals_end_is_told_to_stop(number):
    before = signal.getsignal(number)
    with stop_on_signals() as stopped:
        assert not stopped.is_set()
        signal.raise_signal(number)
        assert stopped.is_set()
    assert signal.getsignal(number) is before


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_a_second_ctrl_c_interrupts_and_an_ignored_one_stays_ignored():
    with stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals() as stopped:
            signal.raise_signal(signal.SIGINT)
            assert not stopped.is_set()
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_a_display_a_window_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(InputError, match="--show: (there is no display|this Python has no Tk)"):
        check_display()
