"""Bottleneck Attention Module (Park et al. 2018): https://arxiv.org/abs/1807.06514"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError
from regard.layers.conv import Pointwise, conv
from regard.layers.norm import BatchNorm
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register

WIDEST = 64  # dilation: a map is padded by as much on every side


def _parameters(channels: int, *, reduction: int, spatial_dims: int, **_: Any) -> int:
    hidden = max(1, channels // reduction)
    channel = 2 * channels * hidden + channels + 3 * hidden
    return channel + channels * hidden + 3 * hidden + 2 * (3**spatial_dims * hidden**2 + 3 * hidden) + hidden + 1


def _translate(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    gate_channel: int | None = None,
    reduction_ratio: int | None = None,
    dilation_conv_num: int = 2,
    dilation_val: int = 4,
) -> Translation:
    if dilation_conv_num != 2:
        raise ValueError(f"BAM has two dilated convolutions (dilation_conv_num=2), got {dilation_conv_num}")
    hidden, width = tensors["channel_att.gate_c.gate_c_fc_0.weight"].shape
    channels = gate_channel or channels or width
    names = {
        "channel_att.gate_c.gate_c_fc_0": "down",
        "channel_att.gate_c.gate_c_bn_1": "norm",
        "channel_att.gate_c.gate_c_fc_final": "up",
        "spatial_att.gate_s.gate_s_conv_reduce0": "reduce",
        "spatial_att.gate_s.gate_s_bn_reduce0": "reduce_norm",
        "spatial_att.gate_s.gate_s_conv_final": "mask",
    }
    for i in range(2):
        names |= {
            f"spatial_att.gate_s.gate_s_conv_di_{i}": f"dilated.{i}",
            f"spatial_att.gate_s.gate_s_bn_di_{i}": f"dilated_norms.{i}",
        }
    return channels, {"reduction": reduction_ratio or channels // hidden, "dilation": dilation_val}, names


@register(
    "bam",
    category="channel and spatial",
    paper="Park et al. 2018, arXiv 1807.06514",
    place="transitions",
    parameters=_parameters,
    hidden=lambda bam: [bam.norm, bam.reduce_norm, *bam.dilated_norms],
    official={"bam": _translate},
)
class BAM(nn.Module):
    """Lift pixels and channels by a gate between 1 and 2, made of one logit per channel and one per pixel.

    Paper:    Park et al. 2018, BAM: Bottleneck Attention Module, arXiv 1807.06514, section 3.
    Category: channel and spatial; one number per channel and pixel, from one logit per channel and one per pixel.
    Formula:  c = W2 relu(norm(W1 mean_HW(x) + b1)) + b2;  s = conv_1x1(d(d(relu(norm(conv_1x1(x))))));
              d(t) = relu(norm(conv_3x3_dilated(t)));  y = x * (1 + sigmoid(c * s))
    Shape:    x, y, gate: (B, C, *spatial);  c: (B, C, 1, ...);  s: (B, 1, *spatial);  hidden width M = C / r
    Cost:     3 C M + C + 18 M^2 + 13 M + 1 parameters; reads x three times, writes a gate of its size, and y.
    Place:    transitions: between the stages of a network, after each but the last; not inside the blocks.
    Differs:  The paper adds the two logits, the released code (and its weights) multiplies them: `combine="sum"` or
              `"product"`. The paper puts a batch norm at the end of each branch; the released code has it after the
              hidden layers, and so has this. The released code pools squares of the map's height, so that maps up to
              twice as wide as high lose their right part and all others but squares raise; here the whole map is
              averaged. It cannot
              be built as released (an undefined name). Fewer channels than `reduction` leave the authors no hidden
              unit; here at least one stays. Popular copies forget the padding that a dilation needs, so that the map
              shrinks and is broadcast from a single pixel, or add a third hidden layer.
              With `start="identity"` the norms of hidden layers of fewer than 16 units start with biases of 2, so that
              few units start shut.
    Maps:     `gate`, element, values in (1, 2).

    Args:
        channels: C.
        reduction: r, how many times narrower the hidden layers are.
        dilation: of the two 3x3 convolutions.
        combine: ``"product"`` (the released code) or ``"sum"`` (the paper) of the two logits.
        spatial_dims: number of spatial axes of the map: 1, 2 or 3.

    Example:
        >>> import regard, torch
        >>> regard.create("bam", 64)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        dilation: int = 4,
        combine: str = "product",
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        if dilation > WIDEST:
            raise UserError(f"bam: dilation is at most {WIDEST} pixels, got {dilation}")
        if combine not in ("product", "sum"):
            raise UserError(f"bam: combine is 'product' (the released code) or 'sum' (the paper), got {combine!r}")
        self.combine = combine
        hidden = max(1, channels // reduction)
        self.down = nn.Linear(channels, hidden)
        self.norm = BatchNorm(hidden)
        self.up = nn.Linear(hidden, channels)
        self.reduce = Pointwise(channels, hidden)
        self.reduce_norm = BatchNorm(hidden)
        self.dilated = nn.ModuleList(
            conv(spatial_dims, hidden, hidden, 3, padding=dilation, dilation=dilation) for _ in range(2)
        )
        self.dilated_norms = nn.ModuleList(BatchNorm(hidden) for _ in range(2))
        self.mask = Pointwise(hidden, 1)
        self.gate = Tap("element", low=1.0, high=2.0)

    def forward(self, x: Tensor) -> Tensor:
        _, mean = ops.squeeze(x, tuple(range(2, x.dim())))
        channel = self.up(torch.relu(self.norm(self.down(mean.flatten(1))))).view(mean.shape)
        s = torch.relu(self.reduce_norm(self.reduce(x)))
        for dilated, norm in zip(self.dilated, self.dilated_norms, strict=True):
            s = torch.relu(norm(dilated(s)))
        spatial = self.mask(s)
        logits = channel * spatial if self.combine == "product" else channel + spatial
        return ops.gate(x, self.gate(1 + torch.sigmoid(logits)))

    def extra_repr(self) -> str:
        return f"combine={self.combine}"
