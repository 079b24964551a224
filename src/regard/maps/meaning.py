"""Whether a map means anything: what it varies with, what the network loses with it, whether it finds the object."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.base.arrays import array
from regard.base.errors import UserError
from regard.maps.saliency import Target, evidence, explain, logits_of
from regard.networks.randomness import same_randomness
from regard.networks.replica import borrowed, call

STEPS = 20  # of insertion and deletion


@dataclass(frozen=True)
class Figure:
    """What one of the figures of a map says.

    Attributes:
        text: for a reader who has never seen it.
        most, least: at which, and beyond, a reader is warned.
        warning: the words.
    """

    text: str
    most: float = math.inf
    least: float = -math.inf
    warning: str = ""

    def warns(self, value: float | None) -> bool:
        return value is not None and not self.least < value < self.most

    @property
    def limit(self) -> str:
        """When a reader is warned, in words; empty where never."""
        if self.warning:
            return f"{self.most:.2g} and more" if self.most < math.inf else f"{self.least:.2g} and less"
        return ""


FIGURES = {
    "spread": Figure(
        "How far a map's values lie apart, over their mean. Near 0 it is flat.",
        least=0.02,
        warning="flat: says nothing",
    ),
    "entropy": Figure("1 is a map that is even everywhere, near 0 one that is a single place."),
    "between_images": Figure(
        "The share of the variance that is between the pictures. Near 0 every picture has the same map.",
        least=0.01,
        warning="the same for every image",
    ),
    "by_class": Figure(
        "The share of the variance between pictures that is between the classes they are taken for; 0 is chance. Only "
        "where some pictures share a class."
    ),
    "edges": Figure(
        "Rank correlation with the strength of the picture's edges. Near 1 the map shows the picture, not a reason.",
        most=0.7,
        warning="follows edges, not the class",
    ),
    "random_weights": Figure(
        "Rank correlation with the map of the same network with all weights drawn anew. Near 1 nothing in it was "
        "learnt. The curve shows it layer by layer, from the output on.",
        most=0.8,
        warning="the same with random weights: shows the picture, not what was learnt",
    ),
    "matters": Figure(
        "Places are taken away in the order of the map, or alone left in, and the score of the class is followed "
        "(deletion, insertion). The figure is the area between the two curves less that for random places: the higher, "
        "the more the network needs what the map shows.",
        least=0,
        warning="the network needs these places no more than random ones",
    ),
    "pointing": Figure("How often the highest value lies on the object."),
    "on_object": Figure("The share of the map that lies on the object; an even map has the object's area there."),
    "object_area": Figure("The object's share of the picture."),
}


@dataclass(frozen=True)
class Meaning:
    """Figures of the maps of one place in a network, on several images; what cannot be told is None.

    Attributes:
        spread: 95th less 5th percentile, or the standard deviation where that is more (a map of one place), over the
            mean absolute value, of the median image.
        entropy: of a map taken as shares of its sum, over that of an even map: 1 says nothing of where, near 0 one
            place; of the median image.
        between_images: share of the maps' variance that is between images: 0 where every image has the same map.
        by_class: of channels, the share of the variance between images that is between their classes; 0 is chance.
        edges: rank correlation with the strength of the picture's edges, median.
        random_weights: rank correlation with the maps of the same network with weights drawn anew, median.
        matters: how much more the network loses with the places that a map shows, and gains, than with random ones:
            insertion less deletion, both as areas, over the same for pixels in random order.
        pointing: share of the images whose highest value lies on the object.
        on_object: share of the maps' sum that lies on the object, mean; chance is `object_area`.
        object_area: the object's share of the picture, mean.
    """

    spread: float
    entropy: float
    between_images: float | None = None
    by_class: float | None = None
    edges: float | None = None
    random_weights: float | None = None
    matters: float | None = None
    pointing: float | None = None
    on_object: float | None = None
    object_area: float | None = None

    @property
    def figures(self) -> dict[str, float]:
        """What could be told."""
        return {name: value for name in FIGURES if (value := getattr(self, name)) is not None}

    @property
    def words(self) -> list[str]:
        """What a reader must know before reading anything into the colours; empty where there is nothing."""
        found = [FIGURES[name].warning for name, value in self.figures.items() if FIGURES[name].warns(value)]
        return found[:1] if FIGURES["spread"].warns(self.spread) else found

    def __str__(self) -> str:
        """The figures in a line."""
        return ", ".join(
            f"{name.replace('_', ' ')} {round(value, 2) + 0.0:.2f}" for name, value in self.figures.items()
        )


def judge(
    maps: Any,
    images: Any = None,
    *,
    masks: Any = None,
    random: Any = None,
    classes: Sequence[int] | None = None,
    curves: Curves | None = None,
) -> Meaning:
    """Say in figures whether maps carry information, before anybody reads a meaning into their colours.

    Args:
        maps: (K, ...): one map for each of K images, of pixels (K, h, w) or (K, 1, h, w), or of channels (K, n).
        images: (K, C, H, W) of any range, for `edges`; only for maps of pixels.
        masks: (K, H, W), true on the object, for `pointing`, `on_object` and `object_area`; likewise.
        random: maps of the first images, or all, at the same place with other weights, see `randomised`.
        classes: (K,) of the images; only for channels.
        curves: of the same maps, from `erase`.

    Raises:
        UserError: the numbers of maps, images and masks differ, or a map holds NaN or infinity.
    """
    values = array(maps).astype(np.float64)
    if values.ndim == 4 and values.shape[1] == 1:
        values = values[:, 0]
    for what, given in (("images", images), ("masks", masks), ("classes", classes)):
        if given is not None and len(given) != len(values):
            raise UserError(f"judge: there are {len(values)} maps and {len(given)} {what}; give one for each map")
    if random is not None and len(random) > len(values):
        raise UserError(f"judge: there are {len(values)} maps, and {len(random)} of random weights")
    if not np.isfinite(values).all():
        raise UserError("judge: a map holds NaN or infinity; look at the network that made it")
    flat = values.reshape(len(values), -1)
    low, high = np.percentile(flat, (5, 95), axis=1)
    size = np.abs(flat).mean(axis=1)
    reach = np.maximum(high - low, flat.std(axis=1))
    spread = float(np.median(np.divide(reach, size, out=np.zeros_like(size), where=size > 0)))
    found: dict[str, float] = {"spread": spread, "entropy": float(np.median([_entropy(row) for row in flat]))}
    if len(flat) > 1:
        between, within = flat.var(axis=0).mean(), flat.mean(axis=0).var()
        found["between_images"] = float(between / (between + within)) if between + within > 0 else 0.0
    if images is not None and values.ndim == 3:
        pairs = zip(flat, edge_strength(images, values.shape[1:]), strict=True)
        found["edges"] = float(np.median([_correlation(row, edges.ravel()) for row, edges in pairs]))
    if masks is not None and values.ndim == 3:
        found |= _found(values, array(masks) > 0)
    if random is not None:
        found["random_weights"] = likeness(values[: len(random)], random)
    if classes is not None and values.ndim == 2 and (moved := moved_by(values, classes)):
        found["by_class"] = moved[0]
    if curves is not None:
        areas = curves.areas
        gained = areas["insertion"] - areas["deletion"]
        found["matters"] = gained - (areas["random insertion"] - areas["random deletion"])
    return Meaning(**found)


def likeness(maps: Any, others: Any) -> float:
    """Rank correlation of maps with others of the same images, median."""
    pairs = zip(array(maps), array(others), strict=True)
    return float(np.median([_correlation(one.ravel(), other.ravel()) for one, other in pairs]))


def moved_by(values: np.ndarray, classes: Sequence[int]) -> tuple[float, np.ndarray] | None:
    """How much channel gates follow the class: the share of the variance over images that is between classes, less
    what chance gives (epsilon squared), of all channels together and of each.

    Args:
        values: (K, C).
        classes: (K,).

    Returns:
        The share and the shares (C,); None unless there are two classes, and two images of one of them.
    """
    known, which = np.unique(np.asarray(classes), return_inverse=True)
    free = len(values) - len(known)
    if len(known) < 2 or free < 1:
        return None
    means = np.stack([values[which == number].mean(0) for number in range(len(known))])
    inside = ((values - means[which]) ** 2).sum(0) / free
    total = ((values - values.mean(0)) ** 2).sum(0) / (len(values) - 1)
    shares = 1 - np.divide(inside, total, out=np.ones_like(inside), where=total > 0)
    return (float(1 - inside.sum() / total.sum()) if total.sum() > 0 else 0.0), shares


def _entropy(row: np.ndarray) -> float:
    row = row - min(0.0, float(row.min()))
    if len(row) < 2 or row.sum() <= 0:
        return 1.0
    shares = row[row > 0] / row.sum()
    return float(-(shares * np.log(shares)).sum() / math.log(len(row)))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of the ranks; 0 where one of them is constant."""
    from scipy.stats import rankdata

    a, b = rankdata(a), rankdata(b)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def edge_strength(images: Any, sides: tuple[int, ...]) -> np.ndarray:
    """(K, h, w): how strong the edges of the picture are, on the pixels of a map."""
    grey = torch.as_tensor(array(images)).mean(1, keepdim=True)
    smooth, steps = torch.tensor([1.0, 2, 1], dtype=grey.dtype), torch.tensor([-1.0, 0, 1], dtype=grey.dtype)
    kernels = torch.stack([torch.outer(smooth, steps), torch.outer(steps, smooth)]).unsqueeze(1)
    strength = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels).norm(dim=1, keepdim=True)
    return array(F.adaptive_avg_pool2d(strength, (sides[0], sides[1])).squeeze(1))


