"""Which maps and which devices the kernels in Triton take."""

from __future__ import annotations

from functools import cache

import torch
import triton
from torch import Tensor

from regard.ops.kernels.plan import order


def why_not(x: Tensor) -> str | None:
    """Why no kernel reads this map, or None."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"needs float32, bfloat16 or float16, got {x.dtype}"
    if x.dim() < 2 or not order(x):
        return f"needs a map that is dense along some axis beside the batch, got strides {x.stride()}"
    span = sum(side * stride for side, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    if x.numel() == 0 or span >= 2**31:
        return f"needs images of between 1 and 2^31 numbers, got the shape {tuple(x.shape)}"
    return _missing(x.device)


@cache
def _missing(device: torch.device) -> str | None:
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 3):
        return f"needs Triton 3.3 or newer, got {triton.__version__}"
    if device.type == "cuda" and torch.version.cuda and torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or higher"
    return None
