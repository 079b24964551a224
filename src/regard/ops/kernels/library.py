"""The library in C++ for this machine, behind a plain C interface."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import Structure, c_void_p
from functools import cache
from importlib.resources import files
from typing import Any

import torch


@cache
def _library() -> ctypes.CDLL | str:
    """The library for this machine, or why there is none."""
    level = torch.backends.cpu.get_cpu_capability()
    if level not in ("AVX512", "AVX2"):
        return f"this machine has neither AVX2 nor AVX-512 (torch says {level})"
    folder = files("regard.ops.kernels")
    for name in ("avx512", "avx2")[level == "AVX2" :]:
        path = folder / f"kernels.{name}.so"
        if path.is_file():
            try:
                return ctypes.CDLL(str(path))  # its threads are those that torch brought into this process
            except OSError as error:
                return f"the C++ kernels cannot be loaded: {error}"
    return "the C++ kernels were not built: install regard from source where there is a C++ compiler"


def missing() -> str | None:
    """Why there are no C++ kernels in this installation, or None when there are."""
    library = _library()
    return library if isinstance(library, str) else None


@cache
def function(name: str) -> Callable[..., Any]:
    """A kernel, to be called with the address of its plan and an array of pointers, see `call`."""
    found = getattr(_library(), f"regard_{name}")
    found.argtypes, found.restype = [c_void_p, c_void_p], None
    return found


def call(name: str, plan: Structure, pointers: Sequence[int] = ()) -> None:
    """Run a kernel.

    Args:
        name: of the kernel.
        plan: what it is to do, laid out as its source says.
        pointers: to the tensors that the plan names by number.
    """
    function(name)(ctypes.addressof(plan), (c_void_p * len(pointers))(*pointers))
