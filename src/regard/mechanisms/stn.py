"""Spatial Transformer (Jaderberg et al. 2015): https://arxiv.org/abs/1506.02025"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available
from torch.nn import functional as F

from regard.base.errors import UserError, near
from regard.layers.norm import wide
from regard.layers.tap import LAST, Tap
from regard.registry.info import Translation
from regard.registry.registration import register

LARGEST = 4096  # side of a result, in pixels
CONVOLUTIONS: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
PADDINGS = ("zeros", "border", "reflection")
WIDTH, CELLS = 16, 4  # channels of the default localisation network, and the side of the grid it ends in


def sample(
    x: Tensor,
    theta: Tensor,
    *,
    size: Sequence[int] | None = None,
    align_corners: bool = False,
    padding: str = "zeros",
) -> Tensor:
    """Look at a map through an affine frame: each output pixel is read, bilinearly, where `theta` sends it.

    Coordinates run from -1 to 1 along each side. The rows of theta give x, y (and z), the *last* axis of the map first.

    Args:
        x: (B, C, H, W) or (B, C, D, H, W).
        theta: (B, d, d + 1), from places of the output to places of x; the identity is a unit matrix and a zero column.
        size: spatial size of the result; that of x if None.
        align_corners: whether -1 and 1 are the centres of the outermost pixels (Torch7's sampler) or their outer edges.
        padding: what is seen outside: ``"zeros"``, ``"border"`` or ``"reflection"``.

    Returns:
        (B, C, \\*size), with the dtype of x.
    """
    # half precision is too coarse for coordinates: at the far side of a map it jumps by pixels
    map = wide(x)
    sides = x.shape[2:] if size is None else size
    dims = len(sides)
    places = []
    for axis, length in enumerate(sides):
        pixels = torch.arange(length, dtype=map.dtype, device=x.device)
        row = (2 * pixels + 1 - length) / (length - 1 if align_corners and length > 1 else length)
        places.append(row.reshape([-1 if other == axis else 1 for other in range(dims)]))
    places.reverse()
    # the sum of two rows is a plane; this is `affine_grid`, which cannot be exported with dynamic sides
    rows = theta.to(map.dtype).reshape(-1, dims, dims + 1, *[1] * dims)
    planes = [
        sum((rows[:, i, j] * place for j, place in enumerate(places)), start=rows[:, i, dims]) for i in range(dims)
    ]
    y = F.grid_sample(map, torch.stack(planes, dim=-1), padding_mode=padding, align_corners=align_corners)
    layout = LAST[x.dim()] if x.is_contiguous(memory_format=LAST[x.dim()]) else torch.contiguous_format
    return y.to(x.dtype).contiguous(memory_format=layout)


class Cells(nn.Module):
    """The means of ``count`` cells along each axis, as torch's adaptive pooling.

    That one is exported with the cells of the example's size, and has no deterministic backward pass on a GPU.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        for axis in range(2, x.dim()):
            pixel = torch.arange(x.shape[axis], device=x.device)
            cell = torch.arange(self.count, device=x.device).unsqueeze(1)
            first, last = cell * x.shape[axis] // self.count, ((cell + 1) * x.shape[axis] - 1) // self.count
            means = ((pixel >= first) & (pixel <= last)).to(x.dtype) / (last - first + 1)
            x = (x.transpose(axis, -1) @ means.to(x.dtype).T).transpose(axis, -1)
        return x

    def extra_repr(self) -> str:
        return f"{self.count}"


def _network(channels: int, hidden: int, spatial_dims: int) -> nn.Sequential:
    """A small localisation network for maps of any size."""
    convolution = CONVOLUTIONS[spatial_dims]
    return nn.Sequential(
        convolution(channels, WIDTH, 3, padding=1),
        nn.ReLU(),
        Cells(2 * CELLS),
        convolution(WIDTH, WIDTH, 3, padding=1),
        nn.ReLU(),
        Cells(CELLS),
        nn.Flatten(),
        nn.Linear(WIDTH * CELLS**spatial_dims, hidden),
        nn.LayerNorm(hidden),  # maps between stages come in any scale; frames should not
        nn.ReLU(),
    )


def _tutorial(channels: int) -> nn.Sequential:
    """The localisation network of PyTorch's tutorial, for maps of 28 x 28."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 7), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(8, 10, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(10 * 3 * 3, 32), nn.ReLU(),
    )  # fmt: skip


def _full_precision(x: Tensor) -> AbstractContextManager[Any]:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()


def _start_exactly(module: nn.Module) -> None:
    module.exact = module.size is None  # type: ignore[assignment]


def _parameters(
    channels: int, *, spatial_dims: int, localisation: nn.Module | str | None, hidden: int, **_: Any
) -> int:
    if isinstance(localisation, nn.Module):
        network = sum(parameter.numel() for parameter in localisation.parameters())
    elif localisation == "tutorial":
        network = 8 * (49 * channels + 1) + 10 * (25 * 8 + 1) + 32 * (90 + 1)
    else:
        kernel = 3**spatial_dims
        network = WIDTH * (kernel * channels + 1) + WIDTH * (kernel * WIDTH + 1)
        network += hidden * (WIDTH * CELLS**spatial_dims + 3)
    return network + spatial_dims * (spatial_dims + 1) * (hidden + 1)


def _translate(tensors: Mapping[str, Tensor], channels: int | None, *, localisation: str = "tutorial") -> Translation:
    if localisation != "tutorial":
        raise ValueError(f"only the tutorial's network has a known form, got localisation={localisation!r}")
    names = {"localization": "localisation", "fc_loc.0": "localisation.7", "fc_loc.2": "head"}
    return tensors["localization.0.weight"].shape[1], {"localisation": localisation}, names


@register(
    "stn",
    category="spatial",
    paper="Jaderberg et al. 2015, arXiv 1506.02025",
    place="stages",
    signature="(B, C, H, W) -> same",
    spatial=(2, 3),
    parameters=_parameters,
    identity=_start_exactly,
    official={"stn": _translate},
)
class STN(nn.Module):
    """Look at a map through an affine frame that a small network chooses for each image.

    Paper:    Jaderberg et al. 2015, Spatial Transformer Networks, arXiv 1506.02025, section 3.
    Category: spatial; one affine frame per image: what lies outside of it is not seen any more.
    Formula:  theta = W localise(x) + b, 2 x 3;  y(p) = bilinear(x, theta [p, 1]) for every place p in [-1, 1]^2
    Shape:    x, y: (B, C, H, W), or (B, C, D, H, W) with spatial_dims=3;  theta: (B, 2, 3) or (B, 3, 4)
    Cost:     144 C + 2336 + 259 hidden + 6 (hidden + 1) parameters; reads the map twice, writes it once.
    Place:    stages: the end of each stage. The paper puts it on the input and between stages, as often as wanted.
    Differs:  The paper leaves the localisation network open. The default here ends in a fixed number of cells however
              large the map is; that of PyTorch's tutorial (`localisation="tutorial"`) fits 28 x 28 alone, like most
              copies. W starts at 0 and b at the identity, as the tutorial has it. Whether -1 and 1 mean the centres
              or the edges of the outermost pixels is an explicit choice: the authors' sampler (Torch7) has the centres
              and rows (y, x), PyTorch changed from centres to edges in 1.3 without a word in old code; the rows here
              are (x, y). A sampled identity is the map but for rounding; to start as the identity exactly, y is
              x + (sample(x, theta) - sample(x, identity)): the same function and the same gradient of theta, for one
              sampling more.
    Maps:     `frame`, frame, any value.

    Args:
        channels: C.
        spatial_dims: 2 for images, 3 for volumes.
        localisation: a module (B, C, \\*spatial) -> (B, hidden) or any shape with as many numbers for each image;
            ``"tutorial"``: that of PyTorch's tutorial; None: a small network for maps of any size.
        hidden: numbers that the localisation network gives for an image.
        align_corners: whether -1 and 1 are the centres of the outermost pixels or their outer edges.
        padding: what is seen outside the map: ``"zeros"``, ``"border"`` or ``"reflection"``.
        size: spatial size of the result, the map's own if None.

    Example:
        >>> import regard, torch
        >>> regard.create("stn", 3)(torch.randn(2, 3, 32, 40)).shape
        torch.Size([2, 3, 32, 40])
    """

    unit: Tensor

    def __init__(
        self,
        channels: int,
        *,
        spatial_dims: int = 2,
        localisation: nn.Module | str | None = None,
        hidden: int = 32,
        align_corners: bool = False,
        padding: str = "zeros",
        size: Sequence[int] | int | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in CONVOLUTIONS:
            raise UserError(f"stn: spatial_dims is 2 or 3, got {spatial_dims}")
        if padding not in PADDINGS:
            raise UserError(f"stn has no padding {padding!r}{near(padding, PADDINGS) or ': ' + ', '.join(PADDINGS)}")
        if isinstance(size, int):
            size = (size,) * spatial_dims
        if size is not None and len(size) != spatial_dims:
            raise UserError(f"stn: size is one number for each of {spatial_dims} axes, got {size}")
        if not all(type(side) is int and 1 <= side <= LARGEST for side in size or ()):
            raise UserError(f"stn: size is made of whole numbers from 1 to {LARGEST:,}, got {size}")
        if isinstance(localisation, nn.Module):
            self.localisation = localisation
        elif localisation == "tutorial":
            if (spatial_dims, hidden) != (2, 32):
                raise UserError("stn: the tutorial's network is for spatial_dims=2 and hidden=32")
            self.localisation = _tutorial(channels)
        elif localisation is None:
            self.localisation = _network(channels, hidden, spatial_dims)
        else:
            raise UserError(f"stn: localisation is a module, 'tutorial' or None, got {localisation!r}")
        self.head = nn.Linear(hidden, spatial_dims * (spatial_dims + 1))
        nn.init.zeros_(self.head.weight)
        unit = torch.eye(spatial_dims, spatial_dims + 1)
        with torch.no_grad():
            self.head.bias.copy_(unit.flatten())
        self.register_buffer("unit", unit[None], persistent=False)
        self.tutorial = localisation == "tutorial"
        self.align_corners, self.padding, self.size = align_corners, padding, size
        self.exact = False
        self.frame = Tap("frame", low=-math.inf, high=math.inf, rest=None)

    def locate(self, x: Tensor) -> Tensor:
        """The frame of each image, (B, d, d + 1)."""
        if self.tutorial and tuple(x.shape[2:]) != (28, 28):
            raise UserError(
                f"the tutorial's network sees maps of 28 x 28 alone, got {tuple(x.shape[2:])}: leave localisation out",
                subject="stn",
            )
        features = self.localisation(x).flatten(1)
        if features.shape[1] != self.head.in_features:
            raise UserError(
                f"the localisation network gives {features.shape[1]} numbers for each image of {tuple(x.shape[1:])}, "
                f"and hidden says {self.head.in_features}: pass hidden={features.shape[1]}",
                subject="stn",
            )
        with _full_precision(x):  # near the identity, bfloat16 frames would jump by pixels
            theta = self.head(features.to(self.unit.dtype))
        return self.frame(theta.to(x.dtype).reshape(-1, *self.unit.shape[1:]))

    def forward(self, x: Tensor) -> Tensor:
        axes = self.unit.shape[1]
        if x.dim() != axes + 2:
            raise UserError(
                f"this one works on maps with {axes} spatial axes, and this map has {x.dim() - 2}", subject="stn"
            )
        y = self._sample(x, self.locate(x))
        return x + (y - self._sample(x, self.unit.expand(x.shape[0], -1, -1))) if self.exact else y

    def _sample(self, x: Tensor, theta: Tensor) -> Tensor:
        return sample(x, theta, size=self.size, align_corners=self.align_corners, padding=self.padding)

    def extra_repr(self) -> str:
        return f"align_corners={self.align_corners}, padding={self.padding}, size={self.size}"
