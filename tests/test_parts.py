"""A command in parts: each part is killed once and started again, and the merge gives what one process gives."""

import dataclasses
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import h5py
import pytest
from conftest import ROOT, break_half_way, in_process, make_folder, train_py
from test_feature_encoding import FROZEN
from test_shard_reader import set_byte

from stvid.cli import main
from stvid.commands import predict
from stvid.commands.ray_engine import run_parts as run_parts_on_ray
from stvid.data.layouts.shards import shards
from stvid.data.parts import Part, Parts, Setting, parse_part
from stvid.errors import InputError
from stvid.progress import Bar
from stvid.video.probe import probe_all
from stvid.video.probe_cache import ProbeCache
from stvid.video.shard_index import find_member
from stvid.video.types import VideoInfo, file_identity

N = 7
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")


def command(*arguments):
    return in_process(["stvid", *map(str, arguments)], lambda: main(list(map(str, arguments))))


def killed_in_the_middle(*arguments):
    """Runs a command in a process that kills itself after its first video."""
    child = os.fork()
    if child == 0:
        Bar.advance = lambda *words, **options: os.kill(os.getpid(), signal.SIGKILL)
        command(*arguments)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def run_parts(*words, count=N, kill=True):
    for number in range(1, count + 1):
        part = [*words, "--shard", f"{number}/{count}"]
        if kill:
            killed_in_the_middle(*part)
        done = command(*part)
        assert done.returncode == 0, done.stdout + done.stderr
    return command("merge", *words)


def compared(folder):
    """The files of a folder without the measured speeds."""
    content = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    text = content[Path("prepare.json")].decode()
    content[Path("prepare.json")] = re.sub(r'("clips_per_second_\w+"): [\d.]+', r"\1", text)
    return content


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """16 videos, one of which is broken half way, and one from its beginning."""
    root = make_folder(tmp_path_factory.mktemp("parts") / "squares")
    break_half_way(root / "to_right" / "03.mp4")
    (root / "to_left" / "05.mp4").write_bytes(b"nothing")
    return root


def data(videos):
    return ("data=folder", f"data.root={videos}", "clip.num_frames=4", "data.num_workers=1")


def test_the_parts_have_every_file_once():
    paths = [f"{i}.mp4" for i in range(23)] * 2
    parts = [Part(number, N).of(paths) for number in range(1, N + 1)]
    assert sorted(path for part in parts for path in part) == sorted(set(paths))
    assert parts[2] == sorted(set(paths))[2::N]
    assert Part(3, 5).of(["a"]) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0/7", "the part (=0) must be from 1 to 7"),
        ("8/7", "the part (=8) must be from 1 to 7"),
        ("1/0", "the number of parts (=0) must be from 1"),
        ("x", "must be I/N, such as 3/7"),
        ("-1/7", "must be I/N, such as 3/7"),
    ],
)
def test_a_part_that_does_not_exist_is_told(videos, value, message):
    with pytest.raises(InputError, match=re.escape(message)):
        parse_part(value)
    done = command("check", "no_such_folder", "--json", "c.json", f"--shard={value}")
    assert done.returncode == 2
    assert f"argument --shard: {value}: " in done.stderr
    assert message in done.stderr
    assert "no_such_folder" not in done.stderr, "no data set is looked at"


@needs_fork
def test_check_in_parts(videos, tmp_path):
    one = command("check", *data(videos), "--json", tmp_path / "one.json")
    (videos / ".stvid_probe.jsonl").unlink()
    merged = run_parts("check", *data(videos), "--json", tmp_path / "merged.json")
    assert (merged.returncode, merged.stdout) == (one.returncode, one.stdout)
    assert merged.returncode == 1
    assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert not list(tmp_path.glob("*.parts"))
    assert (videos / ".stvid_probe.jsonl").is_file()


