"""Types, ranges and choices that are known without the code agree with the code."""

import inspect
import re
from typing import get_type_hints

import pytest
import yaml
from hydra.utils import get_object
from omegaconf import OmegaConf

from stvid.data.datamodule import BALANCES, FEATURES, PROBES
from stvid.data.transforms import DEVICES
from stvid.device import resolve_precision
from stvid.errors import InputError
from stvid.models.recurrent import FEATURE_NORM, POOLING, RECURRENT
from stvid.preprocess import CROPS
from stvid.run.config_help import config_files, config_groups, own_entries, package_of
from stvid.run.config_tree import references, targets
from stvid.run.first_model import COMPILE_MODES
from stvid.run.parameters import CHOICES, RANGES, SWITCHES, mistake, parameter_types, type_fits
from stvid.training.callbacks.checkpoints import SELECT
from stvid.training.optim import SCHEDULES
from stvid.video.reader import BACKENDS

ENTRIES = [(key, *entry) for file in config_files() for key, entry in own_entries(file).items()]
TEXTS = [file.read_text(encoding="utf-8") for file in config_files()]
TARGETS = sorted({name for text in TEXTS for name in re.findall(r"^\s*_target_: *(stvid\.[\w.]+)", text, re.M)})


@pytest.mark.parametrize("target", TARGETS)
def test_parameters_and_types_are_those_of_the_imported_code(target):
    thing = get_object(target)
    types = parameter_types(target)
    assert set(types) - {"**"} == set(inspect.signature(thing).parameters) - {"strategy_arguments", "kwargs"}
    hints = get_type_hints(thing.__init__ if inspect.isclass(thing) else thing)
    hints.pop("return", None)
    for name, hint in hints.items():
        for value in (1, 1.5, "text", True, None):
            if hint in (int, float, bool, type(None)):
                fits = isinstance(value, (int, float) if hint is float else hint)
                fits = fits and not (isinstance(value, bool) and hint is not bool)
                assert type_fits(value, types[name]) == fits, (name, value)


@pytest.mark.parametrize(
    ("annotation", "good", "wrong"),
    [
        ("int | None", [3, None], ["x", True, 2.5]),
        ("float", [1, 2.5], ["x", None, False]),
        ("str", ["x", 2024], [None, 1.5]),
        ("Sequence[float]", [], [3, "x"]),
        ("tuple[int, int] | int", [3], ["x"]),
        ("Any", [3, None, "x"], []),
        ("str | os.PathLike", ["x", 3], []),
    ],
)
def test_values_fit_annotations(annotation, good, wrong):
    assert all(type_fits(value, annotation) for value in good)
    assert not any(type_fits(value, annotation) for value in wrong)


def test_choices_are_those_of_the_code():
    code = {
        "checkpoint": SELECT,
        "data.features": FEATURES,
        "data.balance": BALANCES,
        "data.probe": PROBES,
        "data.backend": BACKENDS,
        "data.num_crops": tuple(CROPS),
        "model.recurrent": (*RECURRENT, "none"),
        "model.feature_norm": FEATURE_NORM,
        "model.pooling": POOLING,
        "augment.device": DEVICES,
        "optimizer.schedule": SCHEDULES,
        "compile": (None, *COMPILE_MODES),
    }
    for key, values in code.items():
        assert set(CHOICES[key]) == set(values), key
    for value in CHOICES["trainer.precision"]:
        resolve_precision(value, "cpu")
    with pytest.raises(InputError):
        resolve_precision("64-true", "cpu")


def test_switches_are_the_keys_of_train_yaml_that_are_true_or_false():
    (file,) = (file for file in config_files() if file.name == "train.yaml")
    switches = {key for key, value in yaml.safe_load(file.read_text()).items() if isinstance(value, bool)}
    assert set(SWITCHES) == switches
    for key in SWITCHES:
        assert mistake(key, True) is None
        assert mistake(key, "maybe") == f"{key} (=maybe) must be true or false"
        assert mistake(key, 1) == f"{key} (=1) must be true or false"


def stated_ranges():
    """Key -> the ranges in its comments in `configs/`, which `--help` shows, in the words of a message."""
    found = {}
    for key, _, comment in ENTRIES:
        if match := re.search(r"(?:^|, )(in [\[(][\d.]+, [\d.]+[\])])", comment):
            text = match[1]
        elif match := re.search(r"\bfrom \d+ to \d+\b|\babove \d+\b", comment):
            text = match[0]
        elif match := re.search(r"\bfrom (\d+)\b", comment):
            text = f"at least {match[1]}"
        else:
            continue
        others = re.findall(r"(?:; |\| |, |: )(auto|null): ", comment)
        found.setdefault(key, set()).add(", or ".join([text, *others]))
    return found


