"""Records memory and multiply-adds of a computation: which memory is in use, which layer filled it, what is multiplied.

T time steps   B samples   I inputs of a recurrent layer   H its hidden states
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
STATE, INPUT = "(state)", "(input)"  # owners that are no layers: model, gradients and optimizer; the batch
CUDA_BLOCK = 512  # bytes; torch's CUDA allocator rounds up to whole blocks
CONVOLUTION_PASSES = {aten.convolution: 1, aten.convolution_backward: 2}


@dataclass
class Allocation:
    """Memory in use: bytes, the layer that filled it, and a reference that tells when it is freed."""

    size: int
    owner: str
    reference: weakref.ref


class MemoryTracker(TorchDispatchMode):
    """While entered, sees every operator that runs, below autograd and autocast.

    A storage counts from the operator that allocates it until the last tensor that uses it is gone, tensors saved by
    autograd included. So the numbers are right for in-place layers, views and activation checkpointing.

    Args:
        device: `cpu` or `cuda`: whose workspace memory and block size to assume.

    Attributes:
        owner: layer to which new memory and multiply-adds are attributed; the caller sets it.
        bytes_in_use: now.
        peak: maximum of `bytes_in_use` since `reset_peak`.
        macs: owner -> multiply-adds.
    """

    def __init__(self, *, device: str) -> None:
        super().__init__()
        self.device = device
        self.owner = STATE
        self.bytes_in_use = self.peak = 0
        self.macs: dict[str, int] = defaultdict(int)
        self._allocations: dict[int, Allocation] = {}

    def reset_peak(self) -> None:
        self.peak = self.bytes_in_use

    def bytes_by_owner(self) -> dict[str, int]:
        """Owner -> bytes in use now."""
        totals: dict[str, int] = defaultdict(int)
        for allocation in self._allocations.values():
            totals[allocation.owner] += allocation.size
        return dict(totals)

    def track(self, tensor: Tensor, owner: str, size: int | None = None) -> None:
        """Adds a tensor's memory unless it is tracked already.

        Args:
            tensor: any.
            owner: the layer that filled it.
            size: bytes; None: those of its storage.
        """
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._allocations:
            return
        size = storage.nbytes() if size is None else size
        if self.device == "cuda":
            size = -(-size // CUDA_BLOCK) * CUDA_BLOCK
        self._allocations[key] = Allocation(size, owner, weakref.ref(storage, lambda _: self._release(key)))
        self.bytes_in_use += size
        self.peak = max(self.peak, self.bytes_in_use)

    def _release(self, key: int) -> None:
        self.bytes_in_use -= self._allocations.pop(key).size

    def __torch_dispatch__(self, function: OpOverload, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        owner = self.owner
        if function is aten._to_copy.default and self._owner_of(args[0]) == STATE:
            owner = STATE  # autocast's copy of a weight: it does not grow with the batch
        if function.overloadpacket is aten.mkldnn_rnn_layer:
            *_, train = args
            self.track(result[3], owner, lstm_workspace_bytes(args[0], args[2]) if train else 0)
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.track(value, owner)
        self.macs[self.owner] += multiply_adds(function, args, kwargs or {}, result)
        self.peak = max(self.peak, self.bytes_in_use + self._workspace_bytes(function, args))
        return result

    def _owner_of(self, tensor: Tensor) -> str | None:
        allocation = self._allocations.get(id(tensor.untyped_storage()))
        return allocation.owner if allocation else None

    def _workspace_bytes(self, function: OpOverload, args: tuple) -> int:
        """Memory that an operator allocates and frees internally, so that no tensor shows it.

        On a CPU, oneDNN copies a convolution's weights into a blocked layout, in the backward pass also the gradient
        of the weights. On CUDA, cuDNN's workspace depends on the algorithm it chooses, which is not known beforehand.
        """
        passes = CONVOLUTION_PASSES.get(function.overloadpacket, 0)
        if self.device != "cpu" or not passes:
            return 0
        weight = args[passes]  # convolution(input, weight), convolution_backward(grad, input, weight)
        return passes * weight.numel() * weight.element_size()


def multiply_adds(function: OpOverload, args: tuple, kwargs: dict, result: object) -> int:
    """Multiply-adds of one operator: half of torch's FLOP count; 0 for all but convolutions, products and attention.

    torch does not count the fused LSTM of CPUs. Its weights are `4H x I` and `4H x H`; each step of each sequence
    multiplies every weight once: `T * B * 4H * (I + H)` forward, twice that backward. Nor does it count CPU attention.
    """
    packet = function.overloadpacket
    if packet is aten.convolution_backward:  # torch's own count ignores groups
        gradient, volume, weight, *_, transposed, _, _, output_mask = args
        return sum(output_mask[:2]) * (volume if transposed else gradient).numel() * weight[0].numel()
    if packet is aten.mkldnn_rnn_layer:
        return _lstm_multiply_adds(*args[:3])
    if packet is aten.mkldnn_rnn_layer_backward:
        return 2 * _lstm_multiply_adds(*args[:3])
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3])) // 2
    if packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4])) // 2
    flop_count = flop_registry.get(packet)
    return flop_count(*args, **kwargs, out_val=result) // 2 if flop_count else 0


def _lstm_multiply_adds(sequence_TBI: Tensor, input_weights: Tensor, hidden_weights: Tensor) -> int:
    steps = sequence_TBI.shape[0] * sequence_TBI.shape[1]
    return steps * (input_weights.numel() + hidden_weights.numel())


def lstm_workspace_bytes(sequence_TBI: Tensor, hidden_weights: Tensor) -> int:
    """Memory that oneDNN's fused LSTM keeps for its backward pass in addition to its result: gates and states.

    `B * (24 * (T + 1) * max(I, H) + 40 * T * H)` bytes and a few pages; fitted to measurements of torch 2.15, to 15 %.
    """
    steps, batch, inputs = sequence_TBI.shape
    hidden = hidden_weights.shape[1]
    return batch * (24 * (steps + 1) * max(inputs, hidden) + 40 * steps * hidden) + 5 * 4096
