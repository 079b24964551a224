"""The library in C++ for this machine, behind a plain C interface."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable, Sequence
from ctypes import Structure, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch

from regard.base.errors import UserError, near
from regard.ops.kernels import interface

LEVELS = ("avx512", "avx2", "generic")
"""The sets of instructions that there are libraries for, the fastest first."""


def levels() -> tuple[str, ...]:
    """The levels whose instructions this machine has, the fastest first."""
    return LEVELS[{"AVX512": 0, "AVX2": 1}.get(torch.backends.cpu.get_cpu_capability(), 2) :]


def _path(level: str) -> Path:
    return interface.FOLDER / f"kernels.{level}.so"


@cache
def _open(level: str) -> ctypes.CDLL | str:
    """The library of a level, or why it is not used."""
    path = _path(level)
    if not path.is_file():
        return (
            f"the C++ kernels of level {level} were not built: where regard is installed from its source on Linux or"
            " macOS there must be a C++ compiler, and what it says is shown by pip install -v"
        )
    try:
        library = ctypes.CDLL(str(path))  # its threads are those that torch brought into this process
    except OSError as error:
        return f"the C++ kernels of level {level} cannot be loaded: {error}"
    try:
        library.regard_built.restype = ctypes.c_char_p
        built = library.regard_built().decode()
    except AttributeError:
        built = "before libraries said so"
    if built != f"{level} {interface.fingerprint()}":
        return f"{path.name} was built from other sources than those of this regard: install regard again"
    for name, struct in interface.STRUCTS.items():
        size = ctypes.c_int32.in_dll(library, f"regard_sizeof_{name}").value
        if size != ctypes.sizeof(struct):
            return (
                f"{path.name} has a struct {name} of {size} bytes, and Python one of {ctypes.sizeof(struct)}:"
                " interface.py and the kernel's source must list the same fields"
            )
    return library


@cache
def _chosen() -> tuple[str, ctypes.CDLL] | str:
    """The level that runs here and its library, or why there is none.

    Raises:
        UserError: the environment asks for a level that there is not.
    """
    choice, here = os.environ.get("REGARD_LEVEL"), levels()
    if choice and choice not in LEVELS:
        raise UserError(f"REGARD_LEVEL={choice}: the levels are {', '.join(LEVELS)}{near(choice, LEVELS)}")
    if choice and choice not in here:
        raise UserError(f"REGARD_LEVEL={choice}: this machine lacks it and has {', '.join(here)}")
    reasons: list[str] = []
    for level in (choice,) if choice else here:
        outcome = _open(level)
        if isinstance(outcome, ctypes.CDLL):
            return level, outcome
        if choice:
            raise UserError(f"REGARD_LEVEL={choice}: {outcome}")
        if _path(level).is_file() and not reasons:
            warnings.warn(f"{outcome}; slower code runs in their place", stacklevel=2)
        reasons.append(outcome)
    return reasons[0]


def missing() -> str | None:
    """Why there are no C++ kernels in this installation, or None when there are."""
    chosen = _chosen()
    return chosen if isinstance(chosen, str) else None


def overview() -> dict[str, Any]:
    """The level that runs, None where none does, and for each level of this machine why it cannot, or None."""
    chosen = _chosen()
    reasons = {level: outcome if isinstance(outcome := _open(level), str) else None for level in levels()}
    return {"level": None if isinstance(chosen, str) else chosen[0], "levels": reasons}


@cache
def function(name: str) -> Callable[..., Any]:
    """A kernel, to be called with the address of its plan and an array of pointers, see `call`."""
    kernel = getattr(_chosen()[1], f"regard_{name}")
    kernel.argtypes, kernel.restype = [c_void_p, c_void_p], None
    return kernel


def call(name: str, plan: Structure, pointers: Sequence[int] = ()) -> None:
    """Run a kernel.

    Args:
        name: of the kernel.
        plan: what it is to do, a struct of `interface`.
        pointers: to the tensors that the plan names by number.
    """
    function(name)(ctypes.addressof(plan), (c_void_p * len(pointers))(*pointers))
