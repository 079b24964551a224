"""A user's model, borrowed: called, looked at, and given back as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from regard.errors import UserError


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every mode, buffer and random state is as it was."""
    modes = {module: module.training for module in model.modules()}
    buffers = {module: dict(module._buffers) for module in modes}
    copies = [(buffer, buffer.clone()) for held in buffers.values() for buffer in held.values() if buffer is not None]
    try:
        for module in modes:
            module.training = False  # the attribute: a model's own train() may do more
        with same_randomness():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, held in buffers.items():
            module._buffers.clear()
            module._buffers.update(held)
        with torch.no_grad():
            for buffer, copy in copies:
                if not buffer.is_meta and not torch.equal(
                    buffer, copy
                ):  # batch norm writes without a new version number
                    buffer.copy_(copy)


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


def same_kind(tensor: Tensor, own: Tensor) -> bool:
    """Whether a tensor may be copied into another: precision may differ, but no number loses a part of itself."""
    return tensor.layout == own.layout and (
        tensor.dtype == own.dtype or (tensor.is_floating_point() and own.is_floating_point())
    )


def call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, tuple):
        return model(*example)
    if isinstance(example, Mapping):
        return model(**example)
    return model(example)


def brief(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def is_compiled(module: nn.Module) -> bool:
    # by name: naming the class itself would load torch's whole compiler, which takes seconds
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def is_sharded(tensor: Tensor | None) -> bool:
    # by name: naming the class itself would load torch.distributed
    return type(tensor).__name__ == "DTensor" or type(getattr(tensor, "data", None)).__name__ == "DTensor"


def refuse_unseen(model: nn.Module) -> None:
    """What cannot be watched while it runs."""
    if not isinstance(model, nn.Module):
        raise UserError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if is_compiled(module):
            raise UserError(
                "the model is compiled, and torch ignores hooks added after that: look into the model itself"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError("the model is TorchScript, which takes no hooks: look into the Python model")


def refuse_unhookable(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        where = f"{name!r}" if name else "the model"
        if is_compiled(module):
            raise UserError(
                f"{where} is already compiled, and torch ignores hooks added after that: attach first, compile then"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"{where} is a TorchScript module, which takes no hooks: attach to the Python model")
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise UserError("the model is wrapped in DistributedDataParallel already: attach first, wrap then")
        if any(map(is_sharded, module._parameters.values())):
            raise UserError(f"{where} is sharded already, and new parameters would not be: attach first, shard then")
        if any(map(is_lazy, (*module._parameters.values(), *module._buffers.values()))):
            raise UserError(f"{where} is lazy and has no weights yet: run the model once, then attach")
