"""Efficient Channel Attention (Wang et al. 2020): https://arxiv.org/abs/1910.03151"""

import math
from collections.abc import Mapping

from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register

# the kernel of each stage of the released ResNet-50, whose file name carries "k3557"
RELEASED = {256: 3, 512: 5, 1024: 5, 2048: 7}


def _kernel_size(channels: int, kernel_size: int | str) -> int:
    if kernel_size == "adaptive":
        nearest = int(abs(math.log2(channels) / 2 + 0.5))
        return nearest if nearest % 2 else nearest + 1
    if kernel_size == "released":
        if channels not in RELEASED:
            widths = ", ".join(map(str, RELEASED))
            raise UserError(
                f"eca: kernel_size='released' is known for the widths of ResNet-50 ({widths}), not for {channels} "
                "channels: give an odd number or 'adaptive'"
            )
        return RELEASED[channels]
    if type(kernel_size) is not int or kernel_size < 1 or kernel_size % 2 == 0:
        raise UserError(f"eca: kernel_size is an odd number, 'adaptive' or 'released', got {kernel_size!r}")
    return kernel_size


def _translate(
    tensors: Mapping[str, Tensor], channels: int | None, *, channel: int | None = None, k_size: int | None = None
) -> Translation:
    return channel or channels, {"kernel_size": k_size or tensors["conv.weight"].shape[-1]}, {}


@register(
    "eca",
    category="channel",
    paper="Wang et al. 2020, arXiv 1910.03151",
    place="branches",
    parameters=lambda channels, *, kernel_size: _kernel_size(channels, kernel_size),
    official={"eca": _translate},
    letters=lambda eca: {"k": eca.conv.kernel_size[0]},
    try_channels=256,  # a width that every kernel_size has a kernel for
)
class ECA(nn.Module):
    """Weigh each channel by its own average and those of its neighbours in the channel order.

    Paper:    Wang et al. 2020, ECA-Net, arXiv 1910.03151, section 3.2.
    Category: channel; one number per channel and image, the same at every pixel.
    Formula:  s = mean_HW(x);  y = x * sigmoid(conv1d_k(s));  k = the odd number at or above int(log2(C) / 2 + 1 / 2)
    Shape:    x, y: (B, C, *spatial);  s, gate: (B, C, 1, ...);  the convolution runs along C
    Cost:     k parameters; reads x twice, writes it once.
    Place:    branches: the end of each residual branch, before the addition.
    Differs:  The released code takes k as a plain number (default 3) and knows no adaptive rule; here the paper's rule
              is the default. The released ResNet-50 uses 3, 5, 5, 7 where the rule gives 5, 5, 5, 7:
              `kernel_size="released"`. Popular copies give the convolution a bias, fix k = 3, or never let it fall
              below 3.
    Maps:     `gate`, channel, values in (0, 1).

    Args:
        channels: C.
        kernel_size: an odd number, ``"adaptive"`` (the paper's rule) or ``"released"`` (by the widths of ResNet-50).

    Example:
        >>> import regard, torch
        >>> regard.create("eca", 64)(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])
    """

    def __init__(self, channels: int, *, kernel_size: int | str = "adaptive") -> None:
        super().__init__()
        size = _kernel_size(channels, kernel_size)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)
        self.gate = Tap("channel")

    def forward(self, x: Tensor) -> Tensor:
        return ops.recalibrate(x, self.gate, conv=self.conv)
