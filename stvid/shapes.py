"""Sizes as integers: what a convolution leaves of an axis."""

from __future__ import annotations


def conv_output_size(size: int, *, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """`floor((size + 2*padding - kernel) / stride) + 1`: outputs along one axis, below 1 where none fits.

    >>> conv_output_size(224, kernel=3)
    222
    """
    return (size + 2 * padding - kernel) // stride + 1
