"""Concurrent spatial and channel squeeze and excitation (Roy et al. 2018): https://arxiv.org/abs/1803.02579"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError
from regard.layers.conv import Pointwise
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register

COMBINE = ("max", "add")
ARRANGEMENTS = ("parallel", "channel", "spatial")


def _parameters(channels: int, *, reduction: int, arrangement: str, **_: Any) -> int:
    hidden = max(1, channels // reduction)
    channel = 2 * channels * hidden + channels + hidden
    return (arrangement != "spatial") * channel + (arrangement != "channel") * (channels + 1)


def _translate(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    num_channels: int | None = None,
    reduction_ratio: int | None = None,
) -> Translation:
    hidden, width = tensors["cSE.fc1.weight"].shape
    channels = num_channels or channels or width
    names = {"cSE.fc1": "down", "cSE.fc2": "up", "sSE.conv": "pixel"}
    return channels, {"reduction": reduction_ratio or channels // hidden}, names


def _translate_spatial(
    tensors: Mapping[str, Tensor], channels: int | None, *, num_channels: int | None = None
) -> Translation:
    channels = num_channels or channels or tensors["conv.weight"].shape[1]
    return channels, {"arrangement": "spatial"}, {"conv": "pixel"}


@register(
    "scse",
    category="channel and spatial",
    paper="Roy et al. 2018, arXiv 1803.02579",
    place="branches",
    parameters=_parameters,
    hidden=lambda scse: [scse.down] if scse.arrangement != "spatial" else [],
    official={"scse": _translate, "sse": _translate_spatial},
)
class SCSE(nn.Module):
    """Weigh the channels by their averages, the pixels by their channels, and keep the larger of the two answers.

    Paper:    Roy et al. 2018, Concurrent Spatial and Channel Squeeze and Excitation, arXiv 1803.02579, section 2.
    Category: channel and spatial; one number per channel, and one per pixel.
    Formula:  g = sigmoid(W2 relu(W1 mean_HW(x) + b1) + b2);  m = sigmoid(w . x + b) at each pixel;
              y = max(x * g, x * m), or their sum
    Shape:    x, y: (B, C, *spatial);  g: (B, C, 1, ...);  m: (B, 1, *spatial)
    Cost:     2 C M + 2 C + M + 1 parameters; reads x four times, writes it three times.
    Place:    branches: the end of each residual branch; the authors put it behind each block of a U-Net.
    Differs:  The released code takes the larger answer, element by element; the first paper adds the two:
              `combine="max"` or `"add"`. Popular copies add and narrow by 16 where the released code narrows by 2.
              With `start="identity"` a hidden layer of fewer than 16 units starts with W1 = 0 and b1 = 1: random
              units could be 0 for every image, and a gate whose units all are never learns.
    Maps:     `gate`, channel, values in (0, 1); `mask`, spatial, values in (0, 1).

    Args:
        channels: C.
        reduction: r, how many times narrower the hidden layer is.
        combine: ``"max"`` (as released) or ``"add"`` (the first paper).
        arrangement: ``"parallel"``, or one of its parts alone: ``"channel"`` or ``"spatial"``.

    Example:
        >>> import regard, torch
        >>> regard.create("scse", 64)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(
        self, channels: int, *, reduction: int = 2, combine: str = "max", arrangement: str = "parallel"
    ) -> None:
        super().__init__()
        if combine not in COMBINE:
            raise UserError(f"scse: combine is one of {', '.join(COMBINE)}, got {combine!r}")
        if arrangement not in ARRANGEMENTS:
            raise UserError(f"scse: arrangement is one of {', '.join(ARRANGEMENTS)}, got {arrangement!r}")
        self.combine, self.arrangement = combine, arrangement
        hidden = max(1, channels // reduction)
        rest: dict[str, Any] = {"rest": 0.5 if (combine, arrangement) == ("add", "parallel") else 1.0}
        if arrangement != "spatial":
            self.down = nn.Linear(channels, hidden)
            self.up = nn.Linear(hidden, channels)
            self.gate = Tap("channel", **rest)
        if arrangement != "channel":
            self.pixel = Pointwise(channels, 1)
            self.mask = Tap("spatial", **rest)

    def channel_gate(self, x: Tensor) -> Tensor:
        s = ops.squeeze(x, tuple(range(2, x.dim())))[1]
        return self.gate(ops.excite(s.flatten(1), down=self.down, up=self.up).view(s.shape))

    def pixel_gate(self, x: Tensor) -> Tensor:
        return self.mask(torch.sigmoid(self.pixel(x)))

    def forward(self, x: Tensor) -> Tensor:
        if self.arrangement != "parallel":
            return ops.gate(x, self.channel_gate(x) if self.arrangement == "channel" else self.pixel_gate(x))
        channel, spatial = ops.gate(x, self.channel_gate(x)), ops.gate(x, self.pixel_gate(x))
        return torch.maximum(channel, spatial) if self.combine == "max" else channel + spatial

    def extra_repr(self) -> str:
        return f"combine={self.combine}, arrangement={self.arrangement}"
