"""Which tensors the kernels in C++ take, and which results they write past the caches."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.ops.kernels.library import missing
from regard.ops.kernels.plan import lay, order

# bytes of a result from which on it is written past the caches, and bytes of a row that make it worth while
PAST_THE_CACHE = 16 << 20
LONG_ROW = 1024

CPU = torch.device("cpu")  # whatever the default device is


def why_not(x: Tensor) -> str | None:
    """Why no kernel reads this map, were it on the CPU, or None."""
    if x.dim() < 2 or not order(x):
        return f"needs a map that is dense along some axis beside the batch, got strides {x.stride()}"
    return why_not_plain(x)


def why_not_plain(x: Tensor) -> str | None:
    """Why no kernel takes this tensor, were it on the CPU, however it lies in memory, or None."""
    if x.dtype not in (torch.float32, torch.bfloat16):
        return f"needs float32 or bfloat16, got {x.dtype}"
    if not 0 < x.numel() < 2**31:
        return f"needs between 1 and 2^31 numbers, got {x.numel()}"
    return missing()


def past_the_cache(x: Tensor, row: int) -> bool:
    """Whether a result of this map's size, in rows of so many numbers, is written past the caches."""
    return x.numel() * x.element_size() >= PAST_THE_CACHE and worth_while(row * x.element_size())


def worth_while(row: int) -> bool:
    """Whether rows of so many bytes are worth writing past the caches."""
    return row >= LONG_ROW or row % 64 == 0


def is_laid(small: Tensor, axes: tuple[int, ...]) -> bool:
    """Whether a kernel can read a small tensor as it is, beside a map with these axes."""
    return lay(small, axes).data_ptr() == small.data_ptr()
