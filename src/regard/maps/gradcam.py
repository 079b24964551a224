"""Grad-CAM and its relatives: of a layer's map (B, C, \\*spatial) and the target's gradient in it the evidence
(B, \\*spatial)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def _grad_cam(a: Tensor, g: Tensor) -> Tensor:
    return (g.mean(_spatial(a), keepdim=True) * a).sum(1)


def _grad_cam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    axes = _spatial(a)
    below = 2 * g**2 + a.sum(axes, keepdim=True) * g**3
    weights = torch.where(below == 0, 0, g**2 / torch.where(below == 0, 1, below)) * g.relu()
    return (weights.sum(axes, keepdim=True) * a).sum(1)


def _hirescam(a: Tensor, g: Tensor) -> Tensor:
    return (g * a).sum(1)


def _layercam(a: Tensor, g: Tensor) -> Tensor:
    return (g.relu() * a).sum(1)


def _spatial(a: Tensor) -> tuple[int, ...]:
    return tuple(range(2, a.dim()))


METHODS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad-cam": _grad_cam,
    "grad-cam++": _grad_cam_plus_plus,
    "hirescam": _hirescam,
    "layercam": _layercam,
}

PAPERS = {"grad-cam": "Grad-CAM", "grad-cam++": "Grad-CAM++", "hirescam": "HiResCAM", "layercam": "LayerCAM"}
