"""Normalisation as the mechanisms need it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


def wide(x: Tensor) -> Tensor:
    """The same numbers in float32 at least: in half precision squares and sums of a map overflow or vanish."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class BatchNorm(_BatchNorm):
    """Batch norm over (B, C, *any), which also trains on a single value per channel.

    One value has no variance: torch refuses it, and its running variance would become NaN. Here such a batch is
    normalised by the running statistics, which stay as they are. Everything else is ``torch.nn.BatchNorm2d``.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"BatchNorm needs (B, C, ...), got {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


class LayerNorm(nn.LayerNorm):
    """``torch.nn.LayerNorm``, which can be told to scale and shift alone.

    Attributes:
        plain: not to normalise: of one value a layer norm leaves 0, and of two their order.
    """

    plain: bool = False

    def forward(self, input: Tensor) -> Tensor:
        return input * self.weight + self.bias if self.plain else super().forward(input)
