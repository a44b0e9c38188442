"""train.py in float64, for comparisons of runs: rounding errors stay near 1e-15.

    python train_in_float64.py [overrides of train.py]

In float32, rounding can change the sign of an activation before a ReLU. Its gradient then switches on or off, and the
weights of two equivalent runs differ by up to 1e-3 after a few steps.
"""

from conftest import ROOT

from stvid import device
from stvid.training.task import ClassificationTask

TRAIN_PY = ROOT / "train.py"
configure_optimizers = ClassificationTask.configure_optimizers


def configure_in_float64(task: ClassificationTask):
    task.preprocess.register_forward_hook(lambda module, inputs, output: output.double())
    return configure_optimizers(task)


device.resolve_precision = lambda precision, accelerator: "64-true"
ClassificationTask.configure_optimizers = configure_in_float64
# not runpy, which would change sys.argv[0], the program that Lightning starts in the other processes
exec(compile(TRAIN_PY.read_text(encoding="utf-8"), TRAIN_PY, "exec"))
