"""Global Context (Cao et al. 2019): https://arxiv.org/abs/1904.11492"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError
from regard.layers.conv import Pointwise
from regard.layers.norm import LayerNorm
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register

FUSIONS = ("add", "mul", "add+mul")


def _width(channels: int, reduction: int, hidden: int | None) -> int:
    return hidden or max(1, channels // reduction)


def _parameters(channels: int, *, reduction: int, hidden: int | None, fusion: str, squeeze: str) -> int:
    width = _width(channels, reduction, hidden)
    network = 2 * channels * width + channels + 3 * width
    return (squeeze == "attention") * (channels + 1) + len(fusion.split("+")) * network


def _translate(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    inplanes: int | None = None,
    ratio: float | None = None,
    pooling_type: str = "att",
    fusion_types: Sequence[str] = ("channel_add",),
) -> Translation:
    words = [word for word in ("add", "mul") if f"channel_{word}" in fusion_types]
    if pooling_type not in ("att", "avg") or len(words) != len(set(fusion_types)) or not words:
        raise ValueError(
            "pooling_type is 'att' or 'avg' and fusion_types holds 'channel_add', 'channel_mul' or both, "
            f"got {pooling_type!r} and {fusion_types!r}"
        )
    hidden, width = tensors[f"channel_{words[0]}_conv.0.weight"].shape[:2]
    channels = inplanes or channels or width
    if ratio is not None and int(channels * ratio) != hidden:
        raise ValueError(f"ratio {ratio} of {channels} channels is not the {hidden} that the tensors have")
    options: dict[str, Any] = {"hidden": hidden, "fusion": "+".join(words)}
    options["squeeze"] = "attention" if pooling_type == "att" else "avg"
    names = {"conv_mask": "query"}
    for word in words:
        names |= {f"channel_{word}_conv.{i}": f"{word}.{i}" for i in (0, 1, 3)}
    return channels, options, names


def _start_exactly(gc: Any) -> None:
    """A gate fades in; behind it a last layer of 0 would let the hidden layer wait for two steps more."""
    if gc.mul is not None:
        gc.gate.fade_in()
        gc.mul[3].reset_parameters()


@register(
    "gc",
    category="spatial",
    paper="Cao et al. 2019, arXiv 1904.11492",
    place="branches",
    parameters=_parameters,
    identity=_start_exactly,
    hidden=lambda gc: [network[1] for network in (gc.add, gc.mul) if network is not None],
    official={"gcnet": _translate},
)
class GC(nn.Module):
    """Add to every pixel one vector for the whole image, made from the pixels that one query picks out.

    Paper:    Cao et al. 2019, GCNet: Non-local Networks Meet Squeeze-Excitation Networks, arXiv 1904.11492,
              section 3.3.
    Category: spatial; one weight per pixel, the same for every query, then one vector per image.
    Formula:  a = softmax_HW(w . x + b);  c = sum_HW a x;  t(c) = W2 relu(layernorm(W1 c + b1)) + b2;
              y = x + t(c);  with mul: y = x * sigmoid(t'(c)), and both: y = x * sigmoid(t'(c)) + t(c)
    Shape:    x, y: (B, C, *spatial);  a: (B, 1, *spatial);  c, t: (B, C, 1, ...);  hidden width M = C / r
    Cost:     2 C M + 2 C + 3 M + 1 parameters; reads x three times, writes it once.
    Place:    branches: the end of each residual branch, before the addition, in the last three of four stages.
    Differs:  As the released code. Its width int(C * ratio) may be 0; here it is at least 1. The last layer starts at
              0: with addition a fresh module is the identity, with a gate alone it is 0.5. Popular copies leave out the
              softmax over the pixels, use another epsilon in the layer norm, or do not start the last layer at 0.
              With `start="identity"` a gate fades in, from a last layer
              of random weights, and the norm of a hidden layer of fewer than 16 units starts with biases of 2, so that
              few units start shut; of one or two units it would leave nothing but their order: there it scales and
              shifts alone, from weights of 0 and biases of 1.
    Maps:     `weights`, spatial, adds up to 1 over the pixels.

    Args:
        channels: C.
        reduction: r, how many times narrower the hidden layer is; one over the authors' ratio.
        hidden: the width itself, instead of C / r.
        fusion: ``"add"``, ``"mul"`` (a gate, with a tap `gate`) or ``"add+mul"``.
        squeeze: ``"attention"`` or ``"avg"`` (then there are no weights to see).

    Example:
        >>> import regard, torch
        >>> regard.create("gc", 64)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden: int | None = None,
        fusion: str = "add",
        squeeze: str = "attention",
    ) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise UserError(f"gc: fusion is one of {', '.join(FUSIONS)}, got {fusion!r}")
        if squeeze not in ("attention", "avg"):
            raise UserError(f"gc: squeeze is 'attention' or 'avg', got {squeeze!r}")
        width = _width(channels, reduction, hidden)
        self.query = Pointwise(channels, 1) if squeeze == "attention" else None
        if self.query is not None:
            nn.init.kaiming_normal_(self.query.weight, mode="fan_in")
            nn.init.zeros_(self.query.bias)
            self.weights = Tap("spatial", rest=None)
        self.add = _network(channels, width) if "add" in fusion else None
        self.mul = _network(channels, width) if "mul" in fusion else None
        if self.mul is not None:
            self.gate = Tap("channel")

    def forward(self, x: Tensor) -> Tensor:
        axes, joint = tuple(range(2, x.dim())), ops.Joint(x)
        if self.query is None:
            (pooled,) = joint.squeeze(axes)
        else:
            logits = self._logits(x, joint)
            weights = self.weights(logits.flatten(2).softmax(-1).view(logits.shape))
            (pooled,) = joint.squeeze(axes, kinds=("sum",), gates=(weights,))
        context = pooled.flatten(1)
        gates: list[Tensor] = []
        shift = None
        if self.mul is not None:
            gates.append(self.gate(torch.sigmoid(self.mul(context)).view(pooled.shape)))
        if self.add is not None:
            shift = self.add(context).view(pooled.shape)
        return joint.gate(*gates, shift=shift)

    def _logits(self, x: Tensor, joint: ops.Joint) -> Tensor:
        assert self.query is not None
        if not ops.plain(self.query):
            return cast(Tensor, self.query(x))
        # a 1x1 convolution, as the sum of the map times a factor
        query = self.query.weight.view(1, -1, *[1] * (x.dim() - 2))
        (logits,) = joint.squeeze((1,), kinds=("sum",), gates=(query,))
        return logits + self.query.bias


def _network(channels: int, width: int) -> nn.Sequential:
    last = nn.Linear(width, channels)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(channels, width), LayerNorm(width), nn.ReLU(), last)
