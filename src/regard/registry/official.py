"""A mechanism built from the authors' own weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from regard.base.errors import UserError, near
from regard.registry.building import create
from regard.registry.info import Translation
from regard.registry.registration import info, names

if TYPE_CHECKING:
    from torch import Tensor, nn


def load_official(
    key: str, tensors: Mapping[str, Tensor], *, channels: int | None = None, **their_args: Any
) -> nn.Module:
    """Build our module from the authors' own weights; it computes their function.

    Args:
        key: name of the authors' module, e.g. ``"cbam"``, ``"se_nobias"``, ``"coord_attention"``.
        tensors: their state dict.
        channels: where neither the tensors nor the arguments tell it.
        their_args: their own constructor's arguments, under their own names.

    Returns:
        The module, with the dtype and on the device of the tensors, in training mode.

    Raises:
        UserError: unknown key, missing or left-over tensors, or shapes that do not fit.
    """
    name, translate = _translator(key)
    said = f"load_official({key!r})"
    theirs = _checked(said, tensors)
    given = ", ".join(list(theirs)[:5]) + (", ..." if len(theirs) > 5 else "")
    try:
        inspect.signature(translate).bind(theirs, channels, **their_args)
        channels, options, renamed = translate(theirs, channels, **their_args)
        if channels is None:
            raise UserError(f"{said}: neither the tensors nor the arguments tell the channels: pass channels=")
        module = create(name, channels, **options)
    except KeyError as error:
        raise UserError(f"{said}: the tensors lack {error}; they have {given}") from error
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, UserError) else UserError(f"{said}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
        raise UserError(
            f"{said}: these are not the shapes or arguments of the authors' {key} ({type(error).__name__}: {error})"
        ) from error
    floating = next((tensor for tensor in theirs.values() if tensor.is_floating_point()), None)
    if floating is not None:
        module.to(device=floating.device, dtype=floating.dtype)
    _fill(module, theirs, renamed, said, f"{name} with {channels} channels")
    return module


def _translator(key: str) -> tuple[str, Callable[..., Translation]]:
    """The mechanism that a key of the authors belongs to, and what reads their arguments and names."""
    translators = {key: (name, translate) for name in names() for key, translate in info(name).official.items()}
    if key not in translators:
        keys = sorted(translators)
        raise UserError(f"there is no official key {key!r}{near(key, keys) or ': ' + ', '.join(keys)}")
    return translators[key]


def _checked(said: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict, without what `DataParallel` puts before the names."""
    from torch import Tensor

    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise UserError(f"{said} takes names and their tensors: pass the state dict, such as module.state_dict()")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _fill(module: nn.Module, theirs: Mapping[str, Tensor], renamed: Mapping[str, str], said: str, ours: str) -> None:
    """Load their tensors under our names; each of theirs has to have a place, and each of ours a tensor."""
    own = module.state_dict()
    for name, tensor in theirs.items():
        place = _rename(name, renamed)
        if place not in own:
            raise UserError(f"{said}: tensor {name!r} has no place in {ours.partition(' ')[0]}")
        if tensor.squeeze().shape != own[place].squeeze().shape:
            raise UserError(
                f"{said}: {name!r} has shape {tuple(tensor.shape)}, "
                f"{ours} needs {tuple(own[place].shape)}: check their arguments"
            )
        # a 1x1 convolution of theirs may be a linear layer of ours
        own[place] = tensor.reshape(own[place].shape)
    missing = set(own) - {_rename(name, renamed) for name in theirs}
    # checkpoints older than torch 0.4.1 lack the counter
    missing = {name for name in missing if not name.endswith("num_batches_tracked")}
    if missing:
        raise UserError(f"{said}: the tensors do not give {', '.join(sorted(missing))}")
    module.load_state_dict(own)


def _rename(name: str, renamed: Mapping[str, str]) -> str:
    for theirs in sorted(renamed, key=len, reverse=True):
        if name == theirs or name.startswith(theirs + "."):
            return renamed[theirs] + name[len(theirs) :]
    return name
