"""Random numbers that depend on nothing but what they are drawn for, so that a resumed run needs no random state."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def order(index: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The indices in the order of that epoch: a pure function, so that a resumed run needs no random state."""
    return index[np.argsort(draws(len(index), seed, epoch, "order"))]


def stream(seed: int, epoch: int, what: str) -> torch.Generator:
    """A generator on the CPU that depends on nothing but its arguments."""
    return torch.Generator().manual_seed(int(digest([seed, epoch, what])[:15], 16))


def draws(count: int, *what: int | str) -> np.ndarray:
    """Random 64-bit numbers that depend on nothing but the arguments; numpy keeps raw bits the same for ever."""
    return np.random.PCG64(int(digest(what), 16)).random_raw(count)


def digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
