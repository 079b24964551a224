"""Polarized Self-Attention (Liu et al. 2021): https://arxiv.org/abs/2107.00782"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError
from regard.layers.conv import Pointwise
from regard.layers.norm import LayerNorm
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register

ARRANGEMENTS = ("parallel", "sequential")
FORMS = ("code", "paper")


def _widths(channels: int) -> tuple[int, int]:
    return max(1, channels // 2), max(1, channels // 8)


def _parameters(channels: int, *, arrangement: str, form: str) -> int:
    half, eighth = _widths(channels)
    up = half * channels
    if form == "paper":
        up += 3 * channels
    elif arrangement == "sequential":
        up = half * eighth + 3 * eighth + eighth * channels + channels
    return channels + 3 * channels * half + up


def _released(arrangement: str) -> Callable[..., Translation]:
    def translate(
        tensors: Mapping[str, Tensor],
        channels: int | None,
        *,
        inplanes: int | None = None,
        planes: int | None = None,
        kernel_size: int = 1,  # they store it, and use it nowhere
        stride: int = 1,
    ) -> Translation:
        channels = inplanes or channels or tensors["conv_q_right.weight"].shape[1]
        if planes not in (None, channels) or stride != 1:
            raise ValueError(
                f"the gates weigh their own input, so planes is {channels} and stride 1, got {planes} and {stride}"
            )
        names = {"conv_q_right": "channel_query", "conv_v_right": "channel_value"}
        names |= {"conv_q_left": "pixel_query", "conv_v_left": "pixel_value"}
        if arrangement == "sequential":
            names |= {"conv_up.0": "down", "conv_up.1": "norm", "conv_up.3": "up"}
        else:
            names["conv_up"] = "up"
        return channels, {"arrangement": arrangement}, names

    return translate


@register(
    "polarized",
    category="channel and spatial",
    attention="self",
    paper="Liu et al. 2021, arXiv 2107.00782",
    place="branches",
    parameters=_parameters,
    hidden=lambda polarized: [polarized.norm] if hasattr(polarized, "down") else [],
    official={"psa_parallel": _released("parallel"), "psa_sequential": _released("sequential")},
)
class Polarized(nn.Module):
    """Weigh channels by what one chosen set of pixels holds, and pixels by how they answer the average pixel.

    Paper:    Liu et al. 2021, Polarized Self-Attention, arXiv 2107.00782, section 3.
    Category: channel and spatial; one number per channel and one per pixel.
    Formula:  g = sigmoid(up(sum_HW V x * softmax_HW(q x)));  a = mean_HW(Q x);  T = P x;
              m = sigmoid(softmax_HW(a . T)) in parallel;  m = sigmoid(a . softmax_HW(T)) in sequence;
              y = x * g + x * m in parallel;  y = x * g * m in sequence, where m sees x * g
    Shape:    x, y: (B, C, *spatial);  g: (B, C, 1, ...);  m: (B, 1, *spatial);  V, Q, P: C to C / 2
    Cost:     2 C^2 + C parameters; reads x four times in projections, writes half of it twice.
    Place:    branches: the end of each residual branch; the authors put it after the first convolution of each block
              of HRNet.
    Differs:  `form="code"` is the released code, from which the paper's equations differ: there the pooled query passes
              a softmax over its channels and no softmax runs over the pixels, and the projection up to C has a layer
              norm: `form="paper"`. In the code's parallel form the mask is the sigmoid of a probability, so it lies
              between 0.5 and 0.731, and near 0.5 on large maps. The sequential form narrows to C / 8 with a layer
              norm on the way up. Popular copies mix the two and give every projection a bias.
              With `start="identity"` the norm of a hidden layer of fewer than 16 units starts with biases of 2, so that
              few units start shut; of one or two units it would leave nothing but their order: there it scales and
              shifts alone, from weights of 0 and biases of 1.
    Maps:     `weights`, spatial, adds up to 1 over the pixels: what the channels' context is read from; `gate`,
              channel, values in (0, 1); `mask`, spatial, values in (0, 1).

    Args:
        channels: C.
        arrangement: ``"parallel"`` or ``"sequential"`` (channels first).
        form: ``"code"`` (as released) or ``"paper"`` (as its equations).

    Example:
        >>> import regard, torch
        >>> regard.create("polarized", 64, arrangement="sequential")(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(self, channels: int, *, arrangement: str = "parallel", form: str = "code") -> None:
        super().__init__()
        if arrangement not in ARRANGEMENTS:
            raise UserError(f"polarized: arrangement is one of {', '.join(ARRANGEMENTS)}, got {arrangement!r}")
        if form not in FORMS:
            raise UserError(f"polarized: form is one of {', '.join(FORMS)}, got {form!r}")
        self.arrangement, self.form = arrangement, form
        half, eighth = _widths(channels)
        narrow = form == "code" and arrangement == "sequential"
        self.channel_query = Pointwise(channels, 1, bias=False)
        self.channel_value = Pointwise(channels, half, bias=False)
        self.pixel_query = Pointwise(channels, half, bias=False)
        self.pixel_value = Pointwise(channels, half, bias=False)
        for projection in (self.channel_query, self.channel_value, self.pixel_query, self.pixel_value):
            nn.init.kaiming_normal_(projection.weight, mode="fan_in", nonlinearity="relu")
        if narrow:
            self.down = nn.Linear(half, eighth)
        if form == "paper" or narrow:
            self.norm = LayerNorm(channels if form == "paper" else eighth)
        self.up = nn.Linear(eighth if narrow else half, channels, bias=form == "paper" or narrow)
        rest = 0.5 if arrangement == "parallel" else 1.0
        self.weights = Tap("spatial", rest=None)
        self.gate = Tap("channel", rest=rest)
        self.mask = Tap("spatial", rest=rest)

    def channel_gate(self, x: Tensor) -> Tensor:
        weights = self.channel_query(x).flatten(2).softmax(-1)
        weights = self.weights(weights.view(x.shape[0], 1, *x.shape[2:])).flatten(2)
        context = (self.channel_value(x).flatten(2) @ weights.transpose(1, 2)).squeeze(2)
        if self.form == "paper":
            logits = self.norm(self.up(context))
        elif self.arrangement == "sequential":
            logits = self.up(torch.relu(self.norm(self.down(context))))
        else:
            logits = self.up(context)
        return self.gate(torch.sigmoid(logits).reshape(*logits.shape, *[1] * (x.dim() - 2)))

    def pixel_gate(self, x: Tensor) -> Tensor:
        query = self.pixel_query(x).flatten(2).mean(-1).unsqueeze(1)
        value = self.pixel_value(x).flatten(2)
        if self.form == "paper":
            logits = query.softmax(-1) @ value
        elif self.arrangement == "sequential":
            logits = query @ value.softmax(-1)
        else:
            logits = (query @ value).softmax(-1)
        return self.mask(torch.sigmoid(logits).reshape(-1, 1, *x.shape[2:]))

    def forward(self, x: Tensor) -> Tensor:
        if self.arrangement == "parallel":
            return ops.gate(x, self.channel_gate(x)) + ops.gate(x, self.pixel_gate(x))
        x = ops.gate(x, self.channel_gate(x))
        return ops.gate(x, self.pixel_gate(x))

    def extra_repr(self) -> str:
        return f"arrangement={self.arrangement}, form={self.form}"
