"""Kernel regression (Nadaraya 1964, Watson 1964), attention before attention: https://doi.org/10.1137/1109020"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.base.errors import UserError, near
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register

KERNELS = ("gaussian", "boxcar", "triangular", "epanechnikov")


def weights(queries: Tensor, keys: Tensor, *, kernel: str = "gaussian", w: Tensor | None = None) -> Tensor:
    """Weigh every key by its nearness to every query; the weights of a query sum to one.

    With u = |w (query - key)| the kernels are: gaussian exp(-u^2 / 2), boxcar 1, triangular 1 - u and epanechnikov
    1 - u^2, the last three only where u < 1. A query that reaches no key gives all weight to the nearest one.

    Args:
        queries: (..., Q, D).
        keys: (..., K, D).
        kernel: one of ``"gaussian"``, ``"boxcar"``, ``"triangular"``, ``"epanechnikov"``.
        w: inverse widths of the kernel, (D,) or one for all; 1 if None.

    Returns:
        (..., Q, K).

    Raises:
        UserError: unknown kernel.
    """
    if kernel not in KERNELS:
        hint = near(kernel, KERNELS) or f": it is one of {', '.join(KERNELS)}"
        raise UserError(f"kernel_regression has no kernel {kernel!r}{hint}")
    difference = queries.unsqueeze(-2) - keys.unsqueeze(-3)
    if w is not None:
        difference = difference * w
    squared = difference.square().sum(-1)
    if kernel == "gaussian":
        return torch.softmax(-squared / 2, dim=-1)
    if kernel == "boxcar":
        nearness = (squared < 1).to(squared.dtype)
    elif kernel == "triangular":
        nearness = torch.relu(1 - torch.linalg.vector_norm(difference, dim=-1))
    else:
        nearness = torch.relu(1 - squared)
    total = nearness.sum(-1, keepdim=True)
    nearest = F.one_hot(squared.argmin(-1), squared.shape[-1]).to(squared.dtype)
    # the inner choice keeps 0 / 0 out of the gradient as well
    return torch.where(total > 0, nearness / torch.where(total > 0, total, 1), nearest)


def regress(
    queries: Tensor, keys: Tensor, values: Tensor, *, kernel: str = "gaussian", w: Tensor | None = None
) -> Tensor:
    """Answer every query with the mean of the values, weighed by the nearness of their keys: see `weights`.

    Args:
        queries: (..., Q, D).
        keys: (..., K, D).
        values: (..., K, V).
        kernel, w: as in `weights`.

    Returns:
        (..., Q, V).
    """
    return weights(queries, keys, kernel=kernel, w=w).to(values.dtype) @ values


def _parameters(channels: int, *, parametric: bool, **_: Any) -> int:
    return parametric * channels


def _translate(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    kernel: str = "gaussian",
    parametric: bool | None = None,
) -> Translation:
    learnt = "w" in tensors
    if parametric not in (None, learnt):
        raise ValueError(f"parametric is {parametric}, but the tensors {'hold' if learnt else 'lack'} w")
    return (tensors["w"].numel() if learnt else channels), {"kernel": kernel, "parametric": learnt}, {}


@register(
    "kernel_regression",
    category="spatial",
    paper="Nadaraya 1964 and Watson 1964, doi 10.1137/1109020",
    place=None,
    signature="(B, Q, C), (B, K, C), (B, K, V) -> (B, Q, V)",
    parameters=_parameters,
    identity=None,
    official={"nadaraya_watson": _translate},
)
class KernelRegression(nn.Module):
    """Answer a query with the mean of known values, weighed by how near their keys are: attention before attention.

    Paper:    Nadaraya 1964 and Watson 1964, On Estimating Regression (Theory of Probability and Its Applications 9)
              and Smooth Regression Analysis (Sankhya A 26), doi 10.1137/1109020.
    Category: spatial; one weight for each pair of a query and a key, both points of any space.
    Formula:  y_i = sum_j K(w (q_i - k_j)) v_j / sum_j K(w (q_i - k_j));  gaussian: K(u) = exp(-|u|^2 / 2)
    Shape:    q: (B, Q, C);  k: (B, K, C);  v: (B, K, V);  y: (B, Q, V);  w: (C,)
    Cost:     parametric C parameters; builds Q K C differences.
    Place:    it takes queries, keys and values, not a map: call it by itself.
    Differs:  The statisticians choose the width of the kernel; to learn it, as `parametric`, is the tutorials' step
              from here to attention. Popular texts lose the minus sign of the Gaussian, put w only into the numerator
              (the weights then no longer sum to one), or call the triangular kernel Epanechnikov's, which is 1 - u^2.
              Where no key is in reach of a kernel of compact support the formula is 0 / 0; here the nearest key
              answers, which is also the limit of the Gaussian for a narrow width.
    Maps:     `weights`, query, values in 0..1.

    Args:
        channels: C, numbers that make up a query or a key.
        kernel: ``"gaussian"``, ``"boxcar"``, ``"triangular"`` or ``"epanechnikov"``.
        parametric: whether the inverse widths w are learnt, one for each channel, from 1 on; a boxcar gives them
            no gradient.

    Example:
        >>> import regard, torch
        >>> fit = regard.create("kernel_regression", 1, parametric=True)
        >>> fit(torch.randn(1, 50, 1), torch.randn(1, 20, 1), torch.randn(1, 20, 3)).shape
        torch.Size([1, 50, 3])
    """

    w: nn.Parameter | None

    def __init__(self, channels: int, *, kernel: str = "gaussian", parametric: bool = False) -> None:
        super().__init__()
        if kernel not in KERNELS:
            hint = near(kernel, KERNELS) or f": it is one of {', '.join(KERNELS)}"
            raise UserError(f"kernel_regression has no kernel {kernel!r}{hint}")
        self.kernel = kernel
        self.register_parameter("w", nn.Parameter(torch.ones(channels)) if parametric else None)
        self.weights = Tap("query", rest=None)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        weighed = self.weights(weights(queries, keys, kernel=self.kernel, w=self.w).to(values.dtype))
        return (weighed @ values).to(values.dtype)

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, parametric={self.w is not None}"
