"""Squeeze-and-Excitation (Hu et al. 2018): https://arxiv.org/abs/1709.01507"""

from collections.abc import Mapping

from torch import Tensor, nn

from regard import ops
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register


def _parameters(channels: int, *, reduction: int, bias: bool) -> int:
    hidden = max(1, channels // reduction)
    return 2 * channels * hidden + bias * (channels + hidden)


def _translate(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    channel: int | None = None,
    reduction: int | None = None,
    out_channel: int | None = None,
    version: int = 1,
) -> Translation:
    hidden, width = tensors["fc.0.weight"].shape[:2]
    channels = channel or channels or width
    if out_channel not in (None, channels) or version != 1:
        raise ValueError(f"out_channel is {channels}, as the gate weighs its own input, and version is 1")
    options = {"reduction": reduction or channels // hidden, "bias": "fc.0.bias" in tensors}
    return channels, options, {"fc.0": "down", "fc.2": "up"}


@register(
    "se",
    category="channel",
    paper="Hu et al. 2018, arXiv 1709.01507",
    place="branches",
    parameters=_parameters,
    hidden=lambda se: [se.down],
    official={"se": _translate, "se_nobias": _translate},
)
class SE(nn.Module):
    """Weigh each channel by a small network that sees every channel's average.

    Paper:    Hu et al. 2018, Squeeze-and-Excitation Networks, arXiv 1709.01507, sections 3.1-3.2.
    Category: channel; one number per channel and image, the same at every pixel.
    Formula:  s = mean_HW(x);  z = relu(W1 s + b1);  y = x * sigmoid(W2 z + b2)
    Shape:    x, y: (B, C, *spatial);  s, gate: (B, C, 1, ...)
    Cost:     2 C^2 / r + C + C / r parameters; reads x twice, writes it once.
    Place:    branches: the end of each residual branch, before the addition.
    Differs:  The paper's equations show no biases, the authors' released networks have them; so has this one, and
              `bias=False` gives the paper's form. Fewer channels than `reduction` leave the authors' formula no hidden
              unit at all (the gate is then a constant); here at least one stays. Popular copies drop the biases, round
              the width to multiples of 8, or swap the names of the two activations.
              With `start="identity"` a hidden layer of fewer than 16 units starts with W1 = 0 and b1 = 1: random
              units could be 0 for every image, and a gate whose units all are never learns.
    Maps:     `gate`, channel, values in (0, 1).

    Args:
        channels: C.
        reduction: r, how many times narrower the hidden layer is.
        bias: whether the two layers have biases.

    Example:
        >>> import regard, torch
        >>> regard.create("se", 64)(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])
    """

    def __init__(self, channels: int, *, reduction: int = 16, bias: bool = True) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.down = nn.Linear(channels, hidden, bias=bias)
        self.up = nn.Linear(hidden, channels, bias=bias)
        self.gate = Tap("channel")

    def forward(self, x: Tensor) -> Tensor:
        return ops.recalibrate(x, self.gate, down=self.down, up=self.up)
