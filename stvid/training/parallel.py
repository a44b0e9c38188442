"""Batch norm over all processes, and sharding of a model too large for one device (FSDP).

B samples of this process   C channels
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from pytorch_lightning.plugins import LayerSync
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from stvid.distributed import all_reduce
from stvid.errors import InputError


class AllReduceSum(torch.autograd.Function):
    """Of the same tensor in all processes; the gradient of each is the sum of all their gradients."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return all_reduce(values)

    @staticmethod
    def backward(ctx, gradients: Tensor) -> Tensor:
        return all_reduce(gradients)


class CPUSyncBatchNorm(_BatchNorm):
    """Batch norm with the statistics of all processes' samples, each counting the same.

    Torch's own needs a GPU; this one is kept for the tests that hold several processes against one on a CPU.
    Its children, which timm's norms have (dropout and an activation), are applied to the result one by one.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"batch norm takes B x C x ..., got {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """`B x C x ...` -> the same shape."""
        y = super().forward(x) if not self.training or not dist.is_initialized() else self._of_all(x)
        for child in self.children():
            y = child(y)
        return y

    def _of_all(self, x: Tensor) -> Tensor:
        along = [i for i in range(x.ndim) if i != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        x_float = x.to(torch.promote_types(x.dtype, torch.float32))
        sums = AllReduceSum.apply(torch.cat([x_float.sum(along), x_float.new_tensor([x.numel() / x.shape[1]])]))
        count = sums[-1].detach()
        mean_C = sums[:-1] / count
        centred = x_float - mean_C.view(shape)
        var_C = AllReduceSum.apply(centred.square().sum(along)) / count
        self._take_note(mean_C.detach(), var_C.detach() * count / (count - 1).clamp_min(1))
        y = centred * torch.rsqrt(var_C + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    def _take_note(self, mean_C: Tensor, var_C: Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(var_C, momentum)


class SyncedBatchNorm(LayerSync):
    """For Lightning: every batch norm of a model becomes one over all processes; weights and their names stay."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Replaces the batch norms; returns the model.

        Raises:
            InputError: a batch norm that computes something else than torch's and timm's do.
        """
        norms = [
            (module, name, child)
            for module in model.modules()
            for name, child in module.named_children()
            if isinstance(child, _BatchNorm) and not isinstance(child, CPUSyncBatchNorm | nn.SyncBatchNorm)
        ]
        timm = sys.modules.get("timm.layers")  # loaded where a network of timm's is
        for _, name, norm in norms:
            if type(norm).forward is not _BatchNorm.forward and not (timm and type(norm) is timm.BatchNormAct2d):
                raise InputError(
                    f"trainer.sync_batchnorm: {name} is a {type(norm).__name__}, a batch norm of another kind than "
                    "torch's, which cannot be computed over several processes. Set trainer.sync_batchnorm=false"
                )
        if dist.get_backend() != "gloo":  # timm's function does what torch's does, and knows timm's norms
            return (timm or nn.SyncBatchNorm).convert_sync_batchnorm(model)
        for module, name, norm in norms:
            setattr(module, name, _on_cpu(norm))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Nothing to undo: outside of training it is the batch norm it was."""
        return model


def _on_cpu(norm: _BatchNorm) -> CPUSyncBatchNorm:
    how = {"affine": norm.affine, "track_running_stats": norm.track_running_stats}
    synced = CPUSyncBatchNorm(norm.num_features, norm.eps, norm.momentum, **how)
    synced._parameters, synced._buffers = norm._parameters, norm._buffers  # the very same: optimizers know them
    for name, child in norm.named_children():
        synced.add_module(name, child)
    synced.training = norm.training
    return synced


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's, with all processes one row that shares the data, and checkpoints of one file that any run reads."""

    def __init__(self, *, sync_batchnorm: bool = True, process_group_backend: str | None = None):
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )

        self.sync_batchnorm = sync_batchnorm

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Spreads a model's parameters over the processes of a mesh; one block at a time is whole while it computes."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # it takes no other order
    for block in model.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
