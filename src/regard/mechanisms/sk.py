"""Selective Kernel convolution (Li et al. 2019): https://arxiv.org/abs/1903.06586"""

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError
from regard.layers.conv import conv
from regard.layers.norm import BatchNorm
from regard.layers.tap import Blend, Tap
from regard.registry.info import Translation
from regard.registry.registration import register


def _parameters(
    channels: int,
    *,
    branches: int,
    groups: int,
    reduction: int,
    min_width: int,
    out_channels: int | None,
    first: bool,
    spatial_dims: int,
    **_: Any,
) -> int:
    out = out_channels or channels
    hidden = max(min_width, out // reduction)
    convolution = 3**spatial_dims * out * channels // math.gcd(groups, channels, out)
    return (branches - (not first)) * (convolution + 2 * out) + (1 + branches) * out * hidden + 2 * hidden


def _translate(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    C: int | None = None,
    groups: int | None = None,
    d: int | None = None,
    stride: int = 1,
    in_channels: int | None = None,
    out_channels: int | None = None,
    kernel_size: Sequence[int] | None = None,
    dilation: int = 1,
    rd_channels: int | None = None,
    split_input: bool = False,
) -> Translation:
    branches = len({name.split(".")[1] for name in tensors if name.startswith("paths.")})
    if kernel_size not in (None, [2 * i + 3 for i in range(branches)]) or dilation != 1 or stride not in (1, 2):
        raise ValueError(
            "branch i has a kernel of 2 i + 1, so kernel_size is [3, 5, ...], dilation 1 and stride 1 or 2"
        )
    if split_input:
        raise ValueError("every branch sees all channels, as in the paper: split_input=False")
    out, per_group = tensors["paths.0.conv.weight"].shape[:2]
    channels = C or in_channels or channels or out
    # left out, groups are timm's 1; more groups than channels are as many as channels
    if min(groups or 1, out) != channels // per_group:
        raise ValueError(
            f"a kernel sees {per_group} of {channels} channels: pass groups={channels // per_group}, unless timm built "
            "it with split_input, where every branch sees channels of its own, which is not the paper's"
        )
    if out_channels not in (None, out):
        raise ValueError(f"the tensors give {out} channels, not {out_channels}")
    options = {
        "branches": branches,
        "groups": channels // per_group,
        "reduction": out,
        "min_width": d or rd_channels or tensors["attn.fc_reduce.weight"].shape[0],
        "stride": stride,
        "out_channels": out,
    }
    names = {"attn.fc_reduce": "down", "attn.bn": "norm", "attn.fc_select": "up"}
    for branch in range(branches):
        names |= {f"paths.{branch}.conv": f"branches.{branch}.0", f"paths.{branch}.bn": f"branches.{branch}.1"}
    return channels, options, names


def _beside(convolution: Any) -> dict[str, Any]:
    """The options with which it joins a convolution of a network."""
    stride = set(convolution.stride)
    if len(stride) > 1:
        raise UserError(f"sk has one stride for all axes, and the convolution has {convolution.stride}")
    options = {"first": False, "out_channels": convolution.out_channels, "stride": stride.pop()}
    return options | ({"groups": convolution.groups} if convolution.groups > 1 else {})


@register(
    "sk",
    category="branch",
    paper="Li et al. 2019, arXiv 1903.06586",
    place="kernels",
    parameters=_parameters,
    beside=_beside,
    hidden=lambda sk: [sk.norm],
    official={"sk": _translate},
    letters=lambda sk: {"G": sk.groups},
)
class SK(nn.Module):
    """Convolve with several sizes of kernel at once, and let every channel of every image choose among them.

    Paper:    Li et al. 2019, Selective Kernel Networks, arXiv 1903.06586, section 3.1.
    Category: branch; for every channel and image one number per branch, which sum to one.
    Formula:  u_i = relu(norm(conv_3x3, dilation i (x)));  s = mean_HW(sum_i u_i);  z = relu(norm(W1 s));
              w = softmax_i(W2 z);  y = sum_i w_i u_i
    Shape:    x: (B, C, *spatial);  u_i, y: (B, out_channels, *spatial / stride);  z: (B, M) with M = max(32, C / r);
              w: (B, branches, out_channels, 1, ...)
    Cost:     branches (9 C^2 / G + 2 C) + (1 + branches) C M + 2 M parameters, G groups; reads the map 2 branches + 1
              times, writes it branches + 1 times.
    Place:    kernels: the grouped 3x3 convolution of each bottleneck with its norm and activation, the place of which
              it takes in the paper. Attached to a network it takes them as its first branch, with all they have learnt,
              and adds the others.
    Differs:  The authors released Caffe descriptions alone, and this agrees with them through timm's port, called
              without its own default of splitting the channels between the branches. As there, and as the paper allows,
              the wide branch is a 3x3 kernel with dilation 2 in place of 5x5; the hidden layer has a batch norm and no
              layer has a bias. The norms' momentum is PyTorch's 0.1; theirs is 0.05. Where `groups` does not divide the
              channels, the greatest common divisor is taken. Popular copies use dense kernels of 1, 3, 5 and 7 with
              biases and no norm in the hidden layer; the author's own PyTorch variant has a dense and a grouped kernel.
    Maps:     `weights`, branch, values in (0, 1).

    Args:
        channels: C.
        branches: number of kernels; branch i has dilation i, so that it is as wide as a kernel of 2 i + 1.
        groups: of each convolution.
        reduction: r, how many times narrower the hidden layer is.
        min_width: least width of the hidden layer.
        stride: of each convolution.
        out_channels: channels of the result; C if None.
        first: False leaves out the first branch, whose map is then a second input: ``sk(x, u)``.
        spatial_dims: number of spatial axes of the map: 1, 2 or 3.

    Example:
        >>> import regard, torch
        >>> regard.create("sk", 64, stride=2)(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 64, 7, 7])
    """

    def __init__(
        self,
        channels: int,
        *,
        branches: int = 2,
        groups: int = 32,
        reduction: int = 16,
        min_width: int = 32,
        stride: int = 1,
        out_channels: int | None = None,
        first: bool = True,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        out = out_channels or channels
        hidden = max(min_width, out // reduction)
        self.groups = math.gcd(groups, channels, out)

        def branch(dilation: int) -> nn.Sequential:
            convolution = conv(
                spatial_dims,
                channels,
                out,
                3,
                stride=stride,
                padding=dilation,
                dilation=dilation,
                groups=self.groups,
                bias=False,
            )
            nn.init.kaiming_normal_(convolution.weight)
            return nn.Sequential(convolution, BatchNorm(out), nn.ReLU())

        self.branches = nn.ModuleList(branch(dilation) for dilation in range(1 if first else 2, branches + 1))
        self.down = nn.Linear(out, hidden, bias=False)
        self.norm = BatchNorm(hidden)
        self.up = nn.Linear(hidden, branches * out, bias=False)
        nn.init.normal_(self.down.weight, std=0.01)
        nn.init.normal_(self.up.weight, std=0.01)
        self.weights = Tap("branch", rest=None)
        self.blend = None if first else Blend()

    def forward(self, x: Tensor, first: Tensor | None = None) -> Tensor:
        maps = [branch(x) for branch in self.branches]
        if first is not None:
            maps.insert(0, torch.relu(first))
        s = ops.squeeze(reduce(torch.add, maps), tuple(range(2, x.dim())))[1]
        z = torch.relu(self.norm(self.down(s.flatten(1))))
        weights = torch.softmax(self.up(z).reshape(s.shape[0], len(maps), *s.shape[1:]), dim=1)
        chosen = zip(maps, self.weights(weights).unbind(1), strict=True)
        y = reduce(torch.add, (ops.gate(u, weight) for u, weight in chosen)).to(x.dtype)
        return y if self.blend is None else self.blend(first, y)
