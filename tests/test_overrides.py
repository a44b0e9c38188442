"""Words of a command line: paths are taken literally, a folder or a table alone is a data set."""

import re
import shlex

import pytest
from conftest import train_py
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from stvid.errors import InputError, train_command
from stvid.run.command_line import check_command_line
from stvid.run.config import compose_config
from stvid.run.config_help import config_files, own_entries
from stvid.run.overrides import NULLABLE, PATH_KEYS, TEXT_KEYS, quote, to_overrides

NAMES = [
    *("2024_05", "2024_01_15", "007", "1e5", "3.0", "0x10", "-5", "1:30", "inf", "nan", "true", "off", "null"),
    *("a,b", "it's", '"a', "'a'", '"a"', "[x]", "[x", "{a}", "{x", "x=y", "a b", " a", "a ", "(", "a)", "a#b", "a:b"),
    *(
        "$HOME",
        "${x}",
        "${oc.env:HOME}",
        "\\${x}",
        "a\\",
        "a\\\\",
        "a\\'b",
        "C:\\Users\\me",
        "50%",
        "a&b",
        "a;b",
        "a*b",
    ),
    *("~x", "a~", "@", "ü ö", "видео", "动作", "a\tb", "choice(a,b)", "range(1,3)", "glob(*)"),
]


def root_of(words):
    """What Hydra and OmegaConf read: the value of the last word, which is `data.root`."""
    override = OverridesParser.create().parse_override(words[-1])
    assert override.key_or_group == "data.root"
    assert not override.is_sweep_override()
    return OmegaConf.create({"data": {"root": override.value()}, "same": "${data.root}"}).same


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_folder_is_taken_literally(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    for path in (name, f"./{name}", str(tmp_path / name)):
        words = to_overrides([f"data.root={path}"])
        assert root_of(words) == path
        assert to_overrides(words) == words, "the processes of a run get these words once more"
    assert root_of(to_overrides([f"./{name}"])) == name, "without a key"
    assert root_of(to_overrides([str(tmp_path / name)])) == str(tmp_path / name)
    printed = train_command("data=folder", f"data.root={name}")
    assert root_of(to_overrides(shlex.split(printed)[2:])) == name, "when it is pasted"


@pytest.mark.parametrize("text", [*NAMES, "'", "\\'", "\\\\'", "a\\${b}'c\\"])
def test_a_quoted_text_is_read_as_the_very_same_text(text):
    assert root_of([f"data.root={quote(text)}"]) == text


def test_a_config_is_composed_with_such_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("2024_05", "it's ${x}, [a]"):
        (tmp_path / name).mkdir()
        config = compose_config(["data=folder", f"data.root={name}"], needs_data=True)
        assert OmegaConf.to_container(config.data.datamodule.manifest, resolve=True)["root"] == name


def test_a_name_of_three_question_marks_is_no_missing_value(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "???").mkdir()
    assert compose_config(["data=folder", "data.root=???"], needs_data=True).data.root == "./???"


def test_a_leading_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x y").mkdir()
    for words in (["data=folder", "data.root=~/x y"], ["~/x y"]):
        assert compose_config(words, needs_data=True).data.root == str(tmp_path / "x y")


def test_values_in_quotes_and_null_are_values_of_hydra():
    assert compose_config(["data=folder", "data.root='a,b'"]).data.root == "a,b"
    assert compose_config(["model.weights=null", "resume=null"]).model.weights is None
    assert to_overrides(["hydra.run.dir=outputs/${now:%Y}"]) == ["hydra.run.dir=outputs/${now:%Y}"]
    assert to_overrides(["~mixing", "+x=a,b", "optimizer.lr=1e-3,3e-3"]) == [
        "~mixing",
        "+x=a,b",
        "optimizer.lr=1e-3,3e-3",
    ]


def test_in_a_sweep_commas_separate_values_except_in_quotes_and_names_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    assert to_overrides(["-m", "data.root=2024_05,it/x"]) == ["-m", "data.root='2024_05',it/x"]
    assert to_overrides(["-m", "data.root='c,d'"]) == ["-m", "data.root='c,d'"]
    assert to_overrides(["-m", "data.root=a,b"]) == ["-m", "data.root='a,b'"]
    assert to_overrides(["-m", "data.root=choice(x,y)"]) == ["-m", "data.root=choice(x,y)"]


NO_TEXT = {  # their comments speak of files, but their values are numbers, switches or fixed words
    *("report", "find_lr", "data.probe", "data.probe_timeout", "data.allow_leaks", "data.features", "data.class_names"),
    *("model.freeze", "logger.offline", "logger.version", "data.both_sets", "data.max_bad", "data.balance", "trust"),
    *("data.val_fraction", "data.test_fraction", "allow_changes", "data.num_workers", "trainer.devices", "data.whole"),
}


def test_every_key_of_the_configs_that_holds_a_path_is_taken_literally():
    entries = [(key, *entry) for file in config_files() for key, entry in own_entries(file).items()]
    speaks = re.compile(r"\b(folders?|files?|tables?|paths?|FILE|DIR|RUN|a run|database|sqlite)\b")
    found = {key for key, _, comment in entries if speaks.search(comment)}
    assert found - NO_TEXT <= {*PATH_KEYS, *TEXT_KEYS}
    known = {key for key, _, _ in entries}
    assert {key for key in (*PATH_KEYS, *TEXT_KEYS) if not key.startswith("hydra.")} <= known
    null = {key for key, value, _ in entries if value == "null"}
    assert set(NULLABLE) == null & {*PATH_KEYS, *TEXT_KEYS}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resume="], "resume= has no value"),
        (["data=folder", "data.root="], "data.root= has no value"),
        (["data=folder", "data.root=''"], "data.root= has no value"),
        (["model="], "model= has no value"),
        (["trainer.devices="], "trainer.devices= has no value"),
        (["nowhere"], "'nowhere' is no override: an override is key=value; and there is no such folder"),
        (["{tmp}", "data.root=x"], "name one data set"),
        (["{tmp}", "{tmp}"], "name one data set"),
        (["{tmp}", "resume=x"], "name one data set"),
        (["data=loading"], "data=loading: there is no such choice; There is: actions"),
        (["model=null"], "model=null: there is no such choice"),
    ],
)
def test_wrong_words(words, message, tmp_path):
    with pytest.raises(InputError) as error:
        check_command_line([word.format(tmp=tmp_path) for word in words])
    assert message in str(error.value)