STATED = stated_ranges()


@pytest.mark.parametrize("key", sorted({*STATED, *RANGES}))
def test_the_comments_of_the_configs_state_the_ranges(key):
    """For `sweep.trials` only the comment in sweep=grid speaks of null."""
    text = str(RANGES[key])
    assert text in STATED[key]
    assert STATED[key] <= {text, text.removesuffix(", or null") if key == "sweep.trials" else text}


def annotations():
    """Key -> the annotation of the parameter of stvid that gets its value, for all choices of all groups."""
    found = {}
    for file in config_files():
        content, group = yaml.safe_load(file.read_text(encoding="utf-8")), package_of(file)
        sources = references(content, group)
        for place, section in targets({group: content} if group else content):
            for name, annotation in parameter_types(section["_target_"]).items():
                key = sources.get(f"{place}.{name}", f"{place}.{name}")
                if name in section and key not in config_groups():
                    found[key] = annotation
    return found


ANNOTATIONS = annotations()


@pytest.mark.parametrize("key", sorted(RANGES))
def test_ranges_fit_the_code_and_the_values_in_the_configs(key):
    allowed, values = RANGES[key], [value for name, value, _ in ENTRIES if name == key and "${" not in value]
    assert all(map(allowed.allows, OmegaConf.to_container(OmegaConf.create(f"[{','.join(values)}]"))))
    if annotation := ANNOTATIONS.get(key):
        assert allowed.whole == (re.search(r"\bint\b", annotation) is not None)
        assert allowed.null == ("None" in annotation)
        assert allowed.listed == ("[" in annotation)
        assert (allowed.word is not None) == ("str" in annotation)
    else:  # of train.yaml, or of a class that is not ours
        numbers = [value for value in values if value != "null"]
        assert allowed.whole == (key != "ema" and all(value.isdecimal() for value in numbers))
        assert allowed.null == ("null" in values)
        assert not allowed.listed


@pytest.mark.parametrize(
    ("key", "good", "wrong"),
    [
        ("trainer.max_epochs", [1, 100], [0, -1, None, "many", 1.5, True]),
        ("data.batch_size", [1, "auto"], [0, "big", None]),
        ("augment.scale", [[0.5, 1]], [[0, 1], [0.5, 1.1]]),
        ("augment.rand_magnitude", [0, 30], [-1, 31, 0.5]),
        ("optimizer.lr", [1e-3, 2, 10**400], [0, -1, float("nan")]),
        ("optimizer.milestones", [[0.5], None], ["multi_step", [0.5, 1]]),
        ("mixing.mixup", [0, 1.5], [-1]),
        ("ema", [0, 0.999, None], [1, -0.1]),
        ("clip.fps", [12.5, None], [0]),
        ("clip.std", [[0.5, 0.5, 0.5]], [[0.5, 0, 0.5]]),
        ("clip.num_frames", [16, None], [[16], 0]),
        ("seed", [0, 5, 2**32 - 1], [-1, 0.5, 2**32, None, True]),
        ("compile", [None, "default"], ["fast", ["default"]]),
    ],
)
def test_values_that_a_key_takes(key, good, wrong):
    assert [mistake(key, value) for value in good] == [None] * len(good)
    assert all(mistake(key, value).startswith(f"{key} (=") for value in wrong)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trainer.max_epochs", 0, "trainer.max_epochs (=0) must be at least 1"),
        ("trainer.max_epochs", 1.5, "trainer.max_epochs (=1.5) must be a whole number, at least 1"),
        ("data.batch_size", None, "data.batch_size (=null) must be at least 1, or auto"),
        ("optimizer.lr", float("inf"), "optimizer.lr (=inf) must be a finite number, above 0"),
        ("ema", 1, "ema (=1) must be in [0, 1), or null"),
        ("augment.hue", 0.6, "augment.hue (=0.6) must be in [0, 0.5]"),
        ("seed", -1, "seed (=-1) must be from 0 to 4294967295"),
        ("data.num_crops", 2, "data.num_crops (=2) must be one of 1, 3, 5"),
    ],
)
def test_a_message_says_the_value_and_what_the_key_takes(key, value, message):
    assert mistake(key, value) == message


@pytest.mark.parametrize("key", sorted(RANGES))
def test_no_range_has_infinite_numbers(key):
    assert not any(RANGES[key].allows(value) for value in (float("inf"), -float("inf"), float("nan")))
