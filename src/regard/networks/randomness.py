"""The global random states: put back as they were, or started from a seed for a while."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def same_randomness() -> Iterator[None]:
    """Afterwards every global random state is as it was."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every global generator starts from the seed; afterwards they are as they were."""
    with same_randomness():
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield
