"""Synchronised batch norm, and sharding of a model too large for one device (FSDP).

B samples of this process   C channels
"""

from __future__ import annotations

import sys
from typing import Any

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
    """All-reduce of a tensor; the backward pass all-reduces the gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return all_reduce(values)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Tensor:
        return all_reduce(gradients)


class CPUSyncBatchNorm(_BatchNorm):
    """Batch norm over the samples of all processes, only for the two-process tests on a CPU (`trainer=ddp_cpu`).

    `nn.SyncBatchNorm` needs a GPU. Child modules (timm's norms have dropout and an activation) are applied to the
    result in order.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"batch norm takes B x C x ..., got {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """`B x C x ...` -> the same shape."""
        y = super().forward(x) if not self.training or not dist.is_initialized() else self._normalize(x)
        for child in self.children():
            y = child(y)
        return y

    def _normalize(self, x: Tensor) -> Tensor:
        dims = [i for i in range(x.ndim) if i != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        x_float = x.to(torch.promote_types(x.dtype, torch.float32))
        sums = AllReduceSum.apply(torch.cat([x_float.sum(dims), x_float.new_tensor([x.numel() / x.shape[1]])]))
        count = sums[-1].detach()
        mean_C = sums[:-1] / count
        centred = x_float - mean_C.view(shape)
        var_C = AllReduceSum.apply(centred.square().sum(dims)) / count
        self._update_running_stats(mean_C.detach(), var_C.detach() * count / (count - 1).clamp_min(1))
        y = centred * torch.rsqrt(var_C + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    def _update_running_stats(self, mean_C: Tensor, var_C: Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(var_C, momentum)


class SyncedBatchNorm(LayerSync):
    """Lightning plugin that makes every batch norm of a model synchronised; weights and their names do not change."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Replaces the batch norms; returns the model.

        Raises:
            InputError: a subclass of batch norm with its own `forward`, other than timm's.
        """
        norms = [
            (module, name, child)
            for module in model.modules()
            for name, child in module.named_children()
            if isinstance(child, _BatchNorm) and not isinstance(child, CPUSyncBatchNorm | nn.SyncBatchNorm)
        ]
        timm = sys.modules.get("timm.layers")  # imported already if the model uses timm
        for _, name, norm in norms:
            if type(norm).forward is not _BatchNorm.forward and not (timm and type(norm) is timm.BatchNormAct2d):
                raise InputError(
                    f"trainer.sync_batchnorm: {name} is a {type(norm).__name__}, which computes something else than "
                    "torch's batch norm and cannot be synchronised. Set trainer.sync_batchnorm=false"
                )
        if dist.get_backend() != "gloo":  # timm's function is torch's, extended to timm's norms
            return (timm or nn.SyncBatchNorm).convert_sync_batchnorm(model)
        for module, name, norm in norms:
            setattr(module, name, _cpu_sync_batch_norm(norm))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Returns the model: in eval mode the layers are ordinary batch norms."""
        return model


def _cpu_sync_batch_norm(norm: _BatchNorm) -> CPUSyncBatchNorm:
    synced = CPUSyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    synced._parameters, synced._buffers = norm._parameters, norm._buffers  # the same objects, known to the optimizer
    for name, child in norm.named_children():
        synced.add_module(name, child)
    synced.training = norm.training
    return synced


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP strategy with data parallelism over all processes, and ordinary single-file checkpoints."""

    def __init__(self, *, sync_batchnorm: bool = True, process_group_backend: str | None = None):
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )
        self.sync_batchnorm = sync_batchnorm

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shards a model's parameters over a mesh of processes (FSDP2), block by block."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # fully_shard requires it
    for block in model.blocks():  # type: ignore[operator] # a `VideoModel`
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
