"""Gated Channel Transformation (Yang et al. 2020): https://arxiv.org/abs/1909.11519"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError
from regard.layers.norm import wide
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register


def _translate(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    num_channels: int | None = None,
    epsilon: float = 1e-5,
    mode: str = "l2",
    after_relu: bool = False,
) -> Translation:
    channels = num_channels or channels or tensors["alpha"].numel()
    return channels, {"mode": mode, "after_relu": after_relu, "epsilon": epsilon}, {}


@register(
    "gct",
    category="channel",
    paper="Yang et al. 2020, arXiv 1909.11519",
    place="branches",
    parameters=lambda channels, **_: 3 * channels,
    identity=None,
    official={"gct": _translate},
)
class GCT(nn.Module):
    """Weigh each channel by how strong it is beside the others, with three learnt numbers per channel.

    Paper:    Yang et al. 2020, Gated Channel Transformation for Visual Recognition, arXiv 1909.11519, section 3.
    Category: channel; one number per channel and image, the same at every pixel.
    Formula:  e = alpha sqrt(sum_HW(x^2) + eps);  n = gamma e / sqrt(mean_C(e^2) + eps);  y = x * (1 + tanh(n + beta));
              with l1: e = alpha sum_HW |x|;  n = gamma e / (mean_C |e| + eps)
    Shape:    x, y: (B, C, *spatial);  e, n, gate: (B, C, 1, ...);  alpha, gamma, beta: (C)
    Cost:     3 C parameters; reads x twice, writes it once.
    Place:    branches: the end of each residual branch; the authors put it before every convolution, also the first.
    Differs:  As the released code. alpha starts at 1, gamma and beta at 0, so that a fresh module is the identity. With
              one alpha for all channels it nearly cancels in the norm. The authors train beta without weight decay. Not
              the Gaussian Context Transformer, which has the same initials.
    Maps:     `gate`, channel, values in (0, 2).

    Args:
        channels: C.
        mode: ``"l2"`` or ``"l1"``, the norm that says how strong a channel is.
        after_relu: whether the map has no negative values, so that l1 needs no absolute value.
        epsilon: eps, which keeps an empty map from dividing by zero.

    Example:
        >>> import regard, torch
        >>> regard.create("gct", 64)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(self, channels: int, *, mode: str = "l2", after_relu: bool = False, epsilon: float = 1e-5) -> None:
        super().__init__()
        if epsilon <= 0:
            raise UserError(f"gct: epsilon is above 0, got {epsilon}")
        if mode not in ("l1", "l2"):
            raise UserError(f"gct: mode is 'l2' or 'l1', got {mode!r}")
        self.mode, self.after_relu, self.epsilon = mode, after_relu, epsilon
        self.alpha = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.gate = Tap("channel", high=2.0)

    def forward(self, x: Tensor) -> Tensor:
        axes, joint = tuple(range(2, x.dim())), ops.Joint(x)
        if self.mode == "l2":
            (norm,) = joint.squeeze(axes, kinds=("lp",))
            strength = self.alpha * (wide(norm).flatten(1).square() + self.epsilon).sqrt()
            norm = (strength.square().mean(1, keepdim=True) + self.epsilon).sqrt()
        else:
            strength = self.alpha * wide(x if self.after_relu else x.abs()).sum(axes)
            norm = strength.abs().mean(1, keepdim=True) + self.epsilon
        gate = 1 + torch.tanh(self.gamma * strength / norm + self.beta)
        return joint.gate(self.gate(gate.reshape(*gate.shape, *[1] * len(axes))))

    def extra_repr(self) -> str:
        return f"mode={self.mode}, after_relu={self.after_relu}"
