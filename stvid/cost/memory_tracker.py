"""Keeps the books of a computation: which memory is held, who filled it, how much is multiplied."""

from __future__ import annotations

import weakref
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
STATE, INPUT = "(state)", "(input)"  # owners of memory that are no layers
CUDA_BLOCK = 512  # bytes; torch's CUDA allocator gives whole blocks
CONVOLUTIONS = {aten.convolution: 1, aten.convolution_backward: 2}


@dataclass
class Holding:
    """Memory that is held now."""

    size: int
    owner: str
    reference: weakref.ref


class MemoryTracker(TorchDispatchMode):
    """While entered, sees every operator that runs, after autograd and autocast have had their say.

    A storage counts from the operator that made it until the last tensor (or saved tensor of autograd's) that uses it
    is gone. So the books hold for what eager torch does, in-place layers, views and recomputation included.

    Args:
        device: `cpu` or `cuda`: whose temporary memory and whose block size.

    Attributes:
        owner: to whom new memory and multiply-adds go; the caller sets it.
        held: bytes held now.
        peak: the most there was at once since `reset_peak`.
        macs: multiply-adds by owner.
    """

    def __init__(self, *, device: str):
        super().__init__()
        self.device = device
        self.owner = STATE
        self.held = self.peak = 0
        self.macs: dict[str, int] = defaultdict(int)
        self._holdings: dict[int, Holding] = {}

    def reset_peak(self) -> None:
        self.peak = self.held

    def by_owner(self) -> dict[str, int]:
        """Bytes held now, for each owner."""
        sums: dict[str, int] = defaultdict(int)
        for holding in self._holdings.values():
            sums[holding.owner] += holding.size
        return dict(sums)

    def note(self, tensor: Tensor, owner: str, size: int | None = None) -> None:
        """Enters a tensor's memory, unless it is there already; `size` where the tensor does not tell it."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._holdings:
            return
        size = storage.nbytes() if size is None else size
        if self.device == "cuda":
            size = -(-size // CUDA_BLOCK) * CUDA_BLOCK
        self._holdings[key] = Holding(size, owner, weakref.ref(storage, lambda _: self._release(key)))
        self.held += size
        self.peak = max(self.peak, self.held)

    def _release(self, key: int) -> None:
        self.held -= self._holdings.pop(key).size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        owner = self.owner
        if function is aten._to_copy.default and self._owner_of(args[0]) == STATE:
            owner = STATE  # autocast's copy of a weight: once, however large the batch
        if function.overloadpacket is aten.mkldnn_rnn_layer:
            *_, train = args
            self.note(result[3], owner, lstm_workspace_bytes(args[0], args[2]) if train else 0)
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.note(value, owner)
        self.macs[self.owner] += multiply_adds(function, args, kwargs or {}, result)
        self.peak = max(self.peak, self.held + self._scratch_bytes(function, args))
        return result

    def _owner_of(self, tensor: Tensor) -> str | None:
        holding = self._holdings.get(id(tensor.untyped_storage()))
        return holding.owner if holding else None

    def _scratch_bytes(self, function, args: tuple) -> int:
        """Memory that an operator takes and gives back before it returns, which no tensor shows.

        oneDNN turns a convolution's weights into a blocked order of its own, and in the backward pass the gradient of
        the weights too. What cuDNN takes depends on the algorithm that it finds quickest, and is not known beforehand.
        """
        copies = CONVOLUTIONS.get(function.overloadpacket, 0)
        if self.device != "cpu" or not copies:
            return 0
        weight = args[copies]  # convolution(input, weight), convolution_backward(grad, input, weight)
        return copies * weight.numel() * weight.element_size()


def multiply_adds(function, args: tuple, kwargs: dict, result: object) -> int:
    """Of one operator: half of torch's count for convolutions, matrix products and attention; 0 for all others.

    torch has no count for the fused LSTM of CPUs. Its weights are `4H x I` and `4H x H`, and every step of every
    sequence meets each of them once: `T * B * 4H * (I + H)`, and twice that backward. Nor has it one for CPU attention.
    """
    packet = function.overloadpacket
    if packet is aten.convolution_backward:  # torch's own count of it leaves groups out of account
        gradient, volume, weight, *_, transposed, _, _, wanted = args
        return sum(wanted[:2]) * (volume if transposed else gradient).numel() * weight[0].numel()
    if packet is aten.mkldnn_rnn_layer:
        return _recurrent(*args[:3])
    if packet is aten.mkldnn_rnn_layer_backward:
        return 2 * _recurrent(*args[:3])
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3])) // 2
    if packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4])) // 2
    count = flop_registry.get(packet)
    return count(*args, **kwargs, out_val=result) // 2 if count else 0


def _recurrent(sequence_TBI: Tensor, input_weights: Tensor, state_weights: Tensor) -> int:
    steps = sequence_TBI.shape[0] * sequence_TBI.shape[1]
    return steps * (input_weights.numel() + state_weights.numel())


def lstm_workspace_bytes(sequence_TBI: Tensor, state_weights: Tensor) -> int:
    """What oneDNN's fused LSTM keeps for its backward pass beside its result: gates, states, room for gradients.

    `B * (24 * (T + 1) * max(I, H) + 40 * T * H)` bytes and a few pages; found by measuring torch 2.15, to 15 %.
    """
    steps, batch, inputs = sequence_TBI.shape
    hidden = state_weights.shape[1]
    return batch * (24 * (steps + 1) * max(inputs, hidden) + 40 * steps * hidden) + 5 * 4096
