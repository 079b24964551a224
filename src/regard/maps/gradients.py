"""One pass of a network in which the maps of some layers are kept, and the gradient of a target in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regard.insertion.layout import Layout
from regard.maps.targets import Target, score_of
from regard.networks.replica import borrowed, call
from regard.networks.weights import weights_kept

Key = tuple[str, int]  # a layer's name, and which of its calls in one pass


@dataclass
class Pass:
    """The maps of some layers in one pass, and the gradient of the target in them.

    Attributes:
        layouts: of the layers.
        several_inputs: whether the network takes images in several arguments.
        images: how many came in; None where neither the example nor the scores tell.
        kept: what each call gave, in the order in which the calls ended.
        gradients: of the same shape; None where the target does not depend on the map.
        scores, classes: as in `regard.Saliency`.
        frames: where a layer holds the frames of clips in place of the batch, the numbers (B, frames) of each clip's.
    """

    layouts: Mapping[str, Layout]
    several_inputs: bool = False
    images: int | None = None
    kept: dict[Key, Tensor] = field(default_factory=dict)
    gradients: dict[Key, Tensor | None] = field(default_factory=dict)
    scores: Tensor = field(default_factory=lambda: torch.zeros(()))
    classes: Tensor | None = None
    frames: dict[Key, Tensor] = field(default_factory=dict)
    _moves: dict[Key, bool] = field(default_factory=dict)

    @staticmethod
    def of(model: nn.Module, example: Any, target: Target, layouts: Mapping[str, Layout], *, cut: bool) -> Pass:
        """Run the network once, forward and backward.

        Args:
            model, example, target: as in `regard.explain`.
            layouts: of the layers whose maps are kept.
            cut: whether each map is a leaf, and nothing before it is differentiated.
        """
        counts = _image_counts(example)
        self = Pass(layouts, several_inputs=len(counts) > 1)
        with torch.inference_mode(False), torch.no_grad(), borrowed(model) as replica, weights_kept(replica):
            for name in layouts:
                replica.get_submodule(name).register_forward_hook(self._keep(name, cut))
            output = call(replica, example)
            torch.set_grad_enabled(True)
            self.scores, self.classes = score_of(output, target)
            self.images = len(self.scores) if self.scores.dim() else next(iter(counts), None)
            odd = {key for key, kept in self.kept.items() if self.scores.dim() and len(kept) != len(self.scores)}
            if self.scores.requires_grad:
                gradients = torch.autograd.grad(
                    self.scores.sum(), [*self.kept.values()], allow_unused=True, retain_graph=bool(odd)
                )
                self.gradients = dict(zip(self.kept, gradients, strict=True))
            for key in self.kept if self.scores.dim() and len(self.scores) > 1 else ():
                if key in odd and self.moves(key) and len(self.kept[key]) % len(self.scores) == 0:
                    self._assign_frames(key)
        return self

    def _keep(self, name: str, cut: bool) -> Callable[..., Any]:
        def keep(_: nn.Module, args: Any, output: Any) -> Any:
            first = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
            torch.set_grad_enabled(True)
            if cut or not first.requires_grad:
                first = first.detach().requires_grad_()
            self.kept[name, sum(other == name for other, _ in self.kept)] = first
            return first.clone()  # what follows may write over it

        return keep

    def _assign_frames(self, key: Key) -> None:
        """Tell by the gradient of each image's score which of a layer's maps are that image's."""
        groups = []
        for score in self.scores:
            (gradient,) = torch.autograd.grad(score, self.kept[key], retain_graph=True)
            groups.append(gradient.flatten(1).any(1).nonzero().flatten())
        if len({len(group) for group in groups}) > 1:
            return
        numbers = torch.cat(groups).sort().values
        if torch.equal(numbers, torch.arange(len(self.kept[key]), device=numbers.device)):
            self.frames[key] = torch.stack(groups)

    def moves(self, key: Key) -> bool:
        """Whether a pixel of a map makes a difference to the target."""
        if key not in self._moves:
            gradient = self.gradients.get(key)
            self._moves[key] = gradient is not None and bool(self.layouts[key[0]].map(gradient).any())
        return self._moves[key]

    def fits(self, key: Key) -> bool:
        """Whether it can be told which of a layer's maps belongs to which image."""
        return self.images in (None, len(self.kept[key])) or key in self.frames or self._one_clip(key)

    def _one_clip(self, key: Key) -> bool:
        """Whether a single clip came in, and all maps are its frames."""
        gradient = self.gradients.get(key)
        if self.images != 1 or self.scores.dim() != 1 or gradient is None:
            return False
        return self.moves(key) and bool(gradient.flatten(1).any(1).all())

    def shape(self, key: Key) -> tuple[int, ...]:
        """(maps, C, \\*spatial) of a layer, however it holds them."""
        return self.layouts[key[0]].shape(tuple(self.kept[key].shape))

    def map(self, key: Key) -> tuple[Tensor, Tensor]:
        """A map (B, C, \\*spatial) that the target depends on, and its gradient; of frames (B, C, frames,
        \\*spatial)."""
        gradient = self.gradients[key]
        assert gradient is not None
        return self._by_image(key, self.kept[key]), self._by_image(key, gradient)

    def _by_image(self, key: Key, tensor: Tensor) -> Tensor:
        maps = self.layouts[key[0]].map(tensor.detach())
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        if key in self.frames:
            return maps[self.frames[key]].movedim(1, 2)
        return maps if self.images in (None, len(maps)) else maps.movedim(0, 1).unsqueeze(0)

    def ancestors(self) -> dict[Key, set[Key]]:
        """Of every kept map, those that it was computed from."""
        made = {tensor.grad_fn: key for key, tensor in self.kept.items() if tensor.grad_fn is not None}
        leaves = {id(tensor): key for key, tensor in self.kept.items() if tensor.grad_fn is None}
        ancestors: dict[Key, set[Key]] = {}
        for key, tensor in self.kept.items():
            ancestors[key] = set()
            nodes = [] if tensor.grad_fn is None else [node for node, _ in tensor.grad_fn.next_functions]
            seen = set()
            while nodes:
                node = nodes.pop()
                if node is None or node in seen:
                    continue
                seen.add(node)
                own = made.get(node) or leaves.get(id(getattr(node, "variable", None)))
                if own is None:
                    nodes += [further for further, _ in node.next_functions]
                elif own != key:
                    ancestors[key] |= {own} | ancestors.get(own, set())
        return ancestors


def _image_counts(example: Any) -> list[int]:
    """How many images each tensor of an example holds; a list of images (C, H, W) is one batch."""
    if isinstance(example, Tensor):
        return [len(example)] if example.dim() > 3 else [1] if example.dim() == 3 else []
    parts = [example]  # a list is one argument
    if isinstance(example, Mapping | tuple):
        parts = [*example.values()] if isinstance(example, Mapping) else [*example]
    return [len(part) for part in parts if _is_batch(part)]


def _is_batch(part: Any) -> bool:
    if isinstance(part, Tensor):
        return part.dim() > 3
    return isinstance(part, list) and bool(part) and all(isinstance(one, Tensor) and one.dim() == 3 for one in part)
