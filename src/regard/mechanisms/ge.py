"""Gather-Excite (Hu et al. 2018): https://arxiv.org/abs/1810.12348"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard import ops
from regard.base.errors import UserError
from regard.layers.norm import BatchNorm
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register, wrong_axes

FORMS = ("theta-minus", "theta", "theta-plus")


def _width(channels: int, reduction: int, hidden: int | None) -> int:
    return hidden or max(1, channels // reduction)


def _parameters(
    channels: int,
    *,
    form: str,
    extent: int,
    size: int | Sequence[int] | None,
    reduction: int,
    hidden: int | None,
    bias: bool,
) -> int:
    count = 0
    if form != "theta-minus":
        height, width = _sides(size) if extent == 0 else (3, 3)
        count += max(1, extent.bit_length() - 1) * channels * (height * width + bias + 2)
    if form == "theta-plus":
        inner = _width(channels, reduction, hidden)
        count += 2 * channels * inner + channels + inner
    return count


def _sides(size: int | Sequence[int] | None) -> tuple[int, int]:
    if size is None:
        raise UserError("ge: gathering the whole map by a learnt kernel (extent=0) needs its size=, e.g. size=(7, 7)")
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _translate(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    channel: int | None = None,
    layer_idx: int | None = None,
    feat_size: Sequence[int] | int | None = None,
    extra_params: bool = False,
    extent: int = 0,
    use_mlp: bool = True,
    rd_ratio: float | None = None,
    rd_channels: int | None = None,
    rd_divisor: int = 1,
) -> Translation:
    if layer_idx is not None:  # the authors of SRM: one kernel over the whole map of a stage
        size = tuple(tensors["conv.0.weight"].shape[-2:])
        options: dict[str, Any] = {"form": "theta", "size": size, "bias": True}
        return channel or channels, options, {"conv.0": "gather.0", "conv.1": "norms.0"}
    if use_mlp and not extra_params:
        raise ValueError("a network behind a gathering without parameters is no form of the paper: use_mlp=False")
    if extra_params and extent == 0:
        raise ValueError("the port pads its kernel for the whole map and slides it, so it gathers nothing there: "
                         "extent is a power of 2 with extra_params=True")  # fmt: skip
    options = {"form": FORMS[extra_params + use_mlp], "extent": extent}
    if use_mlp:
        options["hidden"] = tensors["mlp.fc1.weight"].shape[0]
    names = {"mlp.fc1": "down", "mlp.fc2": "up"}
    for i in range(max(1, extent.bit_length() - 1)):
        names |= {f"gather.conv{i + 1}": f"gather.{i}", f"gather.norm{i + 1}": f"norms.{i}"}
    return channels, options, names


@register(
    "ge",
    category="channel",
    paper="Hu et al. 2018, arXiv 1810.12348",
    place="branches",
    parameters=_parameters,
    signature="(B, C, H, W) -> same",
    hidden=lambda ge: [ge.down] if ge.form == "theta-plus" else [],
    official={"ge_theta_minus": _translate, "ge_theta": _translate, "ge_theta_plus": _translate},
)
class GE(nn.Module):
    """Gather each channel over a neighbourhood or the whole map, and weigh it by what was gathered.

    Paper:    Hu et al. 2018, Gather-Excite, arXiv 1810.12348, section 3.
    Category: channel; one number per channel and neighbourhood, spread to the pixels in it.
    Formula:  theta-minus: g = mean over the extent;  theta: g = norm(depthwise conv) with stride 2, log2(extent) times,
              with a ReLU between, or once with a kernel as large as the map for extent 0;  theta-plus: g = W2 relu(W1 g
              + b1) + b2;  y = x * sigmoid(spread(g))
    Shape:    x, y: (B, C, H, W);  g: (B, C, H / extent, W / extent), or (B, C, 1, 1) with extent 0
    Cost:     0 parameters; reads x twice, writes it once.
    Place:    branches: the end of each residual branch, before the addition.
    Differs:  The authors released networks for Caffe whose layers are not all public; the forms with parameters are
              held to PyTorch ports. Means do not count the padding. extent=0 is the whole map; its learnt form has a
              kernel as large as the map, which must be told (`size`) and takes no other. The most used port cannot be
              built with its default arguments, and pads that kernel, so that it slides and gathers no whole map.
              With `form="theta-plus"` and `start="identity"` a hidden layer of fewer than 16 units starts with W1 = 0
              and b1 = 1: random units could be 0 for every image, and a gate whose units all are never learns.
    Maps:     `gate`, channel, with an extent element, values in (0, 1).

    Args:
        channels: C.
        form: ``"theta-minus"`` (no parameters), ``"theta"`` (learnt gathering) or ``"theta-plus"`` (and a network).
        extent: side of the neighbourhood, a power of 2; 0 is the whole map.
        size: sides of the map, where ``extent`` is 0 and the gathering is learnt.
        reduction: r, how many times narrower the network of ``"theta-plus"`` is.
        hidden: its width itself, instead of C / r.
        bias: whether the gathering convolutions have biases.

    Example:
        >>> import regard, torch
        >>> regard.create("ge", 64, form="theta-plus", extent=4)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(
        self,
        channels: int,
        *,
        form: str = "theta-minus",
        extent: int = 0,
        size: int | Sequence[int] | None = None,
        reduction: int = 16,
        hidden: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise UserError(f"ge: form is one of {', '.join(FORMS)}, got {form!r}")
        if type(extent) is not int or extent < 0 or extent == 1 or extent & (extent - 1):
            raise UserError(f"ge: extent is 0 (the whole map) or a power of 2 from 2 on, got {extent!r}")
        self.form, self.extent = form, extent
        self.size = None
        if form != "theta-minus":
            around: dict[str, Any] = {"groups": channels, "bias": bias}
            if extent == 0:
                self.size = _sides(size)
                layers = [nn.Conv2d(channels, channels, self.size, **around)]
            else:
                layers = [
                    nn.Conv2d(channels, channels, 3, stride=2, padding=1, **around)
                    for _ in range(extent.bit_length() - 1)
                ]
            self.gather = nn.ModuleList(layers)
            self.norms = nn.ModuleList(BatchNorm(channels) for _ in layers)
        if form == "theta-plus":
            inner = _width(channels, reduction, hidden)
            self.down = nn.Conv2d(channels, inner, 1)
            self.up = nn.Conv2d(inner, channels, 1)
        self.gate = Tap("element" if extent else "channel")

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise wrong_axes("ge", x.dim() - 2)
        g = self._gather(x)
        if self.form == "theta-plus":
            g = self.up(torch.relu(self.down(g)))
        if self.extent:
            g = F.interpolate(g, size=x.shape[2:])
        return ops.gate(x, self.gate(torch.sigmoid(g)))

    def _gather(self, x: Tensor) -> Tensor:
        if self.form == "theta-minus":
            if self.extent == 0:
                return ops.squeeze(x, (2, 3))[1]
            around: dict[str, Any] = {"stride": self.extent, "padding": self.extent - 1, "count_include_pad": False}
            return F.avg_pool2d(x, 2 * self.extent - 1, **around)
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            raise UserError(
                f"its kernel was made for maps of {self.size}, got {tuple(x.shape[2:])}: give an extent", subject="ge"
            )
        for place, (conv, norm) in enumerate(zip(self.gather, self.norms, strict=True)):
            x = norm(conv(torch.relu(x) if place else x))
        return x

    def extra_repr(self) -> str:
        return f"form={self.form}, extent={self.extent}"
