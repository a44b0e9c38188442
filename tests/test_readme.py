"""The commands and Python lines of the README and docs/ work, and what they name exists."""

import glob
import json
import os
import re
import shlex
import shutil

import pytest
import yaml
from conftest import ROOT, TINY, in_process, moving_square, train_py
from hydra.core.override_parser.overrides_parser import OverridesParser
from test_imports import ORDER

from stvid.cli import _parse, main
from stvid.data.synthetic.actions import CLASSES
from stvid.run.config import compose_config
from stvid.run.overrides import to_overrides
from stvid.video.writer import write_video

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
README = TEXTS["README.md"]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
FAST = (*TINY, "trainer.max_epochs=1")  # added to a command, so that it takes seconds


def commands(text):
    """The lines of all bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return [re.sub(r"\s+# .*", "", line) for block in blocks for line in block.strip().splitlines()]


def section(title):
    """The commands of one section of the README."""
    return commands(README.split(f"\n## {title}\n")[1].split("\n## ")[0])


def run_command(command, places, *more):
    """Runs `python train.py ...` or `stvid ...` in this process, with the README's placeholders replaced."""
    for name, path in places.items():
        command = re.sub(rf"\b{name}\b", str(path), command)
    program, *arguments = shlex.split(command)
    if program == "python":
        result = train_py(*arguments[1:], *more)
    else:
        arguments = [path for argument in arguments for path in glob.glob(argument) or [argument]]
        result = in_process(["stvid", *arguments], lambda: main([*arguments, *more]))
    assert result.returncode == 0, command + result.stdout + result.stderr
    return result


def test_every_command_of_the_readme_is_in_a_section_that_is_tested():
    titles = ("Start", "Your own videos", "Which recipe", "Change anything", "Use the model")
    tested = [line for title in titles for line in section(title)]
    assert commands(README) == [*tested, "pytest"]


def test_the_install_and_test_commands_are_those_of_ci():
    install = section("Start")[0].split(" && ")[2]
    ci = (ROOT / ".ci" / "run").read_text()
    assert install.removeprefix("pip install ") in ci
    assert "\npytest\n" in ci


TEST_ALL = bool(os.environ.get("STVID_TEST_ALL"))
LONG = pytest.mark.skipif(not TEST_ALL, reason="minutes more: with STVID_TEST_ALL=1")
SHORTER = [] if TEST_ALL else ["trainer.max_epochs=10"]  # of 16
JOBS = [pytest.param(section("Start")[1], id="conv3d"), pytest.param(section("Start")[2], id="cnn_lstm", marks=LONG)]


@pytest.fixture(scope="module")
def actions_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("actions")


@pytest.fixture(scope="module", params=JOBS)
def built_in_run(request, actions_folder, tmp_path_factory):
    """A run of a first training command, with fewer epochs and its own folders, and the evaluation after it."""
    run = tmp_path_factory.mktemp("readme") / "run"
    done = run_command(request.param, {}, f"hydra.run.dir={run}", f"data.root={actions_folder}", *SHORTER)
    for command in section("Start")[3:]:
        run_command(command, {"RUN": run, "data/actions": actions_folder})
    return run, done


@pytest.mark.slow
def test_the_built_in_data_set_is_learned_from_video_files(built_in_run):
    run, done = built_in_run
    assert json.loads((run / "result.json").read_text())["video_accuracy"] >= 0.95
    assert f"stvid evaluate {run}" in done.stdout


@pytest.mark.slow
def test_unseen_people_are_recognised_by_their_motion_alone(built_in_run):
    """Frozen or shuffled, a pair of mirrored actions shows the same pictures; reversed, each is the other."""
    result = json.loads((built_in_run[0] / "evaluate" / "test" / "result.json").read_text())
    assert result["video_accuracy"] >= 0.93
    assert result["audit"]["frozen"]["video_accuracy"] <= 0.60
    assert result["audit"]["shuffled"]["video_accuracy"] <= 0.60
    mirror = [CLASSES.index(name) for pair in zip(CLASSES[1::2], CLASSES[::2], strict=True) for name in pair]
    confusion = result["audit"]["reversed"]["confusion"]
    assert sum(confusion[truth][mirror[truth]] for truth in range(8)) / 200 >= 0.9
    assert result["still_classes"] == []


