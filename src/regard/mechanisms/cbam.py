"""Convolutional Block Attention Module (Woo et al. 2018): https://arxiv.org/abs/1807.06521"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError, near
from regard.layers.conv import conv
from regard.layers.norm import BatchNorm
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register

ARRANGEMENTS = ("channel-spatial", "spatial-channel", "parallel", "channel", "spatial")
SQUEEZES = ("avg", "max", "lp", "lse")


def _squeezes(squeeze: str | Sequence[str]) -> tuple[str, ...]:
    words = squeeze.split("+") if isinstance(squeeze, str) else squeeze
    kinds = tuple(kind for word in words for kind in (("avg", "max") if word == "both" else (word,)))
    if not kinds or any(kind not in SQUEEZES for kind in kinds):
        raise UserError(f"cbam: squeeze is 'both' or any of {', '.join(SQUEEZES)} joined by '+', got {squeeze!r}")
    return kinds


def _parameters(
    channels: int,
    *,
    reduction: int,
    kernel_size: int,
    arrangement: str,
    bias: bool,
    norm: bool,
    spatial_dims: int,
    **_: Any,
) -> int:
    hidden = max(1, channels // reduction)
    channel = 2 * channels * hidden + bias * (channels + hidden)
    spatial = 2 * kernel_size**spatial_dims + 2 * norm
    return (arrangement != "spatial") * channel + (arrangement != "channel") * spatial


def _translate(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    gate_channels: int | None = None,
    reduction_ratio: int | None = None,
    pool_types: Sequence[str] = ("avg", "max"),
    no_spatial: bool = False,
) -> Translation:
    hidden, width = tensors["ChannelGate.mlp.1.weight"].shape
    channels = gate_channels or channels or width
    options = {
        "reduction": reduction_ratio or channels // hidden,
        "squeeze": pool_types,
        "arrangement": "channel" if no_spatial else "channel-spatial",
    }
    if not no_spatial:
        options["kernel_size"] = tensors["SpatialGate.spatial.conv.weight"].shape[-1]
    names = {"ChannelGate.mlp.1": "down", "ChannelGate.mlp.3": "up"}
    return channels, options, names | {"SpatialGate.spatial.conv": "conv", "SpatialGate.spatial.bn": "norm"}


def _translate_spatial(tensors: Mapping[str, Tensor], channels: int | None) -> Translation:
    options = {"arrangement": "spatial", "kernel_size": tensors["spatial.conv.weight"].shape[-1]}
    return channels or 1, options, {"spatial.conv": "conv", "spatial.bn": "norm"}


@register(
    "cbam",
    category="channel and spatial",
    paper="Woo et al. 2018, arXiv 1807.06521",
    place="branches",
    parameters=_parameters,
    hidden=lambda cbam: [cbam.down] if cbam.arrangement != "spatial" else [],
    official={"cbam": _translate, "cbam_channel": _translate, "cbam_spatial": _translate_spatial},
)
class CBAM(nn.Module):
    """Weigh the channels by their averages and maxima, then the pixels by theirs.

    Paper:    Woo et al. 2018, CBAM, arXiv 1807.06521, sections 3 and 4.1.
    Category: channel and spatial; one number per channel, then one per pixel.
    Formula:  g = sigmoid(mlp(mean_HW(x)) + mlp(max_HW(x)));  mlp(s) = W2 relu(W1 s + b1) + b2;  x' = x * g;
              m = sigmoid(norm(conv_k([max_C(x'), mean_C(x')])));  y = x' * m
    Shape:    x, y: (B, C, *spatial);  g: (B, C, 1, ...);  m: (B, 1, *spatial)
    Cost:     2 C^2 / r + C + C / r + 2 k^2 + 2 parameters; reads x three times, writes it once.
    Place:    branches: the end of each residual branch, before the addition.
    Differs:  As the released code, not the paper: the mask has a batch norm (momentum 0.01) whose weight starts at 0,
              so that the mask starts at exactly 0.5; the maximum comes before the mean; the network has biases.
              `norm=False, bias=False` gives the paper's form.
              Fewer channels than `reduction` leave the authors no hidden unit; here at least one stays. The paper does
              not say how its parallel form joins the two: here both read x and both multiply it. Popular copies
              drop the biases, the norm or the hidden activation, add the input a second time, or use a 49x49 kernel.
              With `start="identity"` a hidden layer of fewer than 16 units starts with W1 = 0 and b1 = 1: random
              units could be 0 for every image, and a gate whose units all are never learns.
    Maps:     `gate`, channel, values in (0, 1); `mask`, spatial, values in (0, 1).

    Args:
        channels: C.
        reduction: r, how many times narrower the hidden layer is.
        kernel_size: k, odd; the paper compares 3 and 7.
        squeeze: what the channel part sees of each channel: ``"both"`` (average and maximum), or any of ``"avg"``,
            ``"max"``, ``"lp"`` (root of the sum of squares), ``"lse"`` (log of the sum of exponentials), joined by
            ``+`` or as a sequence.
        arrangement: ``"channel-spatial"``, ``"spatial-channel"``, ``"parallel"``, ``"channel"`` or ``"spatial"``.
        bias: whether the network that sees the channels has biases.
        norm: whether the mask passes a batch norm.
        spatial_dims: number of spatial axes of the map: 1, 2 or 3.

    Example:
        >>> import regard, torch
        >>> regard.create("cbam", 64, arrangement="parallel")(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        kernel_size: int = 7,
        squeeze: str | Sequence[str] = "both",
        arrangement: str = "channel-spatial",
        bias: bool = True,
        norm: bool = True,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        if arrangement not in ARRANGEMENTS:
            hint = near(arrangement, ARRANGEMENTS) or f": it is one of {', '.join(ARRANGEMENTS)}"
            raise UserError(f"cbam has no arrangement {arrangement!r}{hint}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise UserError(f"cbam: kernel_size is an odd number, so that the mask fits the map, got {kernel_size}")
        self.squeeze, self.arrangement = _squeezes(squeeze), arrangement
        if arrangement != "spatial":
            hidden = max(1, channels // reduction)
            self.down = nn.Linear(channels, hidden, bias=bias)
            self.up = nn.Linear(hidden, channels, bias=bias)
            if bias:
                nn.init.zeros_(self.down.bias)
                nn.init.zeros_(self.up.bias)
            self.gate = Tap("channel")
        if arrangement != "channel":
            self.conv = conv(spatial_dims, 2, 1, kernel_size, padding=kernel_size // 2, bias=False)
            nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
            self.norm = BatchNorm(1, momentum=0.01) if norm else nn.Identity()
            if norm:
                nn.init.zeros_(self.norm.weight)  # type: ignore[arg-type]
            self.mask = Tap("spatial")

    def channel_gate(self, joint: ops.Joint, axes: tuple[int, ...], gates: Sequence[Tensor]) -> Tensor:
        squeezed = joint.squeeze(axes, kinds=self.squeeze, gates=gates)
        gate = ops.excite(*(s.flatten(1) for s in squeezed), down=self.down, up=self.up)
        return self.gate(gate.view(squeezed[0].shape))

    def pixel_gate(self, joint: ops.Joint, gates: Sequence[Tensor]) -> Tensor:
        squeezed = joint.squeeze((1,), kinds=("max", "avg"), gates=gates)
        logits = self.norm(ops.convolve(torch.cat(squeezed, dim=1), self.conv))
        return self.mask(torch.sigmoid(logits))

    def forward(self, x: Tensor) -> Tensor:
        parallel = self.arrangement == "parallel"
        axes, joint = tuple(range(2, x.dim())), ops.Joint(x)
        gates: list[Tensor] = []
        for part in ("channel", "spatial") if parallel else self.arrangement.split("-"):
            seen = () if parallel else tuple(gates)
            channel = part == "channel"
            gates.append(self.channel_gate(joint, axes, seen) if channel else self.pixel_gate(joint, seen))
        return joint.gate(*gates)

    def extra_repr(self) -> str:
        return f"squeeze={'+'.join(self.squeeze)}, arrangement={self.arrangement}"