def _found(values: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """The pointing game (Zhang et al. 2018) and the energy on the object (Wang et al. 2020)."""
    large = F.interpolate(torch.as_tensor(values).unsqueeze(1), masks.shape[1:], mode="bilinear").squeeze(1).numpy()
    peaks = large.reshape(len(large), -1).argmax(1)
    large = large - np.minimum(0, large.min((1, 2), keepdims=True))
    total = large.sum((1, 2))
    shares = np.divide((large * masks).sum((1, 2)), total, out=masks.mean((1, 2)), where=total > 0)
    return {
        "pointing": float(masks.reshape(len(masks), -1)[np.arange(len(masks)), peaks].mean()),
        "on_object": float(shares.mean()),
        "object_area": float(masks.mean()),
    }


# --- what the network loses ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curves:
    """The share of the first score that is left while pixels are taken away or put in, best first.

    Attributes:
        deletion, insertion: (B, STEPS + 1), from no pixel to all.
        chance: (2, B, STEPS + 1), the same for pixels in random order.
    """

    deletion: np.ndarray
    insertion: np.ndarray
    chance: np.ndarray

    @property
    def all(self) -> dict[str, np.ndarray]:
        """The four by their names."""
        both = {"deletion": self.deletion, "insertion": self.insertion}
        return both | {f"random {name}": curve for name, curve in zip(both, self.chance, strict=True)}

    @property
    def areas(self) -> dict[str, float]:
        """Under each curve, mean over the images: deletion is good when low, insertion when high."""
        return {name: float(((curve[:, 1:] + curve[:, :-1]) / 2).mean()) for name, curve in self.all.items()}


def erase(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target: int | Sequence[int] | Tensor | None = None,
    *,
    steps: int = STEPS,
    batch: int = 32,
    chance: np.ndarray | None = None,
) -> Curves:
    """Take away what a map shows, or put in nothing else, and see what becomes of the score.

    Deletion and insertion (Petsiuk et al. 2018, RISE, arXiv 1806.07421): the pixels go in the order of the map, and
    what is not there is a blurred picture, which looks less strange to a network than grey.

    Args:
        model: gives (B, classes).
        images: (B, C, H, W), as the model takes them.
        maps: (B, h, w) or (B, 1, h, w).
        target: a class, or one for each image; None takes the class that each image is given.
        steps: at which the score is read.
        batch: images at a time.
        chance: that of an earlier call for the same images, target and steps, which is then not computed again.
    """
    maps = maps.reshape(len(images), 1, *maps.shape[-2:]).float()
    sides = images.shape[2:]
    values = F.interpolate(maps, sides, mode="bilinear").flatten(1)
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.stack([torch.randperm(values.shape[1], generator=generator) for _ in images]).to(values.device)
    # equal values in random order: not all of them from the upper left
    order = shuffled.gather(1, values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    size = max(3, min(sides) // 4 | 1)
    blurred = images
    for _ in range(3):  # nearly a Gaussian
        padded = F.pad(blurred, [size // 2] * 4, mode="replicate")
        blurred = F.avg_pool2d(padded, size, stride=1)
    curves = []
    with torch.inference_mode(), borrowed(model) as twin:
        full = torch.cat([logits_of(twin(part)).float().softmax(1) for part in images.split(batch)])
        classes = full.argmax(1) if target is None else torch.as_tensor(target, device=full.device).expand(len(full))
        chosen = classes.unsqueeze(1)
        first = full.gather(1, chosen)
        for ranks in (order.argsort(1), *([] if chance is not None else [shuffled.argsort(1)])):
            for there, away in ((blurred, images), (images, blurred)):
                shares = []
                for step in range(steps + 1):
                    early = (ranks < round(step / steps * ranks.shape[1])).view(len(images), 1, *sides)
                    parts = torch.where(early, there, away).split(batch)
                    scores = torch.cat([logits_of(twin(part)).float().softmax(1) for part in parts])
                    shares.append((scores.gather(1, chosen) / first).squeeze(1))
                curves.append(torch.stack(shares, 1).cpu().numpy())
    return Curves(curves[0], curves[1], np.stack(curves[2:]) if chance is None else chance)


# --- whether it is learnt --------------------------------------------------------------------------------------------


def randomised(model: nn.Module, example: Any, *, seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """Copies of a network whose weights are drawn anew, layer by layer from the output on: Adebayo et al. 2018,
    arXiv 1810.03292. A map that hardly changes shows the picture, not what was learnt.

    Args:
        model: any network.
        example: what it is called with, to know the order of the layers.
        seed: of the weights.

    Yields:
        The last layer that was drawn anew, and one copy for all, which goes on being changed.
    """
    copy = deepcopy(model)
    modules = dict(copy.named_modules())
    order: list[str] = []
    with torch.no_grad(), borrowed(copy) as twin:
        for name, module in twin.named_modules():
            if can_be_drawn(module):
                module.register_forward_hook(lambda *_, name=name: order.append(name))
        call(twin, example)
    unseen = [name for name in modules if can_be_drawn(modules[name]) and name not in order]
    with same_randomness():
        torch.manual_seed(seed)
        for name in (*dict.fromkeys(reversed(order)), *unseen):  # ops may read a layer's weights without calling it
            with torch.no_grad():
                _draw_anew(modules[name])
            yield name, copy


def can_be_drawn(module: nn.Module) -> bool:
    """Whether a module has weights, or numbers that were measured, of its own."""
    return hasattr(module, "reset_parameters") or next(_own(module), None) is not None


def _own(module: nn.Module) -> Iterator[Tensor]:
    kept = (tensor for name, tensor in module._buffers.items() if name not in module._non_persistent_buffers_set)
    for tensor in (*module._parameters.values(), *kept):
        if tensor is not None and tensor.is_floating_point() and tensor.numel() and bool(tensor.isfinite().all()):
            yield tensor


def _draw_anew(module: Any) -> None:
    """As the module starts, where it can; what does not start by itself, from its own mean and deviation."""
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
        return
    for tensor in _own(module):
        mean, deviation = tensor.float().mean(), tensor.float().std(correction=0)
        if deviation == 0:  # such as a gate's one number
            deviation = 0.1 * mean.abs() if mean else torch.ones_like(mean)
        tensor.copy_(torch.randn(tensor.shape, device=tensor.device) * deviation + mean)


def stays(
    model: nn.Module, images: Tensor, target: Target = None, *, layer: str = "auto", **options: Any
) -> Mapping[str, float]:
    """How much of `explain`'s map is left when the network's weights are drawn anew, layer by layer from the output on.

    Args:
        model, images, target, layer, options: as in `regard.explain`.

    Returns:
        Median rank correlation with the map of the trained network, by the last layer that was drawn anew.
    """
    trained = explain(model, images, target, layer=layer, **options)
    classes = trained.classes if target is None else target
    found = {}
    for name, copy in randomised(model, images[:1]):
        maps = evidence(copy, images, classes, layer=trained.name, **options).value
        found[name] = likeness(trained.value, maps)
    return found
