"""Holistic Attention Network (Niu et al. 2020): https://arxiv.org/abs/2008.08767"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regard.base.errors import UserError
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register, wrong_axes

PAPER = "Niu et al. 2020, arXiv 2008.08767"


def _translate(tensors: Mapping[str, Tensor], channels: int | None, *, in_dim: int | None = None) -> Translation:
    return in_dim or channels, {}, {}


@register(
    "layer_attention",
    category="layer",
    attention="self",
    paper=PAPER,
    place=None,
    signature="(B, L, C, *spatial) -> (B, L C, *spatial)",
    parameters=lambda channels: 1,
    identity=None,
    official={"layer_attention": _translate},
)
class LayerAttention(nn.Module):
    """Add to the map of every layer the maps of all layers, weighed by how they go together.

    Paper:    Niu et al. 2020, Single Image Super-Resolution via a Holistic Attention Network, arXiv 2008.08767,
              section 3.2.
    Category: layer; weights between all pairs of layers.
    Formula:  e = x x^T over channels and pixels;  w_ij = softmax_j(max_j e_ij - e_ij);
              y_i = x_i + gamma sum_j w_ij x_j
    Shape:    x: (B, L, C, *spatial);  e, w: (B, L, L);  y: (B, L C, *spatial)
    Cost:     1 parameter; reads x four times, writes it twice.
    Place:    it takes the maps of several layers, stacked: call it on the outputs of the groups of a network; a
              convolution back to C channels follows.
    Differs:  As the released code: the sign of the energies is turned round, as in DANet's code, so that layers that
              are alike weigh little, while the paper's equation has a plain softmax. Neither projects the maps.
              gamma starts at 0: a fresh module only stacks the channels.
    Maps:     `weights`, pair, of layers, values in (0, 1).

    Args:
        channels: C of each layer.

    Example:
        >>> import regard, torch
        >>> maps = [torch.randn(2, 8, 7, 9) for layer in range(5)]
        >>> regard.create("layer_attention", 8)(torch.stack(maps, dim=1)).shape
        torch.Size([2, 40, 7, 9])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.weights = Tap("pair", rest=None)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 4 or x.shape[2] != self.channels:
            raise UserError(
                f"layer_attention takes stacked layers (B, L, {self.channels}, ...), got {tuple(x.shape)}: "
                "torch.stack(maps, dim=1) makes them"
            )
        layers = x.flatten(2)
        # softmax takes the row's maximum off by itself: only the sign is left of the authors' line
        weights = self.weights(torch.softmax(-(layers @ layers.transpose(1, 2)), dim=-1))
        y = (weights.to(x.dtype) @ layers).reshape(x.shape)
        return (x + (self.gamma * y).to(x.dtype)).flatten(1, 2)


@register(
    "csam",
    category="channel and spatial",
    paper=PAPER,
    place="head",
    signature="(B, C, H, W) -> same",
    parameters=lambda channels: 29,
    identity=None,
    official={"han_csam": _translate},
    cannot_export={
        "channels_last": "torch converts all weights of four or five axes alike, and refuses the five of this 3-D "
        "kernel. Convert the network before attaching: then the layout is kept"
    },
)
class CSAM(nn.Module):
    """Weigh every value of a map by those around it, in the neighbouring channels too.

    Paper:    Niu et al. 2020, Single Image Super-Resolution via a Holistic Attention Network, arXiv 2008.08767,
              section 3.3 (channel-spatial attention).
    Category: channel and spatial; one number per channel and pixel.
    Formula:  a = sigmoid(conv_3x3x3(x) + b), over channels, rows and columns;  y = x + gamma a x
    Shape:    x, y, a: (B, C, H, W)
    Cost:     29 parameters; reads x three times, writes it three times.
    Place:    head: the authors put it once, on the last map of the network's body.
    Differs:  Nothing from the released code. The channels are taken as an axis of space, so that their order has a
              meaning for it. gamma starts at 0, so that a fresh module is the identity.
    Maps:     `gate`, element, values in (0, 1).

    Args:
        channels: C; nothing depends on it.

    Example:
        >>> import regard, torch
        >>> regard.create("csam", 16)(torch.randn(2, 16, 7, 9)).shape
        torch.Size([2, 16, 7, 9])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1)
        self.gate = Tap("element", rest=None)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise wrong_axes("csam", x.dim() - 2)
        gate = self.gate(torch.sigmoid(self.conv(x.unsqueeze(1))).squeeze(1))
        return x + x * (self.gamma * gate).to(x.dtype)
