"""Gradients by the reference implementation, for what no kernel may see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from regard.ops.dispatch import not_plain

Gradients = tuple[Tensor | None, ...]


def must_be_plain(*gradients: Tensor | None) -> bool:
    """Whether a backward is differentiated itself, or meets what no kernel may see."""
    return torch.is_grad_enabled() or not_plain(*gradients) is not None


def differentiate(
    run: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> Gradients:
    """The reference's gradients of its inputs, which can be differentiated again where autograd records."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # views, so that what depends on another input is not differentiated twice
        leaves = [x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_() for x in inputs]
        outputs = run(*leaves)
        given = [(y, d) for y, d in zip(outputs, gradients, strict=True) if d is not None]
        if not given:
            return (None,) * len(leaves)
        ys, ds = zip(*given, strict=True)
        return torch.autograd.grad(ys, leaves, ds, create_graph=again, allow_unused=True)
