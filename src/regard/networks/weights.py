"""The weights of a network while others may hold or change them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from regard.base.errors import UserError


def weights_kept(module: nn.Module) -> saved_tensors_hooks:
    """Autograd keeps copies of the weights: another thread may be training them between the passes."""
    owned = {_address(weight) for weight in module.parameters()} - {None}

    def keep(tensor: Tensor) -> tuple[Tensor, int | None]:
        return (tensor.clone(), None) if _address(tensor) in owned else (tensor, tensor._version)

    def kept(pair: tuple[Tensor, int | None]) -> Tensor:
        tensor, version = pair
        if version not in (None, tensor._version):
            raise UserError(
                f"a tensor of shape {tuple(tensor.shape)} that the gradient needs was written over during the pass: "
                "the network changes it in place"
            )
        return tensor

    return saved_tensors_hooks(keep, kept)


def _address(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, ValueError):  # lazy, sparse, or a stranger's kind of tensor
        return None


def same_kind(tensor: Tensor, own: Tensor) -> bool:
    """Whether a tensor may be copied into another: precision may differ, but no number loses a part of itself."""
    return tensor.layout == own.layout and (
        tensor.dtype == own.dtype or (tensor.is_floating_point() and own.is_floating_point())
    )
