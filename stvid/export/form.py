"""A form in which a trained model leaves Python: a module, and the names, types and shapes of what goes in and out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a form.

    Attributes:
        name: in the exported file.
        dtype: type of its numbers.
        shape: a size for each axis; a name, such as `batch` or `time`, for one that may differ from call to call.
            Axes of the same name have the same size.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def zeros(self, **sizes: int) -> Tensor:
        """Zeros of this type and shape, with these sizes for the axes that have names."""
        shape = [sizes[size] if isinstance(size, str) else size for size in self.shape]
        return torch.zeros(shape, dtype=self.dtype)


@dataclass(frozen=True, kw_only=True)
class Form:
    """What is exported.

    Attributes:
        module: in evaluation mode, on the CPU, float32; takes the inputs by position and returns the only output, or a
            tuple of all outputs.
        inputs: in the order of the module's arguments.
        outputs: in the order of what it returns.
        example: inputs to trace the module with. Axes with a name have at least 2 entries there, and different names
            different sizes: a tracer takes 1 for a constant, and equal sizes for equal axes.
    """

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: tuple[Tensor, ...]