def test_parts_of_check_replace_counted_packets(videos, tmp_path, monkeypatch):
    """The cache of each part starts with what data.probe=count has measured of the files of all parts."""
    root = shutil.copytree(videos, tmp_path / "squares")
    paths, cache = sorted(map(str, root.rglob("*.mp4"))), root / ".stvid_probe.jsonl"
    cache.unlink(missing_ok=True)
    good = [i for i in probe_all(paths, num_workers=0, cache=cache, decode_all=False) if isinstance(i, VideoInfo)]
    assert not any(info.decoded for info in good)
    words = ("check", *data(root), "--json", tmp_path / "c.json")
    for number in range(1, 4):
        assert command(*words, "--shard", f"{number}/3").returncode == 0
    decoded = []
    monkeypatch.setattr("stvid.video.probe.map_files", lambda function, paths, **more: record(decoded, paths))
    merged = command("merge", *words)
    assert (merged.returncode, merged.stderr) == (1, "")
    assert not decoded, "the merge decodes nothing"
    known = [ProbeCache(cache).get(path, file_identity(path)) for path in paths]
    assert sum(info is not None and info.decoded for info in known) == len(paths) - 2


def record(seen, paths):
    seen.extend(paths)
    yield from ()


def test_a_part_of_check_compares_the_checksums_of_its_tars(shard_folder, tmp_path, monkeypatch):
    item = shards(root=str(shard_folder)).items[0]
    member = find_member(item.path)
    set_byte(shard_folder / member.shard.name, member.offset + member.num_bytes // 2)
    words = ("check", "data=shards", f"data.root={shard_folder}", "clip.num_frames=4", "data.num_workers=1")
    one = command(*words, "--json", tmp_path / "one.json")
    words = (*words, "--json", tmp_path / "merged.json")
    for number in range(1, 4):
        assert command(*words, "--shard", f"{number}/3").returncode == 0
    compared = []
    monkeypatch.setattr("stvid.data.check.find_damage", compared.append)
    merged = command("merge", *words)
    assert (merged.returncode, merged.stdout) == (one.returncode, one.stdout)
    assert merged.returncode == 1
    assert "another checksum than in its index" in (tmp_path / "merged.json").read_text()
    assert not compared, "the merge repeats no comparison"


@needs_fork
def test_prepare_in_parts(videos, tmp_path):
    words = ("prepare", *data(videos), "--short-side", "32")
    one = command(*words, "--out", tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "one")
    merged = run_parts(*words, "--out", tmp_path / "out")
    assert merged.returncode == one.returncode == 1, merged.stderr
    assert compared(tmp_path / "out") == compared(tmp_path / "one")
    assert "16 (14 made, 0 kept, 2 bad)" in one.stdout
    assert "16 (14 made, 0 kept, 2 bad)" in merged.stdout


@needs_fork
def test_predict_in_parts(run_folder, videos, tmp_path):
    words = ("predict", run_folder, videos, "--workers", "0")
    one = command(*words, "--json", tmp_path / "one.json", "--csv", tmp_path / "one.csv", "--srt", tmp_path / "one")
    merged = run_parts(*words, "--json", tmp_path / "p.json", "--csv", tmp_path / "p.csv", "--srt", tmp_path / "two")
    assert merged.returncode == one.returncode == 1, merged.stderr
    assert (tmp_path / "p.csv").read_text() == (tmp_path / "one.csv").read_text()
    assert json.loads((tmp_path / "p.json").read_text()) == json.loads((tmp_path / "one.json").read_text())
    for file in (tmp_path / "one").rglob("*.srt"):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()
    assert set(merged.stdout.splitlines()) <= set(one.stdout.splitlines())


def test_short_videos_in_parts_have_the_same_classes(run_folder, videos, tmp_path):
    words = ("predict", run_folder, videos, "--workers", "0", "--no-segments")
    command(*words, "--json", tmp_path / "one.json")
    run_parts(*words, "--json", tmp_path / "p.json", count=3, kill=False)
    one, merged = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "p.json"))
    assert [entry["path"] for entry in merged] == [entry["path"] for entry in one]
    for entry, wanted in zip(merged, one, strict=True):
        probabilities = [[top["probability"] for top in each["top"]] for each in (entry, wanted)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-6)
        assert [top["class"] for top in entry["top"]] == [top["class"] for top in wanted["top"]]


