"""A mechanism by its name, built as its authors start it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from regard.base.errors import UserError, near
from regard.registry.info import Info
from regard.registry.registration import info
from regard.registry.spelling import spell

if TYPE_CHECKING:
    import torch
    from torch import nn


def create(
    name: str,
    channels: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """Build a mechanism as its authors start it.

    Args:
        name: a registered name, see `names`.
        channels: channels of the map it will see.
        device, dtype: of its parameters; torch's defaults otherwise.
        options: the mechanism's own, see ``info(name).options``.

    Raises:
        UserError: unknown name or option, or a value the mechanism cannot take.

    Example:
        >>> import regard, torch
        >>> cbam = regard.create("cbam", 256, reduction=8)
        >>> cbam(torch.randn(2, 256, 14, 14)).shape
        torch.Size([2, 256, 14, 14])
    """
    known = info(name)
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise UserError(f"{name}: channels is a positive whole number, got {channels!r}")
    check_options(known, options)
    try:
        module = known.factory(channels, **options)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:  # of a value it did not expect
        said = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{spell(name, options)} cannot be built with {channels} channels: {said}") from error
    return module.to(device=device, dtype=dtype)


def check_options(known: Info, options: Mapping[str, Any]) -> None:
    """Refuse options that a mechanism does not have, and values of another type than their default."""
    for option, value in options.items():
        if option not in known.options:
            hint = near(option, list(known.options)) or f": its options are {', '.join(known.options) or 'none'}"
            if option == "spatial_dims" and value not in known.spatial:
                hint = f": it works on maps with {' or '.join(map(str, known.spatial))} spatial axes"
            raise UserError(f"{known.name} has no option {option!r}{hint}")
        default = known.options[option]
        if isinstance(default, bool) and not isinstance(value, bool):
            raise UserError(f"{known.name}: {option} is True or False, got {value!r}")
        if type(default) is int and default > 0 and (type(value) is not int or value < 1):
            raise UserError(f"{known.name}: {option} is a positive whole number, got {value!r}")
        if type(default) is int and default <= 0 and (type(value) is not int or value < 0):
            raise UserError(f"{known.name}: {option} is a whole number from 0, got {value!r}")
        if isinstance(default, float) and (type(value) not in (int, float) or not math.isfinite(value)):
            raise UserError(f"{known.name}: {option} is a number, got {value!r}")
