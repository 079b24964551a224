"""What can be counted without a clock: parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from regard.costs.examples import device_of
from regard.costs.steps import rng_kept
from regard.networks.replica import call, shadow


def parameters(model: nn.Module) -> int:
    """Numbers in a model's parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, example: Any) -> int:
    """Multiply-adds of convolutions and matrix products in one call of the model in eval mode.

    Pooling, gates, norms and additions are not counted. The model stays as it is.

    Args:
        model: any module.
        example: a tuple is positional arguments, a dict keyword arguments, anything else one.
    """
    model = shadow(model).eval()
    with rng_kept(device_of(example)), torch.no_grad(), _counted() as counter:
        call(model, example)
    return counter.get_total_flops() // 2


@contextmanager
def _counted() -> Iterator[FlopCounterMode]:
    """torch's counter, seeing attention in every form."""
    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # unknown to the counter of older torch
    counter = FlopCounterMode(display=False, custom_mapping={cpu_attention: _attention_flops})
    fused = torch.backends.mha.get_fastpath_enabled()  # nn.MultiheadAttention as one operator, which it takes for free
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)
