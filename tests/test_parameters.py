"""Types, ranges and choices that are known without the code agree with the code."""

import inspect
import re
from typing import get_type_hints

import pytest
from hydra.utils import get_object

from stvid.data.datamodule import BALANCES, FEATURES, PROBES
from stvid.device import resolve_precision
from stvid.errors import InputError
from stvid.models.recurrent import POOLING, RECURRENT
from stvid.preprocess import CROPS
from stvid.run.config_help import config_files
from stvid.run.first_model import COMPILE_MODES
from stvid.run.parameters import CHOICES, parameter_types, ranges, type_fits
from stvid.sweep.settings import CHOICES as SWEEP_CHOICES
from stvid.training.optim import SCHEDULES
from stvid.video.reader import BACKENDS

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
        "data.features": FEATURES,
        "data.balance": BALANCES,
        "data.probe": PROBES,
        "data.backend": BACKENDS,
        "data.num_crops": tuple(CROPS),
        "model.recurrent": (*RECURRENT, "none"),
        "model.pooling": POOLING,
        "optimizer.schedule": SCHEDULES,
        "compile": (None, *COMPILE_MODES),
        "sweep.method": SWEEP_CHOICES["method"],
        "sweep.pruner": SWEEP_CHOICES["pruner"],
    }
    for key, values in code.items():
        assert set(CHOICES[key]) == set(values), key
    for value in CHOICES["trainer.precision"]:
        resolve_precision(value, "cpu")
    with pytest.raises(InputError):
        resolve_precision("64-true", "cpu")


@pytest.mark.parametrize(
    ("key", "good", "wrong"),
    [
        ("trainer.max_epochs", [1, 100], [0, -1, None, "many", 1.5, True]),
        ("data.batch_size", [1, "auto"], [0, "big", None]),
        ("augment.scale", [[0.5, 1]], [[0, 1], [0.5, 1.1]]),
        ("optimizer.lr", [1e-3, 2], [0, -1, float("nan")]),
        ("ema", [0, 0.999, None], [1, -0.1]),
        ("clip.fps", [12.5, None], [0]),
        ("seed", [0, 5], [-1, 0.5]),
    ],
)
def test_ranges_are_those_of_the_comments(key, good, wrong):
    assert all(ranges()[key].allows(value) for value in good)
    assert not any(ranges()[key].allows(value) for value in wrong)


@pytest.mark.parametrize("key", sorted(ranges()))
def test_no_range_has_infinite_numbers(key):
    assert not any(ranges()[key].allows(value) for value in (float("inf"), -float("inf"), float("nan")))


@pytest.mark.parametrize("key", [key for key, allowed in ranges().items() if allowed.words.startswith("at least")])
def test_whole_numbers_are_those_of_the_code(key):
    is_share = key in ("mixing.mixup", "mixing.cutmix", "optimizer.weight_decay", "loss.gamma")
    assert ranges()[key].whole == (not is_share)
    assert ranges()[key].allows(1.5) == is_share


def test_a_list_is_no_number():
    assert not ranges()["save_every"].allows([1])
    assert not ranges()["clip.num_frames"].allows([16])
    assert ranges()["clip.std"].allows([0.5, 0.5, 0.5])
