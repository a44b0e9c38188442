"""Loss functions, and the check that losses and gradients are finite.

B batch   R branches of a model   K classes   p softmax of the logits   t targets   s targets after smoothing
w class weights
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stvid.device import HostCopy
from stvid.distributed import all_gather_object, all_reduce, get_world_size
from stvid.errors import MAX_NAMES, InputError
from stvid.terminal import visible


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """`-sum_k w_k s_k log p_k`, `s = (1 - label_smoothing) t + label_smoothing / K` (Szegedy et al. 2016).

    If every target is a single class, `sum(loss) / sum(weight)` equals torch's `cross_entropy` with `weight` and
    `label_smoothing`.

    Attributes:
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_smoothing(self.label_smoothing)

    def __call__(
        self, logits_BK: Tensor, targets_BK: Tensor, class_weights_K: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss and weight of every clip; the mean loss is `sum(loss) / sum(weight)`.

        Args:
            logits_BK: any floating-point type; the loss is computed in float32.
            targets_BK: share of each class in the clip, 0 or more, summing to 1.
            class_weights_K: weight of a clip of each class; None: all 1.

        Returns:
            Loss and weight, each float32 `B`; the weight is `sum_k w_k t_k`.
        """
        loss_BK = -logits_BK.float().log_softmax(1)
        return _weighted(loss_BK, targets_BK, class_weights_K, self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class Focal:
    """`-sum_k w_k s_k (1 - p_k)^gamma log p_k` (Lin et al. 2017, arXiv:1708.02002). Well-classified clips
    get little weight.

    Attributes:
        gamma: focusing exponent, 0 or more; 0 is cross entropy.
        label_smoothing: see `CrossEntropy`.
    """

    gamma: float = 2.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise InputError(f"loss.gamma (={self.gamma}) must be 0 or more")
        _check_smoothing(self.label_smoothing)

    def __call__(
        self, logits_BK: Tensor, targets_BK: Tensor, class_weights_K: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss and weight of every clip, see `CrossEntropy`."""
        log_p_BK = logits_BK.float().log_softmax(1)
        # above 0, because the derivative of a power below 1 is infinite there
        one_minus_p_BK = (-torch.expm1(log_p_BK)).clamp_min(torch.finfo(torch.float32).tiny)
        return _weighted(-(one_minus_p_BK**self.gamma) * log_p_BK, targets_BK, class_weights_K, self.label_smoothing)


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise InputError(f"loss.label_smoothing (={label_smoothing}) must lie in [0, 1)")


def by_branch(logits: Tensor) -> Tensor:
    """Logits `B x K` or `B x R x K`, as a model in training mode returns them, -> `B x R x K`."""
    return logits[:, None] if logits.ndim == 2 else logits


def loss_of_branches(
    loss: Callable[..., tuple[Tensor, Tensor]],
    logits_BRK: Tensor,
    targets_BK: Tensor,
    class_weights_K: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss (mean over the branches) and weight of every clip, each float32 `B`."""
    losses, weights = zip(
        *(loss(logits_BK, targets_BK, class_weights_K) for logits_BK in logits_BRK.unbind(1)), strict=True
    )
    return torch.stack(losses).mean(0), weights[0]


def _weighted(
    loss_BK: Tensor, targets_BK: Tensor, class_weights_K: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Loss for each possible class -> loss and weight of every clip."""
    targets_BK = targets_BK.float()
    smoothed_BK = (1 - label_smoothing) * targets_BK + label_smoothing / targets_BK.shape[1]
    if class_weights_K is None:
        return (loss_BK * smoothed_BK).sum(1), torch.ones_like(loss_BK[:, 0])
    return (loss_BK * smoothed_BK * class_weights_K).sum(1), (targets_BK * class_weights_K).sum(1)


@dataclass(frozen=True, kw_only=True)
class PendingStep:
    """An optimizer step whose losses and gradients are not checked yet.

    Attributes:
        number: number of optimizer steps before it.
        batches: paths of the videos and loss of each batch of the step.
        is_bad: bool without dimensions: whether a loss or gradient of this process is NaN or infinite.
        copy: asynchronous copy of `is_bad`.
    """

    number: int
    batches: Sequence[tuple[Sequence[str], Tensor]]
    is_bad: Tensor
    copy: HostCopy


class FiniteCheck:
    """Stops training at a NaN or infinite loss or gradient, without synchronising with the GPU in every step.

    On a CPU with a single process, the check happens before the weights change. A GPU runs asynchronously, so a bad
    step is found one or more steps later, when the weights in memory may contain NaN. Call `wait` before weights are
    saved or validated: then checkpoints are always sound. Several processes check together when the next step begins
    (`has_bad_step`, then `finish_all`), so that all of them stop.
    """

    def __init__(self) -> None:
        self.batches: list[tuple[Sequence[str], Tensor]] = []  # since the last step
        self.pending: deque[PendingStep] = deque()

    def add_batch(self, paths: Sequence[str], loss: Tensor) -> None:
        """Adds a batch to the next step: paths of its videos, and its loss (no dimensions, detached)."""
        self.batches.append((paths, loss))

    def add_step(self, norm: Tensor | None, *, number: int) -> None:
        """Ends the step of the batches added so far.

        Args:
            norm: norm of the gradients, over all processes; None: only the losses are checked.
            number: number of optimizer steps before it.

        Raises:
            InputError: see `check`.
        """
        losses = [loss for _, loss in self.batches]
        values = torch.stack(losses if norm is None else [*losses, norm.to(losses[0])])
        is_bad = ~torch.isfinite(values).all()
        self.pending.append(PendingStep(number=number, batches=self.batches, is_bad=is_bad, copy=HostCopy(is_bad)))
        self.batches = []
        self.check()

    def check(self) -> None:
        """Checks the steps that the device has computed; with several processes, does nothing.

        Raises:
            InputError: a step is bad. The message names the videos of the batches with a bad loss; if only a gradient
                is bad, those of all batches of the step.
        """
        while get_world_size() == 1 and self.pending and self.pending[0].copy.is_ready:
            self._finish_first(bool(self.pending[0].copy.read()))

    def has_bad_step(self, device: torch.device) -> Tensor:
        """Whether any pending step of this process is bad: 0 or 1, float32, no dimensions."""
        flags = [step.is_bad for step in self.pending]
        return torch.stack(flags).any().float() if flags else torch.zeros((), device=device)

    def finish_all(self, is_bad: bool) -> None:
        """Removes all pending steps; `is_bad` is the result over all processes. Every process must call this.

        Raises:
            InputError: see `check`; in every process.
        """
        while self.pending:
            self._finish_first(is_bad)

    def wait(self, device: torch.device) -> None:
        """Waits for all pending steps and checks them. Every process must call this.

        Raises:
            InputError: see `check`; in every process.
        """
        if get_world_size() > 1:
            self.finish_all(bool(all_reduce(self.has_bad_step(device), op="max")))
        while self.pending:
            self._finish_first(bool(self.pending[0].copy.read()))

    def _finish_first(self, is_bad: bool) -> None:
        step = self.pending.popleft()
        if is_bad:
            raise InputError(_bad_step_message(step))


def _bad_step_message(step: PendingStep) -> str:
    """The error message, with videos of all processes. Every process must call this."""
    bad_batches = [paths for paths, loss in step.batches if not torch.isfinite(loss)]
    gathered = all_gather_object((bad_batches, [paths for paths, _ in step.batches]))
    bad_loss_paths = [path for bad, _ in gathered for paths in bad for path in paths]
    paths = sorted(set(bad_loss_paths or [path for _, batches in gathered for paths in batches for path in paths]))
    subject = "the loss" if bad_loss_paths else "a gradient"
    more = f"\n  and {len(paths) - MAX_NAMES} more" if len(paths) > MAX_NAMES else ""
    listed = "\n".join(f"  {visible(path)}" for path in paths[:MAX_NAMES])
    return (
        f"{subject} is not finite after {step.number} steps. No checkpoint was written since, so the checkpoints are "
        f"sound. Videos in this step:\n{listed}{more}\n"
        "What often helps: a smaller optimizer.lr, trainer.gradient_clip_val=1, trainer.precision=32-true"
    )
