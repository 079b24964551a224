"""The reference implementation of `convolve`: plain torch, any device, dtype and rank."""

from torch import Tensor
from torch.nn import functional as F

FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def run(x: Tensor, weight: Tensor) -> Tensor:
    return FUNCTIONS[x.dim() - 2](x, weight, padding=[side // 2 for side in weight.shape[2:]])
