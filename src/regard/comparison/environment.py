"""Versions and machine, as every record has them."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

import regard
from regard.base.machine import processor


def environment() -> dict[str, Any]:
    """What a run's weights depend on besides the question."""
    return {
        "regard": regard.__version__,
        "torch": str(torch.__version__),  # a class of its own, which no checkpoint may hold
        "timm": version("timm"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
