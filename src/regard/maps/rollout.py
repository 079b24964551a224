"""Attention rollout: the weights between tokens, followed through all layers of a transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from regard.base.errors import UserError
from regard.maps.recording import Map, record
from regard.networks.replica import borrowed, call


def rollout(model: nn.Module, example: Any, *, residual: float = 0.5) -> Map:
    """Follow the weights between tokens through all layers: what of the picture reaches the class token.

    Formula:  A = residual I + (1 - residual) mean of the heads, for each layer, multiplied from the last to the first;
              the row of the class token, or without one the mean of the rows
    Source:   Abnar and Zuidema 2020, arXiv 2005.00928.

    Args:
        model: a transformer whose layers all see all tokens, such as ViT.
        example: what it is called with.
        residual: the share of what passes a layer by.

    Returns:
        A map (B, 1, h, w) of kind ``"spatial"``.

    Raises:
        UserError: the network has no weights between all tokens, or not the same tokens in all layers.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        borrowed(model) as replica,
        record(replica, kinds={"token"}) as maps,
    ):
        call(replica, example)
    layers = [layer for layer in maps if layer.layout is not None and layer.value.shape[2] == layer.value.shape[3]]
    if not layers or len({layer.value.shape[2] for layer in layers}) > 1 or len(layers) < len(maps):
        raise UserError(
            f"rollout needs layers that all weigh the same tokens of the whole picture; of {len(maps)} products with "
            f"weights {len(layers)} do"
        )
    layout = layers[0].layout
    assert layout is not None  # as chosen above
    identity = torch.eye(layers[0].value.shape[2], device=layers[0].value.device)
    product = identity
    for layer in layers:
        product = (residual * identity + (1 - residual) * layer.value.float().mean(1)) @ product
    rows = product[:, 0] if layout.prefix else product.mean(1)
    return Map("rollout", "spatial", rows[:, layout.prefix :].unflatten(1, layout.grid).unsqueeze(1))
