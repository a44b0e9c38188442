"""Loss of every clip, and the check that losses and gradients are finite.

B batch   K classes   p softmax of the logits   t targets   s targets after smoothing   w class weights
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stvid.device import HostCopy
from stvid.distributed import all_gather_object, all_reduce, get_world_size
from stvid.errors import MAX_NAMES, InputError


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """`-sum_k w_k s_k log p_k`, `s = (1 - label_smoothing) t + label_smoothing / K` (Szegedy et al. 2016).

    Where every target is one class, `sum(loss) / sum(weight)` is torch's `cross_entropy(weight=, label_smoothing=)`.

    Attributes:
        label_smoothing: share of the truth that is spread over all classes, in [0, 1).
    """

    label_smoothing: float = 0.0

    def __post_init__(self):
        _check_smoothing(self.label_smoothing)

    def __call__(
        self, logits_BK: Tensor, targets_BK: Tensor, class_weights_K: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of every clip, and what it counts in the mean `sum(loss) / sum(weight)`.

        Args:
            logits_BK: of any floating point type; computed in float32.
            targets_BK: share of each class in the clip, 0 or more, summing to 1.
            class_weights_K: what a clip of each class counts; None: all 1.

        Returns:
            Loss and weight, float32 `B` each; the weight is `sum_k w_k t_k`.
        """
        each_BK = -logits_BK.float().log_softmax(1)
        return _weighted(each_BK, targets_BK, class_weights_K, self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class Focal:
    """`-sum_k w_k s_k (1 - p_k)^gamma log p_k` (Lin et al. 2017, arXiv:1708.02002): what is easy counts little.

    Attributes:
        gamma: 0 or more; with 0 it is cross entropy.
        label_smoothing: as of `CrossEntropy`.
    """

    gamma: float = 2.0
    label_smoothing: float = 0.0

    def __post_init__(self):
        if self.gamma < 0:
            raise InputError(f"loss.gamma (={self.gamma}) must be 0 or more")
        _check_smoothing(self.label_smoothing)

    def __call__(
        self, logits_BK: Tensor, targets_BK: Tensor, class_weights_K: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of every clip, and what it counts in the mean; see `CrossEntropy`."""
        log_p_BK = logits_BK.float().log_softmax(1)
        # not exactly 0, where the derivative of a power below 1 is infinite
        others_BK = (-torch.expm1(log_p_BK)).clamp_min(torch.finfo(torch.float32).tiny)
        return _weighted(-(others_BK**self.gamma) * log_p_BK, targets_BK, class_weights_K, self.label_smoothing)


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise InputError(f"loss.label_smoothing (={label_smoothing}) must lie in [0, 1)")


def _weighted(
    each_BK: Tensor, targets_BK: Tensor, class_weights_K: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Losses as if each class were the truth -> loss and weight of every clip."""
    targets_BK = targets_BK.float()
    smoothed_BK = (1 - label_smoothing) * targets_BK + label_smoothing / targets_BK.shape[1]
    if class_weights_K is None:
        return (each_BK * smoothed_BK).sum(1), torch.ones_like(each_BK[:, 0])
    return (each_BK * smoothed_BK * class_weights_K).sum(1), (targets_BK * class_weights_K).sum(1)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one optimizer step is made of.

    Attributes:
        number: of the optimizer steps before it.
        batches: the files, and the loss, of each batch that takes part.
        is_bad: bool, no dimensions; whether a loss or a gradient of this process is NaN or infinite.
        copy: of `is_bad`.
    """

    number: int
    batches: Sequence[tuple[Sequence[str], Tensor]]
    is_bad: Tensor
    copy: HostCopy


class FiniteCheck:
    """Looks at the losses and gradients of every step without making a GPU wait.

    On a CPU, one process knows before the weights change. A GPU tells later, when it has computed the step; its
    weights in memory may be spoiled by then. So `settle` comes before weights are saved or judged: checkpoints are
    sound. Several processes look together, when the next step begins (`is_bad` and `resolve`).
    """

    def __init__(self):
        self.batches: list[tuple[Sequence[str], Tensor]] = []  # since the last step
        self.steps: deque[Step] = deque()  # that have not been looked at

    def add_batch(self, paths: Sequence[str], loss: Tensor) -> None:
        """A batch that will take part in the next step: its files, and its loss (no dimensions, detached)."""
        self.batches.append((paths, loss))

    def add_step(self, norm: Tensor | None, *, number: int) -> None:
        """The batches until here make a step.

        Args:
            norm: of the gradients, over all processes; None: it is not to be looked at.
            number: of the optimizer steps before it.

        Raises:
            InputError: see `look`.
        """
        losses = [loss for _, loss in self.batches]
        values = torch.stack(losses if norm is None else [*losses, norm.to(losses[0])])
        is_bad = ~torch.isfinite(values).all()
        self.steps.append(Step(number=number, batches=self.batches, is_bad=is_bad, copy=HostCopy(is_bad)))
        self.batches = []
        self.look()

    def look(self) -> None:
        """Looks at the steps that are computed; does nothing where there are several processes.

        Raises:
            InputError: a step is bad; names the files of the batches whose loss is, or of all where only a gradient is.
        """
        while get_world_size() == 1 and self.steps and self.steps[0].copy.is_ready:
            self._resolve_first(self.steps[0].copy.read())

    def is_bad(self, device: torch.device) -> Tensor:
        """Whether any step of this process is bad, as 0 or 1; float32, no dimensions."""
        flags = [step.is_bad for step in self.steps]
        return torch.stack(flags).any().float() if flags else torch.zeros((), device=device)

    def resolve(self, is_bad: bool) -> None:
        """Ends with what all processes have found of the steps so far; every process must call it alike.

        Raises:
            InputError: see `look`; in every process alike.
        """
        while self.steps:
            self._resolve_first(is_bad)

    def settle(self, device: torch.device) -> None:
        """Waits for all steps and looks at them; every process must call it alike.

        Raises:
            InputError: see `look`; in every process alike.
        """
        if get_world_size() > 1:
            self.resolve(bool(all_reduce(self.is_bad(device), take="max")))
        while self.steps:
            self._resolve_first(self.steps[0].copy.read())

    def _resolve_first(self, is_bad: bool) -> None:
        step = self.steps.popleft()
        if is_bad:
            raise InputError(_message(step))


def _message(step: Step) -> str:
    """Of several processes, all must ask for it."""
    bad = [paths for paths, loss in step.batches if not torch.isfinite(loss)]
    everybody = all_gather_object((bad, [paths for paths, _ in step.batches]))
    losses = [path for bad, _ in everybody for paths in bad for path in paths]
    files = sorted(set(losses or [path for _, paths in everybody for batch in paths for path in batch]))
    what = "the loss" if losses else "a gradient"
    more = f"\n  and {len(files) - MAX_NAMES} more" if len(files) > MAX_NAMES else ""
    shown = "\n".join(f"  {path}" for path in files[:MAX_NAMES])
    return (
        f"{what} is not finite after {step.number} steps. Nothing has been saved since, so the checkpoints are sound. "
        f"The clips were of:\n{shown}{more}\n"
        "What often helps: a smaller optimizer.lr, trainer.gradient_clip_val=1, trainer.precision=32-true"
    )
