"""Numbers of any kind as NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


def array(values: Any) -> np.ndarray:
    """A NumPy array of an array, a list, or a tensor of any device and dtype."""
    return values.detach().float().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
