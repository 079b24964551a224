"""SimAM (Yang et al. 2021): https://proceedings.mlr.press/v139/yang21o.html"""

from collections.abc import Mapping

from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register


def _translate(tensors: Mapping[str, Tensor], channels: int | None, *, e_lambda: float = 1e-4) -> Translation:
    return channels, {"regularization": e_lambda}, {}


@register(
    "simam",
    category="channel and spatial",
    paper="Yang et al. 2021, PMLR 139",
    place="convolutions",
    parameters=lambda channels, **_: 0,
    official={"simam": _translate},
)
class SimAM(nn.Module):
    """Weigh every value of a map by how far it is from its channel's average, without any parameter.

    Paper:    Yang et al. 2021, SimAM: A Simple, Parameter-Free Attention Module, PMLR 139, section 3.
    Category: channel and spatial; one number per channel and pixel.
    Formula:  d = (x - mean_HW(x))^2;  y = x * sigmoid(d / (4 (sum_HW d / (N - 1) + lambda)) + 1 / 2), N pixels
    Shape:    x, y, gate: (B, C, *spatial)
    Cost:     0 parameters; on a CPU reads x once and writes y, and in training reads x and dy once and writes dx, where
              a channel fits the caches; elsewhere every step reads and writes maps.
    Place:    convolutions: behind the last 3x3 convolution of each residual branch, before its norm.
    Differs:  As the released code, where a map of one pixel divides by 0; here N - 1 is at least 1. The gate is never
              below sigmoid(1/2) = 0.622: it can only lift the unusual over the usual.
    Maps:     `gate`, element, values in (0.622, 1).

    Args:
        channels: C; the module does not depend on it.
        regularization: lambda, added to the variance.

    Example:
        >>> import regard, torch
        >>> regard.create("simam", 64)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(self, channels: int, *, regularization: float = 1e-4) -> None:
        super().__init__()
        if regularization <= 0:
            raise UserError(f"simam: regularization is above 0, got {regularization}")
        self.regularization = regularization
        self.gate = Tap("element", low=0.622)

    def forward(self, x: Tensor) -> Tensor:
        return ops.selfgate(x, self.gate, energy=self.regularization)

    def extra_repr(self) -> str:
        return f"regularization={self.regularization:g}"
