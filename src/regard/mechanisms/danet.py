"""Dual Attention Network (Fu et al. 2019): https://arxiv.org/abs/1809.02983"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError
from regard.layers.conv import Pointwise
from regard.layers.norm import BatchNorm, wide
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register, wrong_axes

PAPER = "Fu et al. 2019, arXiv 1809.02983"


def _position_parameters(channels: int, *, reduction: int) -> int:
    hidden = max(1, channels // reduction)
    return 2 * (channels * hidden + hidden) + channels**2 + channels + 1


def _translate_position(
    tensors: Mapping[str, Tensor], channels: int | None, *, in_dim: int | None = None
) -> Translation:
    hidden, width = tensors["query_conv.weight"].shape[:2]
    channels = in_dim or channels or width
    names = {"query_conv": "query", "key_conv": "key", "value_conv": "value"}
    return channels, {"reduction": channels // hidden}, names


@register(
    "danet_position",
    category="spatial",
    attention="self",
    paper=PAPER,
    place="head",
    parameters=_position_parameters,
    identity=None,
    official={"danet_position": _translate_position},
)
class DANetPosition(nn.Module):
    """Add to every pixel what all pixels hold, weighed by how much they are alike.

    Paper:    Fu et al. 2019, Dual Attention Network, arXiv 1809.02983, section 3.2 (position attention).
    Category: spatial; weights between all pairs of pixels.
    Formula:  w_ij = softmax_j(Q x_i . K x_j);  y_i = x_i + gamma sum_j w_ij V x_j
    Shape:    x, y: (B, C, *spatial);  Q, K: C to M = C / r;  V: C to C;  w: (B, 1, *spatial, *spatial)
    Cost:     2 (C M + M) + C^2 + C + 1 parameters; time grows with the square of the pixels, memory does not.
    Place:    head: the authors put it once on the last map of a dilated network, see `danet_head`.
    Differs:  As the released code, which narrows Q and K to C / 8 where the paper draws them full (`reduction=1`). The
              logits are not scaled, in either. gamma starts at 0, so that a fresh module is the identity. Popular
              copies forget gamma and the addition, or scale the logits.
    Maps:     `weights`, position, values in (0, 1).

    Args:
        channels: C.
        reduction: r, how many times narrower queries and keys are.

    Example:
        >>> import regard, torch
        >>> regard.create("danet_position", 64)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.query = Pointwise(channels, hidden)
        self.key = Pointwise(channels, hidden)
        self.value = Pointwise(channels, channels)
        self.weights = Tap("position", rest=None)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (project(x).unsqueeze(1) for project in (self.query, self.key, self.value))
        y = ops.attend(query, key, value, watch=self.weights if self.weights.watched else None)
        return x + (self.gamma * y.squeeze(1)).to(x.dtype)


