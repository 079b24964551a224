"""The subclass of a layer of torch while attention stands at it, so that tools which fold layers leave it alone."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn


def give_attended_class(site: nn.Module) -> None:
    """Give a layer of torch the subclass of those at which attention stands."""
    kind = type(site)
    if kind.__module__.startswith("torch.nn.modules.") and kind is getattr(nn, kind.__name__, None):
        site.__class__ = _attended_class(kind)


def give_own_class(site: nn.Module) -> None:
    """Give a layer its own class again."""
    base = type(site).__bases__[0]
    if type(site).__dict__.get("__reduce_ex__") and type(site) is _attended_class(base):
        site.__class__ = base


@cache
def _attended_class(kind: Any) -> Any:
    """The subclass of a torch layer at which attention stands: the same in all, but for who asks for the class itself.

    What folds a norm into a convolution, as torch.fx and the quantisers do, finds its layers by their exact class, and
    would drop what hangs on them.
    """

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        made: Any = object.__reduce_ex__(self, protocol)
        return _unpickled, (kind,), *made[2:]

    body = {"__module__": kind.__module__, "__reduce_ex__": reduce, "_get_name": lambda self: kind.__name__}
    attended = type(kind.__name__, (kind,), body)
    attended.__qualname__ = f"{kind.__name__} with attention of regard: fold layers first, then attach"
    return attended


def _unpickled(kind: Any) -> nn.Module:
    attended: Any = _attended_class(kind)
    module: nn.Module = attended.__new__(attended)
    return module
