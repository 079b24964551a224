"""The attention gate of Attention U-Net (Oktay et al. 2018): https://arxiv.org/abs/1804.03999"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard import ops
from regard.base.errors import UserError
from regard.layers.conv import conv
from regard.layers.norm import BatchNorm
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _strides(stride: int | Sequence[int] | None, spatial_dims: int) -> tuple[int, ...]:
    """One for each axis."""
    strides = tuple(stride) if isinstance(stride, Sequence) else (2 if stride is None else stride,) * spatial_dims
    if len(strides) != spatial_dims or any(type(value) is not int or value < 1 for value in strides):
        raise UserError(
            f"attention_gate: stride is a positive whole number, or one for each of {spatial_dims} axes, got {stride!r}"
        )
    return strides


def _parameters(
    channels: int,
    *,
    gating: int | None,
    hidden: int | None,
    stride: int | Sequence[int] | None,
    project: bool,
    spatial_dims: int,
) -> int:
    gating, hidden = gating or channels, hidden or max(1, channels // 2)
    mask = hidden * (channels * math.prod(_strides(stride, spatial_dims)) + gating + 2) + 1
    return mask + project * channels * (channels + 3)


def _translate(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    in_channels: int | None = None,
    gating_channels: int | None = None,
    inter_channels: int | None = None,
    dimension: int | None = None,
    mode: str = "concatenation",
    sub_sample_factor: int | Sequence[int] | None = None,
) -> Translation:
    if mode != "concatenation":
        raise ValueError(f"mode is 'concatenation', the paper's equation, got {mode!r}")
    hidden, width, *kernel = tensors["theta.weight"].shape
    options = {
        "gating": gating_channels or tensors["phi.weight"].shape[1],
        "hidden": inter_channels or hidden,
        "stride": sub_sample_factor or tuple(kernel),
        "spatial_dims": dimension or len(kernel),
    }
    names = {"theta": "from_skip", "phi": "from_gating", "psi": "score", "W": "project"}
    return in_channels or channels or width, options, names


@register(
    "attention_gate",
    category="spatial",
    paper="Oktay et al. 2018, arXiv 1804.03999",
    place=None,
    signature="(B, C, *spatial), (B, gating, *coarse) -> same",
    parameters=_parameters,
    identity=None,
    official={"attention_gate": _translate},
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
              as in torch from 0.4 on; before, it went between the centres of the outermost pixels. The code has two
              more modes, with a softplus for the ReLU, and with a softmax over the pixels for the sigmoid; neither is
              in the paper's equations, nor here. One of the released networks has two gates side by side on each skip,
              with `hidden` of C. Popular copies take both maps at one size, add batch norms to W_x, W_g and w, and do
              not project.
    Maps:     `mask`, spatial, values in (0, 1).

    Args:
        channels: C, of the skip connection.
        gating: channels of the gating map; C if None.
        hidden: channels in which the two are compared; C // 2 if None.
        stride: how many times coarser the mask is than the skip connection, one number or one for each axis; 2 if
            None.
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
        stride: int | Sequence[int] | None = None,
        project: bool = True,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        gating, hidden = gating or channels, hidden or max(1, channels // 2)
        self.stride = _strides(stride, spatial_dims)
        self.from_skip = conv(spatial_dims, channels, hidden, self.stride, stride=self.stride, bias=False)
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
        missing = [max(0, stride - side) for stride, side in zip(self.stride, skip.shape[2:], strict=True)]
        seen = self.from_skip(F.pad(skip, [pixels for side in reversed(missing) for pixels in (0, side)]))
        f = torch.relu(seen + self._resize(self.from_gating(gating), seen))
        y = ops.gate(skip, self.mask(self._resize(torch.sigmoid(self.score(f)), skip)))
        return y if self.project is None else self.project(y).to(skip.dtype)

    def _resize(self, x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[2:], mode=LINEAR[x.dim() - 2], align_corners=False)

    def extra_repr(self) -> str:
        return f"stride={self.stride}"
