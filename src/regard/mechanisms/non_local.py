"""Non-local Neural Networks (Wang et al. 2018): https://arxiv.org/abs/1711.07971"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard import ops
from regard.base.errors import UserError
from regard.layers.conv import Pointwise
from regard.layers.norm import BatchNorm, wide
from regard.layers.tap import Tap
from regard.registry.info import Translation, Unkept
from regard.registry.registration import register

PAIRWISE = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
SUBSAMPLE = ("none", "before", "after")
POOLS: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _parameters(channels: int, *, pairwise: str, reduction: int, hidden: int | None, norm: bool, **_: Any) -> int:
    hidden = hidden or max(1, channels // reduction)
    projections = 1 if pairwise == "gaussian" else 3
    pair = 2 * hidden * (pairwise == "concatenation")
    return projections * (channels * hidden + hidden) + pair + hidden * channels + channels + 2 * channels * norm


def _port(pairwise: str) -> Callable[..., Translation]:
    """Of the PyTorch port that most others copy: the pooling follows the projections, nothing is scaled."""

    def translate(
        tensors: Mapping[str, Tensor],
        channels: int | None,
        *,
        in_channels: int | None = None,
        inter_channels: int | None = None,
        dimension: int | None = None,
        sub_sample: bool = True,
        bn_layer: bool = True,
    ) -> Translation:
        projection = "g.0" if sub_sample else "g"
        hidden, width = tensors[f"{projection}.weight"].shape[:2]
        channels = in_channels or channels or width
        if inter_channels not in (None, hidden):
            raise ValueError(f"inter_channels is {inter_channels}, but the tensors have {hidden}")
        options: dict[str, Any] = {"pairwise": pairwise, "hidden": hidden, "norm": bn_layer}
        options["subsample"] = "after" if sub_sample else "none"
        names = {projection: "value", "theta": "query", "phi.0" if sub_sample else "phi": "key"}
        names |= {"W.0": "out", "W.1": "norm"} if bn_layer else {"W": "out"}
        return channels, options, names | {"concat_project.0": "pair"}

    return translate


def _released(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    C: int | None = None,
    inner: int | None = None,
    dim: int | None = None,
    pool: bool = True,
    scale: bool = True,
    softmax: bool = True,
) -> Translation:
    hidden, width = tensors["theta.weight"].shape[:2]
    channels = C or channels or width
    if inner not in (None, hidden):
        raise ValueError(f"inner is {inner}, but the tensors have {hidden}")
    # they scale the logits of the softmax alone
    options: dict[str, Any] = {"hidden": hidden, "scale": scale and softmax}
    options |= {"pairwise": "embedded_gaussian" if softmax else "dot_product"}
    options |= {"subsample": "before" if pool else "none"}
    return channels, options, {"theta": "query", "phi": "key", "g": "value", "bn": "norm"}


@register(
    "non_local",
    category="spatial and temporal",
    attention="self",
    paper="Wang et al. 2018, arXiv 1711.07971",
    place="stages",
    parameters=_parameters,
    identity=None,
    official={f"nonlocal_{pairwise}": _port(pairwise) for pairwise in PAIRWISE} | {"nonlocal_official": _released},
    exceptions={
        "a gradient of a gradient": Unkept(
            "torch's own attention, which keeps no weights, has a first derivative only; while "
            "its tap is watched the weights are kept, and there is one",
            error="derivative for .* is not implemented",
        )
    },
)
class NonLocal(nn.Module):
    """Add to every position what all positions hold, weighed by one of four functions of the two.

    Paper:    Wang et al. 2018, Non-local Neural Networks, arXiv 1711.07971, sections 3.1-3.3.
    Category: spatial and temporal; weights between all pairs of positions: in space and time on a (B, C, T, H, W) map,
              in space on a (B, C, H, W) map.
    Formula:  y_i = x_i + norm(W sum_j f_ij G x_j + b);  gaussian: f_ij = softmax_j(x_i . x_j);
              embedded_gaussian: f_ij = softmax_j(Q x_i . K x_j);  dot_product: f_ij = Q x_i . K x_j / N;
              concatenation: f_ij = relu(w . [Q x_i, K x_j]) / N, with N keys
    Shape:    x, y: (B, C, *spatial);  Q, K, G: C to M = C / r;  f: (B, 1, *queries, *keys)
    Cost:     4 C M + 3 M + 3 C parameters; memory grows with the N positions; time with N^2 for the first two
              functions, N for dot_product, N log N for concatenation.
    Place:    stages: the authors put it after every second residual block of res3 and res4, the second and third of a
              ResNet's four stages.
    Differs:  The released code has only the second and third function, multiplies the logits by M^-0.5 (`scale=True`)
              and pools the map before K and G (`subsample="before"`); the paper's equations do neither, and so does
              this by default. The most copied port pools after them (`"after"`). The norm starts at 0, so that a fresh
              module is the identity. A side of one pixel is not pooled, where the port fails. Popular copies scale by
              the wrong width.
    Maps:     `weights`, position, values in (0, 1); for dot_product and concatenation any value.

    Args:
        channels: C.
        pairwise: ``"gaussian"``, ``"embedded_gaussian"``, ``"dot_product"`` or ``"concatenation"``.
        reduction: r, how many times narrower the inner width is; the paper's 2.
        hidden: the inner width itself, instead of C / r.
        scale: whether the logits, or products, are multiplied by one over the root of their width.
        subsample: keys and values are max-pooled over 2 x 2 pixels (never over time): ``"none"``, ``"before"`` or
            ``"after"`` their projections.
        norm: whether a batch norm stands behind W; without it W and b start at 0.

    Example:
        >>> import regard, torch
        >>> regard.create("non_local", 64)(torch.randn(2, 64, 4, 7, 9)).shape
        torch.Size([2, 64, 4, 7, 9])
    """

    def __init__(
        self,
        channels: int,
        *,
        pairwise: str = "embedded_gaussian",
        reduction: int = 2,
        hidden: int | None = None,
        scale: bool = False,
        subsample: str = "none",
        norm: bool = True,
    ) -> None:
        super().__init__()
        if pairwise not in PAIRWISE:
            raise UserError(f"non_local: pairwise is one of {', '.join(PAIRWISE)}, got {pairwise!r}")
        if subsample not in SUBSAMPLE:
            raise UserError(f"non_local: subsample is one of {', '.join(SUBSAMPLE)}, got {subsample!r}")
        width = hidden or max(1, channels // reduction)
        self.pairwise, self.subsample = pairwise, subsample
        self.scale = (channels if pairwise == "gaussian" else width) ** -0.5 if scale else 1.0
        if pairwise != "gaussian":
            self.query = Pointwise(channels, width)
            self.key = Pointwise(channels, width)
        if pairwise == "concatenation":
            self.pair = nn.Linear(2 * width, 1, bias=False)
        self.value = Pointwise(channels, width)
        self.out = Pointwise(width, channels)
        for projection in self.children():
            nn.init.normal_(projection.weight, std=0.01)  # type: ignore[arg-type]
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
        self.norm = BatchNorm(channels) if norm else nn.Identity()
        nn.init.zeros_(self.norm.weight if norm else self.out.weight)  # type: ignore[arg-type]
        softmax = pairwise.endswith("gaussian")
        reach = (0.0, 1.0) if softmax else (-float("inf"), float("inf"))
        self.weights = Tap("position", low=reach[0], high=reach[1], rest=None)

    def forward(self, x: Tensor) -> Tensor:
        seen = _pool(x) if self.subsample == "before" else x
        embed = self.pairwise != "gaussian"
        query, key, value = self.query(x) if embed else x, self.key(seen) if embed else seen, self.value(seen)
        if self.subsample == "after":
            key, value = _pool(key), _pool(value)
        y = self._weigh(query, key, value.to(query.dtype))
        return x + self.norm(self.out(y)).to(x.dtype)

    def _weigh(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.pairwise.endswith("gaussian"):
            watch = self.weights if self.weights.watched else None
            heads = (t.unsqueeze(1) for t in (query, key, value))
            return ops.attend(*heads, scale=self.scale, watch=watch).squeeze(1)
        q, k, v = (t.flatten(2).transpose(1, 2) for t in (query, key, value))
        factor = self.scale / k.shape[1]
        if self.weights.watched or (self.pairwise == "concatenation" and torch.onnx.is_in_onnx_export()):
            sides = (len(q), 1, *query.shape[2:], *key.shape[2:])
            weights = self.weights((self._pairs(q, k) * factor).reshape(sides))
            y = weights.reshape(len(q), q.shape[1], k.shape[1]).to(v.dtype) @ v
        elif self.pairwise == "dot_product":
            y = q @ (k.transpose(1, 2) @ v) * factor  # no softmax: the products may change order
        else:
            y = _sum_above(*self._halves(q, k), v).to(v.dtype) * factor
        return y.transpose(1, 2).reshape(*value.shape[:2], *query.shape[2:])

    def _pairs(self, q: Tensor, k: Tensor) -> Tensor:
        if self.pairwise == "dot_product":
            return q @ k.transpose(1, 2)
        a, b = self._halves(q, k)
        return torch.relu(a + b.transpose(1, 2))

    def _halves(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """w . [q, k] is a sum of one number of the query, (B, queries, 1), and one of the key, (B, keys, 1)."""
        ours, theirs = self.pair.weight.chunk(2, dim=1)
        return F.linear(q, ours), F.linear(k, theirs)

    def extra_repr(self) -> str:
        return f"pairwise={self.pairwise}, scale={self.scale:g}, subsample={self.subsample}"


def _pool(x: Tensor) -> Tensor:
    """Halve the sides of an image, not the time of a video."""
    sides = [min(2, side) for side in x.shape[2:]]
    if len(sides) == 3:
        sides[0] = 1
    return POOLS[len(sides)](x, sides)


def _sum_above(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """sum_j relu(a_i + b_j) v_j in N log N: what counts for i is a beginning of the keys in descending order of b.

    Hence a_i sum_j v_j + sum_j b_j v_j over that beginning, read from running sums.

    Args:
        a: (B, queries, 1).
        b: (B, keys, 1).
        v: (B, keys, M).

    Returns:
        (B, queries, M), in float32 at least.
    """
    a, b, v = wide(a), wide(b), wide(v)
    middle = b.detach().mean(1, keepdim=True)  # far from zero, the two sums would be large and cancel
    descending, order = b.detach().transpose(1, 2).sort(dim=2, descending=True)
    counted = torch.searchsorted(-descending, a.detach().transpose(1, 2).contiguous())  # keys with b_j > -a_i
    a, b = a + middle, b - middle
    # channels before keys, so that the sums run along memory
    terms = torch.cat([v, b * v], dim=2).transpose(1, 2)
    sums = terms.gather(2, order.expand_as(terms)).cumsum(2)
    here = F.pad(sums, (1, 0)).gather(2, counted.expand(-1, terms.shape[1], -1))
    plain, weighed = here.transpose(1, 2).chunk(2, dim=2)
    return a * plain + weighed
