"""Which axis of a tensor holds the channels."""

from __future__ import annotations

from collections.abc import Callable

import torch

from regard.base.axes import went
from regard.base.functions import CONVOLUTIONS, MIXTURES, POOLINGS, TURNS, Call

Rule = Callable[[Call, int | None, torch.Size, torch.Size], int | None]


def channels(call: Call, axis: int | None, before: torch.Size, after: torch.Size) -> int | None:
    """The axis of the channels in what a function gave; None where that is not known.

    Args:
        call: of the function.
        axis: where they were in the tensor that it continues.
        before, after: shapes of that tensor and of the result.
    """
    return RULES.get(call.word, _kept)(call, axis, before, after)


def _second(call: Call, axis: int | None, before: torch.Size, after: torch.Size) -> int | None:
    return 1


def _last(call: Call, axis: int | None, before: torch.Size, after: torch.Size) -> int | None:
    return len(after) - 1


def _normed(call: Call, axis: int | None, before: torch.Size, after: torch.Size) -> int | None:
    """A norm over one axis, the last, is over channels."""
    return len(after) - 1 if len(call.option(1, "normalized_shape")) == 1 else _kept(call, axis, before, after)


def _mixed(call: Call, axis: int | None, before: torch.Size, after: torch.Size) -> int | None:
    return axis if after == before else None


def _turned(call: Call, axis: int | None, before: torch.Size, after: torch.Size) -> int | None:
    return None if axis is None else went(call, axis)[0]


def _kept(call: Call, axis: int | None, before: torch.Size, after: torch.Size) -> int | None:
    if axis is None or len(before) == len(after):
        return axis
    # reshaped: the channels are where they were if that side and those before it, or behind it, are what they were
    if axis == len(before) - 1 and after[-1:] == before[-1:]:
        return len(after) - 1
    return axis if axis == 1 and len(after) > 2 and after[:2] == before[:2] else None


RULES: dict[str, Rule] = {
    **dict.fromkeys((*CONVOLUTIONS, *POOLINGS, "batch_norm", "instance_norm", "group_norm"), _second),
    **dict.fromkeys(("layer_norm", "rms_norm"), _normed),
    **dict.fromkeys(MIXTURES, _mixed),
    **dict.fromkeys(TURNS, _turned),
    "linear": _last,
}
