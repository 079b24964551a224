"""Temporal Adaptive Module (Liu et al. 2021): https://arxiv.org/abs/2005.06803"""

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard import ops
from regard.base.errors import UserError
from regard.layers.norm import BatchNorm
from regard.layers.tap import Blend, Tap
from regard.registry.info import Translation
from regard.registry.registration import register


def _parameters(channels: int, *, frames: int, kernel_size: int, reduction: int) -> int:
    hidden = max(1, channels // reduction)
    return channels * hidden * (kernel_size + 1) + 2 * hidden + 2 * frames * (frames + 2 + kernel_size)


def _translate(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    in_channels: int | None = None,
    n_segment: int | None = None,
    kernel_size: int | None = None,
    stride: int = 1,
    padding: int | None = None,
) -> Translation:
    hidden, width, kernel = tensors["L.0.weight"].shape
    kernel_size = kernel_size or kernel
    if stride != 1 or padding not in (None, kernel_size // 2):
        raise ValueError(f"as many frames come out as go in, so stride is 1 and padding {kernel_size // 2}")
    channels = in_channels or channels or width
    frames = n_segment or tensors["G.0.weight"].shape[1]
    options = {"frames": frames, "kernel_size": kernel_size, "reduction": max(1, channels // hidden)}
    return channels, options, {"G": "adapt", "L": "activate"}


@register(
    "tam",
    category="temporal",
    paper="Liu et al. 2021, arXiv 2005.06803",
    place="branches",
    signature="(B frames, C, *spatial) -> same",
    parameters=_parameters,
    hidden=lambda tam: [tam.activate[1]],
    official={"tam": _translate},
)
class TAM(nn.Module):
    """Weigh every channel in every frame of a clip, then mix neighbouring frames by a kernel made for this clip.

    Paper:    Liu et al. 2021, TAM: Temporal Adaptive Module for Video Recognition, arXiv 2005.06803, section 3.
    Category: temporal; one number per frame and channel, and one kernel over time per clip and channel.
    Formula:  s = mean_HW(x);  g = sigmoid(conv_1(relu(norm(conv_k(s)))));  w = softmax(W2 relu(norm(W1 s))); y_t =
              sum_j w_j g_(t+j) x_(t+j), j from -(k - 1) / 2 to (k - 1) / 2, zero before the first and after the last
    Shape:    x, y: (B T, C, *spatial), the frames of a clip one after the other;  s: (B, C, T);  g: (B T, C, 1, ...);
              w: (B, C, k)
    Cost:     C M (k + 1) + 2 M + 2 frames (frames + 2 + k) parameters, M = C / r; reads the map 2 + k times, writes it
              twice.
    Place:    branches: the end of each residual branch, before the addition. The authors put it inside each bottleneck,
              behind the first convolution with its norm and activation: name these with at=.
    Differs:  Nothing from the released code in what it computes. Its stride and padding only work where as many frames
              come out as go in; so it is here, and the kernel is odd. Fewer than 4 channels leave the authors no hidden
              channel; here at least one stays. The mean over time that ends their network is the network's, not the
              module's.
              With `start="identity"` the norms of hidden layers of fewer than 16 units start with biases of 2, so that
              few units start shut.
    Maps:     `gate`, channel, of every frame, values in (0, 1); `kernel`, kernel, values in (0, 1).

    Args:
        channels: C.
        frames: T, frames of a clip; the batch is a multiple of it.
        kernel_size: k, frames that are mixed, odd.
        reduction: r, how many times narrower the hidden layer of the gate is.

    Example:
        >>> import regard, torch
        >>> two_clips = torch.randn(2 * 8, 64, 7, 7)
        >>> regard.create("tam", 64, frames=8)(two_clips).shape
        torch.Size([16, 64, 7, 7])
    """

    def __init__(self, channels: int, *, frames: int = 8, kernel_size: int = 3, reduction: int = 4) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise UserError(f"tam: kernel_size is odd, so that as many frames come out as go in, got {kernel_size}")
        hidden = max(1, channels // reduction)
        self.frames = frames
        self.activate = nn.Sequential(
            nn.Conv1d(channels, hidden, kernel_size, padding=kernel_size // 2, bias=False),
            BatchNorm(hidden),
            nn.ReLU(),
            nn.Conv1d(hidden, channels, 1, bias=False),
        )
        self.adapt = nn.Sequential(
            nn.Linear(frames, 2 * frames, bias=False),
            BatchNorm(2 * frames),
            nn.ReLU(),
            nn.Linear(2 * frames, kernel_size, bias=False),
        )
        self.gate = Tap("channel")
        self.kernel = Tap("kernel", rest=None)
        self.blend = Blend()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] % self.frames:
            raise UserError(
                f"a batch of {x.shape[0]} frames does not hold whole clips of {self.frames}: give the frames of "
                "whole clips, or create it with another frames=",
                subject="tam",
            )
        joint = ops.Joint(x)
        (squeezed,) = joint.squeeze(tuple(range(2, x.dim())))
        s = squeezed.flatten(1).unflatten(0, (-1, self.frames)).transpose(1, 2)
        gate = torch.sigmoid(self.activate(s)).transpose(1, 2).reshape(squeezed.shape)
        kernel = self.kernel(torch.softmax(self.adapt(s.flatten(0, 1)), dim=-1).unflatten(0, s.shape[:2]))

        gated = joint.gate(self.gate(gate)).unflatten(0, (-1, self.frames))
        size = kernel.shape[2]
        around = F.pad(gated, [0, 0] * (x.dim() - 1) + [size // 2, size // 2])
        weights = kernel.to(x.dtype).reshape(s.shape[0], 1, s.shape[1], *[1] * (x.dim() - 2), size)
        mixed = reduce(torch.add, (around[:, j : j + self.frames] * weights[..., j] for j in range(size)))
        return self.blend(x, mixed.flatten(0, 1))

    def extra_repr(self) -> str:
        return f"frames={self.frames}"