@needs_fork
def test_encode_in_parts(videos, tmp_path):
    words = ("encode", "data=folder", f"data.root={videos}", *FROZEN, "data.max_bad=1")
    encoded = command(*words)
    assert encoded.returncode == 0, encoded.stderr
    folder = videos / ".stvid_features"
    names = sorted(path.name for path in folder.glob("*.h5"))
    folder.rename(tmp_path / "one")
    merged = run_parts(*words)
    assert merged.returncode == 0, merged.stderr
    assert sorted(path.name for path in folder.glob("*.h5")) == names
    for name in names:
        with h5py.File(tmp_path / "one" / name) as one, h5py.File(folder / name) as both:
            assert set(one) == set(both)
            assert all((one[key][:] == both[key][:]).all() for key in one)
    files = {path: path.stat().st_ino for path in folder.glob("*.h5")}
    trained = train_py(*words[1:], "report=false", f"hydra.run.dir={tmp_path / 'run'}")
    assert trained.returncode == 0, trained.stderr
    assert {path: path.stat().st_ino for path in folder.glob("*.h5")} == files, "training has encoded nothing"


def test_parts_of_two_encoders_do_not_meet(videos):
    words = ("encode", "data=folder", f"data.root={videos}", *FROZEN, "data.max_bad=1")
    both = [(*words, "seed=11"), (*words, "seed=12")]
    for words in both:
        assert command(*words, "--shard", "1/1").returncode == 0
    for words in both:
        merged = command("merge", *words)
        assert merged.returncode == 0, merged.stderr
    assert not list(videos.glob("*.parts"))


@pytest.fixture
def half_done(videos, tmp_path):
    """The words of a check of two parts, of which the first is finished."""
    words = ("check", *data(videos), "--json", tmp_path / "c.json")
    assert command(*words, "--shard", "1/2").returncode == 0
    return words


def test_a_missing_part_is_named_with_its_command(half_done):
    done = command("merge", *half_done)
    assert done.returncode == 2
    assert "part 2/2 is missing or not finished" in done.stderr
    assert "stvid check ... --shard 2/2" in done.stderr


def test_parts_that_had_other_settings_are_not_merged(half_done, videos, tmp_path):
    done = command("merge", *half_done, "clip.num_frames=5")
    assert "part 1/2 in" in done.stderr
    assert "has other settings than this merge: clip.num_frames is 4 there and 5 here. Repeat" in done.stderr
    shutil.copytree(videos, other := tmp_path / "squares")
    (other / "to_left" / "00.mp4").unlink()
    done = command("merge", *half_done, f"data.root={other}")
    assert done.returncode == 2
    assert f"data.root is {videos} there and {other} here; data set is 16 items there and 15 items here" in done.stderr
    parts = tmp_path / "c.json.parts"
    (parts / "1-of-3.json").write_text((parts / "1-of-2.json").read_text().replace('"num_parts": 2', '"num_parts": 3'))
    assert "has parts of 2 and of 3" in command("merge", *half_done).stderr


@pytest.mark.parametrize(
    ("words", "different"),
    [
        (["clip.num_frames=5", "--shard", "2/2"], "clip.num_frames is 4 there and 5 here"),
        (["clip.size=40", "--shard", "2/2"], "clip.size is not given there and 40 here"),
        (["--shard", "2/3"], "number of parts is 2 there and 3 here"),
        (["data.num_workers=0", "--shard", "2/2"], None),
    ],
)
def test_a_part_with_other_settings_is_refused_before_its_work(half_done, tmp_path, words, different):
    parts = tmp_path / "c.json.parts"
    before = {path: path.read_bytes() for path in parts.glob("*.json")}
    done = command(*half_done, *words)
    if different is None:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2
    assert f"c.json.parts belongs to parts with other settings: {different}. Give all parts" in done.stderr
    assert {path: path.read_bytes() for path in parts.glob("*.json")} == before