def test_all_wrong_overrides_are_told_at_once(tmp_path):
    words = ["model=cnn_lstn", "clip.siz=3", "data.root=", "data=foldr", "optimizer.lr=1,2", "seed=1"]
    with pytest.raises(InputError) as error:
        check_command_line(words)
    lines = str(error.value).splitlines()
    assert lines[0] == "5 mistakes:"
    for text in ("cnn_lstm", "clip.size", "data.root=", "'folder'", "optimizer.lr=1,2"):
        assert sum(text in line for line in lines) == 1, text
    values = ["trainer.max_epochs=0", "clip.num_frames=-1", "data=folder", f"data.root={tmp_path}/no", "augment.flip=2"]
    with pytest.raises(InputError) as error:
        check_command_line(values)
    assert len(str(error.value).splitlines()) == 5


def test_logger_null_is_no_logger():
    assert compose_config(["logger=null"]).logger is None


def test_train_py_takes_a_folder_with_a_strange_name(tmp_path, monkeypatch):
    """The data set is found, and is empty: Hydra's own reading of the words has not changed the name."""
    (tmp_path / "2024_05" / "it's").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "2024_05")
    done = train_py("it's", f"hydra.run.dir={tmp_path / 'r'}", "data.num_workers=0")
    assert done.returncode == 2, done.stderr
    assert "it's" in done.stderr
    assert "does not exist" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["sweep=random", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "model.dropout=interval(0,0.7)"],
        ["sweep=random", "clip.frame_stride=null", "clip.fps=interval(5,15)", "clip.num_frames=int(interval(4,8))"],
        ["model=glob(r3d*)", "model.weights=DEFAULT,null", "seed=range(1,4)"],
        ["data=ut_interaction", "data.root={tmp}", "data.fold=range(1,11)"],
    ],
    ids=" ".join,
)
def test_a_sweep_is_checked_with_one_value_of_each_key(words, tmp_path):
    for sequence in range(1, 11):
        for label in range(6):
            (tmp_path / f"1_{sequence}_{label}.avi").touch()
    check_command_line(["-m", *(word.format(tmp=tmp_path) for word in words)])
