"""The numbers depend on the model and the videos alone: not on workers, batches, locale, time zone or hash seed."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, moving_square

from stvid.clip import ClipSpec
from stvid.data.manifest import Item
from stvid.inference import ViewPredictions, classify
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.run.checkpoint import TrainedModel
from stvid.video.writer import write_video

NUM_VIDEOS = 9
CLASSES = ("hüpfen", "kauern", "kıvırmak")  # a Turkish locale changes what lower() makes of I in some programs


def untrained(name: str, **clip) -> TrainedModel:
    """A model whose random weights are the same in every process."""
    torch.manual_seed(0)
    spec = ClipSpec(num_frames=4, size=32, normalize="fixed", **clip)
    model = {"conv3d": Conv3D, "cnn_lstm": CNNLSTM}[name](num_classes=len(CLASSES))
    return TrainedModel(
        path=Path("best.ckpt"),
        folder=Path(),
        model=model.eval(),
        clip=spec,
        class_names=CLASSES,
        protocol={"num_clips": 2, "num_crops": 1},
        config={"data": {"datamodule": {"batch_size": 4}}, "trainer": {"precision": "32-true"}},
        epoch=1,
    )


def items_of(folder: Path) -> list[Item]:
    return [
        Item(path=str(path), label=CLASSES[i % 3], split="test", group=None)
        for i, path in enumerate(sorted(folder.iterdir()))
    ]


def predictions(name: str, folder: Path, **options) -> ViewPredictions:
    return classify(untrained(name), items_of(folder), device=torch.device("cpu"), progress=False, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Videos of different lengths, one of them unreadable."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(NUM_VIDEOS - 1):
        write_video(folder / f"{i}ı.mp4", moving_square(to_right=i % 2 == 0, seed=i, num_frames=8 + 3 * i), fps=12)
    (folder / "broken.mp4").write_bytes(b"x" * 5000)
    return folder


@pytest.mark.parametrize("name", ["conv3d", "cnn_lstm"])
def test_workers_change_nothing_and_batch_sizes_only_rounding(folder, name):
    expected = predictions(name, folder, num_workers=0, batch_size=4)
    assert len(expected.failed) == 1
    assert len(expected.logits_VK) == 2 * (NUM_VIDEOS - 1)
    read_by_workers = predictions(name, folder, num_workers=2, batch_size=4)
    assert torch.equal(read_by_workers.logits_VK, expected.logits_VK)
    assert torch.equal(read_by_workers.videos_V, expected.videos_V)
    for batch_size in (1, 7, 64):
        other = predictions(name, folder, num_workers=0, batch_size=batch_size)
        assert torch.equal(other.videos_N, expected.videos_N)
        torch.testing.assert_close(other.logits_VK, expected.logits_VK, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other.probabilities_NK, expected.probabilities_NK, rtol=1e-5, atol=1e-5)


DIGEST = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_inference import digest
print(digest(Path(sys.argv[1])))
"""


def digest(folder: Path) -> str:
    """A hash over the bits of all logits, of both families."""
    logits = [predictions(name, folder, num_workers=0).logits_VK for name in ("conv3d", "cnn_lstm")]
    return hashlib.sha256(torch.cat(logits).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize(
    "variables",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "1"},
        {"LC_ALL": "tr_TR.UTF-8", "TZ": "America/St_Johns", "PYTHONHASHSEED": "4000000000"},
    ],
    ids=["ASCII", "Turkish"],
)
def test_locale_time_zone_and_hash_seed_change_nothing(folder, variables):
    done = subprocess.run(
        [sys.executable, "-c", DIGEST, str(folder)],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == digest(folder)