@pytest.fixture(scope="module")
def own_run(video_folder, tmp_path_factory):
    """A run of the commands for a newcomer's own videos: checked, trained, tested."""
    run = tmp_path_factory.mktemp("own") / "run"
    check, train, evaluate = section("Your own videos")
    places = {"DIR": video_folder, "RUN": run}
    run_command(check, places)
    run_command(train, places, *FAST, f"hydra.run.dir={run}")
    run_command(evaluate, places)
    return run


def test_own_videos_are_checked_trained_and_tested(own_run):
    assert json.loads((own_run / "evaluate" / "test" / "result.json").read_text())["num_videos"] > 0


def test_the_recipe_for_few_videos_and_its_cost_work(video_folder, tmp_path):
    train, cost = section("Which recipe")
    run_command(train, {"DIR": video_folder}, *FAST, f"hydra.run.dir={tmp_path / 'run'}")
    assert "parameters" in run_command(cost, {}).stdout


def test_changes_sweeps_resume_and_comparison_work(own_run, video_folder, tmp_path):
    show_help, train, sweep, resume, compare = section("Change anything")
    assert "optimizer" in run_command(show_help, {}).stdout
    data = ("data=folder", f"data.root={video_folder}", *FAST)
    run_command(train, {}, *data, f"hydra.run.dir={tmp_path / 'run'}")
    run_command(sweep, {}, *data, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    run_command(resume, {"RUN": own_run})
    second = shutil.copytree(own_run, tmp_path / "second")
    run_command(compare, {"RUN": own_run, "RUN2": second}, "--out", str(tmp_path / "comparison.html"))


def test_a_trained_model_is_used_and_exported(own_run, video_folder, tmp_path):
    predict, *services, export = section("Use the model")
    video = next(video_folder.rglob("*.mp4"))
    assert "start      end" in run_command(predict, {"RUN": own_run, "VIDEO.mp4": video}).stdout
    run_command(export, {"RUN": own_run}, "--out", str(tmp_path / "model.onnx"))
    assert (tmp_path / "model.onnx").exists()
    for command in services:  # they go on until they are stopped; here only their options are read
        program, *arguments = shlex.split(command)
        assert (program, _parse(arguments).command) == ("stvid", arguments[0])


def test_prepared_videos_train(video_folder, tmp_path):
    prepare, train, *tars = [line for line in commands(TEXTS["docs/data.md"]) if re.search("SMALL", line)]
    places = {"DIR": video_folder, "SMALL": tmp_path / "small"}
    run_command(prepare, places)
    run_command(train, places, *FAST, f"hydra.run.dir={tmp_path / 'run'}")
    pack, train_on_tars = tars
    run_command(pack, places)
    run_command(train_on_tars, places, *FAST, f"hydra.run.dir={tmp_path / 'run_on_tars'}")


def test_the_python_lines_work(video_folder, tmp_path, capsys):
    run, video = tmp_path / "run", tmp_path / "video.mp4"
    overrides = ("model=cnn_lstm", "data=folder", f"data.root={video_folder}", f"hydra.run.dir={run}")
    assert train_py(*overrides, *FAST).returncode == 0
    write_video(video, moving_square(to_right=True, seed=0, num_frames=16), fps=12)
    names = {}
    for page in ("README.md", "docs/models.md"):  # the second goes on with the names of the first
        lines = re.findall(r"```python\n(.*?)```", TEXTS[page], flags=re.DOTALL)[0]
        exec(lines.replace("RUN", str(run)).replace("VIDEO.mp4", str(video)), names)
        names["frame"] = names["stvid"].read_frames(str(video), [0])[0]
    assert names["probabilities"].shape == (2,)
    assert names["prediction"].label in ("to_left", "to_right")
    assert capsys.readouterr().out.startswith(names["prediction"].label)

    lines = re.findall(r"```python\n(.*?)```", TEXTS["docs/using.md"].split("\n## In Python\n")[1], flags=re.DOTALL)[0]
    exec(lines.replace("RUN", str(run)).replace("VIDEO.mp4", str(video)), names := {})
    assert names["segment"].end == names["window"].end == pytest.approx(16 / 12)
    assert names["probabilities"].shape == (2,)
    assert f" s: {names['segment'].label} (" in capsys.readouterr().out


def documented_commands():
    """Every distinct command of the pages and of the configs' comments."""
    actual = {line for text in TEXTS.values() for line in commands(text)}
    for path in CONFIGS:
        actual |= set(re.findall(r"^#.*?(python train\.py .*)", path.read_text(), flags=re.MULTILINE))
    return sorted(actual)


def first_values(overrides):
    """The overrides of one trial of a sweep, without those of Hydra itself."""
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.key_or_group.startswith("hydra"):
            continue
        if override.is_interval_sweep():
            yield f"{override.key_or_group}={override.value().start}"
        elif override.is_sweep_override():
            yield f"{override.key_or_group}={next(override.sweep_string_iterator())}"
        else:
            yield override.input_line


def overrides_of(command):
    program, *arguments = shlex.split(command)
    if "train.py" in arguments:
        return arguments[arguments.index("train.py") + 1 :]
    takes_overrides = program == "stvid" and arguments[0] in ("check", "cost", "prepare", "encode", "merge")
    return [argument for argument in arguments[1:] if "=" in argument] if takes_overrides else []


def test_every_documented_override_is_known():
    for command in documented_commands():
        overrides = to_overrides([text for text in overrides_of(command) if "=" in text and text[0] not in "-[."])
        compose_config(list(first_values(overrides)))


def test_every_documented_option_of_stvid_is_known():
    known = {}
    for text in TEXTS.values():
        for verb, rest in re.findall(r"\bstvid (\w+)((?: [^`#\n]*)?)", text):
            for option in re.findall(r"--[a-z-]+", rest):
                if verb not in known:
                    known[verb] = in_process([], lambda verb=verb: main([verb, "--help"])).stdout
                assert option in known[verb], f"stvid {verb} {option}"


def test_every_documented_key_is_in_the_configs():
    keys = {}
    for path in CONFIGS:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        keys.setdefault(path.parent.name, set()).update(content)
    groups = "|".join(group for group in keys if group not in ("configs", "experiment", "job_logging", "sweeper"))
    for page, text in TEXTS.items():
        for group, key in re.findall(rf"(?<![\w./+])({groups})\.([a-z_]+)\b(?![/(])", text):
            assert key in keys[group] or key in ("csv", "yaml", "md", "py"), f"{page}: {group}.{key}"


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_link_has_a_target():
    for page, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{page}: {target}"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 116


def tree(text):
    """Paths of a tree indented by two columns a level; several names of one folder are separated by commas."""
    folders = {}
    for line in re.findall(r"^    (.*)", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE):
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.match(r"\s*([^\s,]+(?:, [^\s,]+)*)", line)[1].split(", ")
        for name in names:
            yield os.path.join(*(folders[i] for i in range(depth)), name)
        folders[depth] = names[0]


@pytest.mark.parametrize("page", ["README.md", "docs/development.md"])
def test_the_tree_names_existing_files(page):
    paths = list(tree(TEXTS[page]))
    assert len(paths) >= 6
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_documented_import_order_is_the_tested_one():
    listed = re.search(r"before it in this list:\s(.*?)\.", TEXTS["docs/development.md"], flags=re.DOTALL)[1]
    assert re.split(r",\s+", listed) == ORDER