def test_predictions_of_another_run_or_video_are_refused(run_folder, videos, tmp_path, half_done):
    one, two = videos / "to_left" / "00.mp4", shutil.copy(videos / "to_left" / "01.mp4", tmp_path)
    shutil.copytree(run_folder, other := tmp_path / "other")
    with (other / "checkpoints" / "best.ckpt").open("ab") as file:
        file.write(b"x")
    more = ("--json", tmp_path / "p.json", "--shard", "1/2", "--workers", "0")
    assert command("predict", run_folder, one, two, *more).returncode == 0
    os.utime(two, (0, 0))
    done = command("predict", other, one, two, *more, "--top", "3", "--background", "to_left")
    assert done.returncode == 2
    assert f"RUN is {run_folder} there and {other} here; " in done.stderr
    assert "--top is 5 there and 3 here; --segments is not given there and on here; " in done.stderr
    assert "--background is not given there and to_left here" in done.stderr
    assert re.search(rf"SOURCE is {one}, {two} \(\w+\) there and {one}, {two} \(\w+\) here", done.stderr)
    done = command("predict", run_folder, one, two, "--json", tmp_path / "c.json", "--shard", "1/2")
    assert "c.json.parts belongs to parts with other settings: command is check there and predict here" in done.stderr
    done = command("merge", "predict", run_folder, one, two, "--json", tmp_path / "c.json")
    assert "other settings than this merge: command is check there and predict here" in done.stderr


def test_two_commands_that_start_together_do_not_share_a_folder(tmp_path):
    first, second = (
        Parts(tmp_path / "p.json", command="predict", settings={"RUN": Setting("run", digest)}) for digest in "ab"
    )
    for _ in range(2):
        first.claim(Part(1, 2))  # nothing is finished yet
    with pytest.raises(InputError, match=r"RUN is run \(a\) there and run \(b\) here"):
        second.claim(Part(2, 2))
    Parts(tmp_path / "p.json", command="predict", settings={"RUN": Setting("moved", "a")}).claim(Part(2, 2))


def test_parts_before_and_after_a_calibration_are_not_merged(run_folder, videos, tmp_path, monkeypatch):
    words = ("predict", run_folder, videos / "to_left" / "00.mp4", "--workers", "0", "--json", tmp_path / "p.json")
    assert command(*words, "--shard", "1/1").returncode == 0
    load = predict.load_checkpoint
    monkeypatch.setattr(predict, "load_checkpoint", lambda *a, **k: dataclasses.replace(load(*a, **k), temperature=0.1))
    done = command("merge", *words)
    assert done.returncode == 2
    assert (
        "calibration is temperature 1.0, threshold None there and temperature 0.1, threshold None here" in done.stderr
    )


def test_a_file_with_the_name_of_the_parts_is_told(run_folder, videos, tmp_path):
    (tmp_path / "p.json.parts").touch()
    done = command("predict", run_folder, videos, "--json", tmp_path / "p.json", "--shard", "1/2")
    assert done.returncode == 2
    assert "p.json.parts is a file, and the parts need a folder there" in done.stderr


def test_a_merge_of_nothing_is_told(videos, tmp_path):
    done = command("merge", "check", *data(videos), "--json", tmp_path / "c.json")
    assert done.returncode == 2
    assert "there are no parts in" in done.stderr
    assert "name a command whose parts are finished" in command("merge").stderr
    assert "name a command whose parts are finished" in command("merge", "train").stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shard", "1/2"], "name it: --json F"),
        (["--shards", "3"], "--shards 3 is for --engine ray"),
        (["--shard", "1/2", "--engine", "ray", "--json", "c.json"], "--engine ray runs all parts"),
    ],
)
def test_options_that_do_not_fit_each_other_are_told(videos, words, message):
    done = command("check", *data(videos), *words)
    assert done.returncode == 2
    assert message in done.stderr