@register(
    "danet_channel",
    category="channel",
    attention="self",
    paper=PAPER,
    place="head",
    parameters=lambda channels, **_: 1,
    identity=None,
    official={"danet_channel": lambda tensors, channels, *, in_dim=None: (in_dim or channels, {}, {})},
)
class DANetChannel(nn.Module):
    """Add to every channel what all channels hold, weighed by how they go together.

    Paper:    Fu et al. 2019, Dual Attention Network, arXiv 1809.02983, section 3.3 (channel attention).
    Category: channel; weights between all pairs of channels.
    Formula:  e = x x^T over the pixels;  w_ij = softmax_j(max_j e_ij - e_ij) in the code, softmax_j(e_ij) in the paper;
              y_i = x_i + gamma sum_j w_ij x_j
    Shape:    x, y: (B, C, *spatial);  e, w: (B, C, C)
    Cost:     1 parameter; reads x four times, writes it twice.
    Place:    head: the authors put it once on the last map of a dilated network, see `danet_head`.
    Differs:  The released code turns the sign of the energies round, so that channels that are alike weigh little; the
              paper's equation has them weigh most. `form="code"` or `form="paper"`. The paper's sign saturates on maps
              of ordinary size: every channel then only sees itself. gamma starts at 0, so that a fresh module is the
              identity. Popular copies project the channels, or forget gamma and the addition.
    Maps:     `weights`, pair, values in (0, 1).

    Args:
        channels: C.
        form: the sign of the energies, ``"code"`` (as released) or ``"paper"``.

    Example:
        >>> import regard, torch
        >>> regard.create("danet_channel", 64)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(self, channels: int, *, form: str = "code") -> None:
        super().__init__()
        if form not in ("code", "paper"):
            raise UserError(f"danet_channel: form is 'code' or 'paper', got {form!r}")
        self.form = form
        self.weights = Tap("pair", rest=None)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        with torch.autocast(x.device.type, enabled=False):  # sums of squares, over all pixels
            energy = wide(flat) @ wide(flat).transpose(1, 2)
        # softmax takes the row's maximum off by itself: only the sign is left of the authors' line
        weights = self.weights(torch.softmax(-energy if self.form == "code" else energy, dim=-1))
        y = (weights.to(flat.dtype) @ flat).reshape(x.shape)
        return x + (self.gamma * y).to(x.dtype)

    def extra_repr(self) -> str:
        return f"form={self.form}"


def _head_parameters(channels: int, *, classes: int, reduction: int, **_: Any) -> int:
    width = max(1, channels // reduction)
    convolutions = 2 * (9 * channels * width + 2 * width) + 2 * (9 * width**2 + 2 * width)
    return convolutions + _position_parameters(width, reduction=8) + 1 + 3 * (width + 1) * classes


def _translate_head(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    in_channels: int | None = None,
    out_channels: int | None = None,
    norm_layer: object = None,  # the tensors of another than a batch norm do not fit
) -> Translation:
    width, weight_channels = tensors["conv5a.0.weight"].shape[:2]
    channels = in_channels or channels or weight_channels
    options = {"classes": out_channels or tensors["conv8.1.weight"].shape[0], "reduction": channels // width}
    names = {"conv5a": "position_in", "conv51": "position_out", "conv5c": "channel_in", "conv52": "channel_out"}
    names |= {"sa.query_conv": "position.query", "sa.key_conv": "position.key", "sa.value_conv": "position.value"}
    names |= {"sa": "position", "sc": "channel"}
    return channels, options, names | {"conv6.1": "classify.1", "conv7.1": "classify.2", "conv8.1": "classify.0"}


@register(
    "danet_head",
    category="channel and spatial",
    attention="self",
    paper=PAPER,
    place=None,
    parameters=_head_parameters,
    signature="(B, C, H, W) -> (B, classes, H, W), (B, classes, H, W), (B, classes, H, W)",
    identity=None,
    official={"danet_head": _translate_head},
)
class DANetHead(nn.Module):
    """Say the class of every pixel from position attention and channel attention side by side.

    Paper:    Fu et al. 2019, Dual Attention Network, arXiv 1809.02983, section 3.4.
    Category: channel and spatial; weights between all pairs of pixels, and of channels.
    Formula:  p = c2(position(c1(x)));  q = c4(channel(c3(x)));  c(t) = relu(norm(conv_3x3(t)));
              scores = conv_1x1(p + q), conv_1x1(p), conv_1x1(q)
    Shape:    x: (B, C, H, W);  p, q: (B, M, H, W) with M = C / r;  each of the three scores: (B, classes, H, W)
    Cost:     18 C M + 18 M^2 + 8 M + 2 (M (M // 8) + M // 8) + M^2 + M + 2 + 3 (M + 1) classes parameters; time grows
              with the square of the pixels.
    Place:    it is a head, not a gate: put it in the place of a segmentation network's classifier, on its last map.
    Differs:  As the released code. Its three answers are trained together; at test time the first counts. `form` is the
              sign of the channel energies, see `danet_channel`.
    Maps:     `position.weights`, position, values in (0, 1); `channel.weights`, pair, values in (0, 1).

    Args:
        channels: C.
        classes: classes of a pixel.
        reduction: r, how many times narrower the inner maps are.
        form: ``"code"`` or ``"paper"``, see `danet_channel`.

    Example:
        >>> import regard, torch
        >>> fused, position, channel = regard.create("danet_head", 32, classes=5)(torch.randn(2, 32, 7, 9))
        >>> fused.shape
        torch.Size([2, 5, 7, 9])
    """

    def __init__(self, channels: int, *, classes: int = 21, reduction: int = 4, form: str = "code") -> None:
        super().__init__()
        width = max(1, channels // reduction)

        def layer(inner: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inner, width, 3, padding=1, bias=False), BatchNorm(width), nn.ReLU())

        self.position_in, self.channel_in = layer(channels), layer(channels)
        self.position = DANetPosition(width)
        self.channel = DANetChannel(width, form=form)
        self.position_out, self.channel_out = layer(width), layer(width)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.dim() != 4:
            raise wrong_axes("danet_head", x.dim() - 2)
        position = self.position_out(self.position(self.position_in(x)))
        channel = self.channel_out(self.channel(self.channel_in(x)))
        fused, alone, other = (
            classify(self.dropout(features)).to(x.dtype)
            for classify, features in zip(self.classify, (position + channel, position, channel), strict=True)
        )
        return fused, alone, other
