"""A model too large for one device: its weights, gradients and optimizer are spread over all of them (FSDP).

Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054), by torch's `fully_shard`. Numbers stay those of one process.
"""

from __future__ import annotations

from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard


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