def test_without_ray_the_command_names_what_to_install(videos, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = command("check", *data(videos), "--engine", "ray", "--json", "c.json")
    assert "--engine ray needs Ray: pip install 'stvid[ray]'" in done.stderr


@pytest.mark.parametrize(
    ("nodes", "command_name", "num_parts", "wanted"),
    [
        ([{"CPU": 8.0}, {"CPU": 4.0}], "check", None, {"num_cpus": 6, "num_gpus": 0}),
        ([{"CPU": 8.0}, {"CPU": 8.0}], "check", 1, {"num_cpus": 8, "num_gpus": 0}),
        ([{"CPU": 2.0}], "check", 7, {"num_cpus": 1, "num_gpus": 0}),
        ([{"CPU": 32.0}, {"CPU": 4.0, "GPU": 1.0}], "predict", 2, {"num_cpus": 4, "num_gpus": 1}),
        ([{"CPU": 32.0}, {"CPU": 4.0, "GPU": 1.0}], "check", 2, {"num_cpus": 18, "num_gpus": 0}),
    ],
)
def test_a_part_on_ray_asks_for_no_more_than_a_node_has(monkeypatch, nodes, command_name, num_parts, wanted):
    ray = FakeRay([*({"Alive": True, "Resources": node} for node in nodes), {"Alive": False, "Resources": {"CPU": 99}}])
    monkeypatch.setitem(sys.modules, "ray", ray)
    run_parts_on_ray(main, [command_name], command=command_name, num_parts=num_parts)
    assert {name: ray.resources[name] for name in wanted} == wanted
    assert len(ray.started) == (num_parts or len(nodes))


class FakeRay:
    """Notes what a task asks for; each task ends at once without an error."""

    def __init__(self, nodes):
        self.all_nodes, self.resources, self.started = nodes, {}, []

    def init(self, **options): ...

    def shutdown(self): ...

    def nodes(self):
        return self.all_nodes

    def remote(self, *words, **options):
        if options:
            self.resources = options
            return lambda function: self
        self.started.append(words)
        return len(self.started)

    def wait(self, waiting):
        return waiting[:1], waiting[1:]

    def get(self, task):
        return 0, ""


def test_predictions_as_parquet(run_folder, videos, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    files = ("--json", tmp_path / "p.json", "--parquet", tmp_path / "p.parquet")
    command("predict", run_folder, videos, "--workers", "0", *files)
    rows = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    entries = json.loads((tmp_path / "p.json").read_text())
    assert [{key: value for key, value in row.items() if value is not None} for row in rows] == entries


@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.skipif(not os.environ.get("STVID_TEST_ALL"), reason="starts Ray; set STVID_TEST_ALL=1")
def test_parts_on_ray_survive_the_death_of_a_worker(videos, tmp_path, monkeypatch):
    """A local cluster of two workers; the first worker that transcodes kills itself once."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    words = ("prepare", *data(videos), "--short-side", "32", "--out", tmp_path / "out")
    one = command(*words)
    (tmp_path / "out").rename(tmp_path / "one")
    monkeypatch.setattr("stvid.cli.main", DyingOnce(tmp_path / "died"))
    monkeypatch.setattr(ray, "init", lambda init=ray.init, **options: init(num_cpus=2, **options))
    done = command(*words, "--engine", "ray", "--shards", "4")
    assert done.returncode == one.returncode == 1, done.stdout + done.stderr
    assert (tmp_path / "died").exists(), done.stdout + done.stderr
    assert compared(tmp_path / "out") == compared(tmp_path / "one")


class DyingOnce:
    """Runs a command line; the first process that does so is killed after its first video."""

    def __init__(self, mark):
        self.mark = mark

    def __call__(self, arguments):
        try:
            self.mark.open("x").close()
            Bar.advance = lambda *words, **options: os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
        main(arguments)
