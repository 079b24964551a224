"""The example with which a model is measured: a batch, alone or among other arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def batch_size(example: Any) -> int:
    """Images in an example: the length of its first argument, a batch or a list of images."""
    return len(_arguments(example)[0])


def resized(example: Any, batch: int) -> Any:
    """The example with another number of images: its own, over again where there are more.

    What is as long as the batch, tensors and lists, is taken for a batch; everything else stays.
    """
    had = batch_size(example)
    places = [place % had for place in range(batch)]

    def resize(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[places] if value.dim() and len(value) == had else value
        if isinstance(value, list):
            return [value[place] for place in places] if len(value) == had else value
        if isinstance(value, tuple):
            return tuple(map(resize, value))
        return {name: resize(part) for name, part in value.items()} if isinstance(value, Mapping) else value

    return resize(example)


def device_of(example: Any) -> torch.device:
    """Where the example is."""
    tensors = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    return tensors[0].device if tensors else torch.device("cpu")


def _arguments(example: Any) -> list[Any]:
    if isinstance(example, Mapping):
        return list(example.values())
    return list(example) if isinstance(example, tuple) else [example]
