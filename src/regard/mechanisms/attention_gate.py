"""The attention gate of Attention U-Net (Oktay et al. 2018): https://arxiv.org/abs/1804.03999"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard import ops
from regard.layers.conv import conv
from regard.layers.norm import BatchNorm
from regard.layers.tap import Tap
from regard.registry.registration import register

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _parameters(
    channels: int, *, gating: int | None, hidden: int | None, stride: int, project: bool, spatial_dims: int
) -> int:
    gating, hidden = gating or channels, hidden or max(1, channels // 2)
    mask = hidden * (channels * stride**spatial_dims + gating + 2) + 1
    return mask + project * channels * (channels + 3)


def _formula(x: Tensor, g: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The paper's equations, and the projection of the released code. W_x takes the map block by block."""
    blocks, kernel = x, weights["from_skip.weight"]
    for axis, stride in enumerate(kernel.shape[2:], start=2):
        if (missing := stride - blocks.shape[axis]) > 0:
            shape = [missing if place == axis else side for place, side in enumerate(blocks.shape)]
            blocks = torch.cat([blocks, blocks.new_zeros(shape)], axis)
        blocks = blocks.unfold(axis, stride, stride)
    seen = torch.einsum("bc...k,ock->bo...", blocks.flatten(2 - x.dim()), kernel.flatten(2))
    told = _pixelwise(g, weights, "from_gating")
    f = torch.relu(seen + F.interpolate(told, seen.shape[2:], mode=LINEAR[x.dim() - 2]))
    m = torch.sigmoid(_pixelwise(f, weights, "score"))
    y = x * F.interpolate(m, x.shape[2:], mode=LINEAR[x.dim() - 2])
    if "project.0.weight" not in weights:
        return y
    mean, variance, scale, shift = (
        weights[f"project.1.{name}"].view(-1, *[1] * (x.dim() - 2))
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (_pixelwise(y, weights, "project.0") - mean) / (variance + 1e-5).sqrt() * scale + shift


def _pixelwise(x: Tensor, weights: Mapping[str, Tensor], layer: str) -> Tensor:
    """A 1x1 convolution, written out."""
    y = torch.einsum("bi...,oi->bo...", x, weights[f"{layer}.weight"].flatten(1))
    return y + weights[f"{layer}.bias"].view(-1, *[1] * (x.dim() - 2))


@register(
    "attention_gate",
    category="spatial",
    paper="Oktay et al. 2018, arXiv 1804.03999",
    place=None,
    signature="(B, C, *spatial), (B, gating, *coarse) -> same",
    parameters=_parameters,
    identity=None,
    formula=_formula,
)
class AttentionGate(nn.Module):
    """Let a coarser map, which has seen more of the image, say which pixels of a skip connection to pass on.

    Paper:    Oktay et al. 2018, Attention U-Net, arXiv 1804.03999, section 2.
    Category: spatial; one number per pixel, the same for every channel.
    Formula:  f = relu(W_x x + up(W_g g + b_g));  m = up(sigmoid(w f + b));  y = norm(W (x * m) + b_w)
    Shape:    x, y: (B, C, *spatial);  g: (B, gating, *coarse), any size;  f: (B, hidden, *spatial / stride);
              m: (B, 1, *spatial)
    Cost:     3 C^2 + gating C / 2 + 4 C + 1 parameters with hidden = C / 2; reads x three times, writes it twice.
    Place:    it takes two maps: call it on each skip connection of a U-Net, with the map of the decoder below it.
    Differs:  As the released code. The paper's equations end at x * m; the code adds a 1x1 convolution and a batch norm
              behind it, which `project=False` leaves out. The paper's W_x is 1x1 on maps brought to one size; in the
              code it is a convolution of 2 with stride 2 and no bias, and an odd last row is not seen. Here a side of
              one pixel is filled up with zeros, where the code fails. `up` is bilinear between the edges of the maps,
              as in torch from 0.4 on; before, it went between the centres of the outermost pixels. One of the released
              networks has two gates side by side on each skip, with `hidden` of C. Popular copies take both maps at one
              size, add batch norms to W_x, W_g and w, and do not project.
    Maps:     `mask`, spatial, values in (0, 1).

    Args:
        channels: C, of the skip connection.
        gating: channels of the gating map; C if None.
        hidden: channels in which the two are compared; C // 2 if None.
        stride: how many times coarser the mask is than the skip connection.
        project: whether a 1x1 convolution and a batch norm follow.
        spatial_dims: number of spatial axes of the maps: 1, 2 or 3.

    Example:
        >>> import regard, torch
        >>> skip, gating = torch.randn(2, 32, 24, 20), torch.randn(2, 64, 12, 10)
        >>> regard.create("attention_gate", 32, gating=64)(skip, gating).shape
        torch.Size([2, 32, 24, 20])
    """

    def __init__(
        self,
        channels: int,
        *,
        gating: int | None = None,
        hidden: int | None = None,
        stride: int = 2,
        project: bool = True,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        gating, hidden = gating or channels, hidden or max(1, channels // 2)
        self.stride = stride
        self.from_skip = conv(spatial_dims, channels, hidden, stride, stride=stride, bias=False)
        self.from_gating = conv(spatial_dims, gating, hidden, 1)
        self.score = conv(spatial_dims, hidden, 1, 1)
        self.mask = Tap("spatial")
        self.project = (
            nn.Sequential(conv(spatial_dims, channels, channels, 1), BatchNorm(channels)) if project else None
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(layer.weight)
            elif isinstance(layer, BatchNorm):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        """Gate the skip connection, (B, C, \\*spatial), by the gating map, (B, gating, \\*coarse)."""
        missing = [max(0, self.stride - side) for side in skip.shape[2:]]
        seen = self.from_skip(F.pad(skip, [pixels for side in reversed(missing) for pixels in (0, side)]))
        f = torch.relu(seen + self._resize(self.from_gating(gating), seen))
        y = ops.gate(skip, self.mask(self._resize(torch.sigmoid(self.score(f)), skip)))
        return y if self.project is None else self.project(y).to(skip.dtype)

    def _resize(self, x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[2:], mode=LINEAR[x.dim() - 2], align_corners=False)

    def extra_repr(self) -> str:
        return f"stride={self.stride}"
