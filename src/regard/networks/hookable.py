"""Which modules take hooks, and what is said of a model whose modules do not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from regard.base.errors import UserError


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
