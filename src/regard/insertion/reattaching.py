"""A hook of the host that puts attention back where a tool rebuilt the module at which it stood."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from torch.compiler import is_compiling

from regard.insertion.container import Inserted, hang, is_in_place
from regard.insertion.survey import CHILD


class Reattaching:
    """Before each forward pass, attaches a mechanism again whose module a tool replaced (SyncBatchNorm, say).

    Attributes:
        sites: what is attached, by the name of its site.
    """

    def __init__(self) -> None:
        self.sites: dict[str, Inserted] = {}

    def __call__(self, host: nn.Module, args: Any) -> None:
        if not is_compiling():
            for name in self.reattach(host):
                del self.sites[name]
                warnings.warn(
                    f"the attention at {name!r} is gone, with the module it stood at: the network computes without it; "
                    "attach again, or remove() what is left",
                    stacklevel=4,
                )

    def reattach(self, host: nn.Module) -> list[str]:
        """Put back what can be, and name the sites that are gone."""
        lost = [name for name in self.sites if not is_in_place(_at(host, name))]
        return [name for name in lost if not self._put_back(host, name, self.sites[name])]

    def _put_back(self, host: nn.Module, name: str, inserted: Inserted) -> bool:
        for own, module in host.named_modules():
            if module._modules.get(CHILD) is inserted and is_in_place(module):  # under another name: it was wrapped
                self.sites[own] = self.sites.pop(name)
                return True
        site = _at(host, name)
        if site is not None and inserted.records:
            hang(site, inserted)
        return site is not None or not inserted.records


def watch_over(host: nn.Module, name: str, inserted: Inserted) -> None:
    """Let the hook of a host watch over a site; a host that has none gets one."""
    own = [hook for hook in host._forward_pre_hooks.values() if isinstance(hook, Reattaching)]
    if not own:
        own = [Reattaching()]
        host.register_forward_pre_hook(own[0])
    own[0].sites[name] = inserted


def forget(host: nn.Module) -> None:
    """Let the hooks of a host and its parts forget what was removed, and take out those that watch over nothing."""
    for module, key, hook in _hooks(host):
        hook.sites = {name: inserted for name, inserted in hook.sites.items() if inserted.records}
        if not hook.sites:
            del module._forward_pre_hooks[key]


def reattach(host: nn.Module) -> None:
    """Let the hooks of a host and its parts put back what they can."""
    for module, _, hook in _hooks(host):
        hook.reattach(module)


def _hooks(host: nn.Module) -> list[tuple[nn.Module, int, Reattaching]]:
    """The hooks of a host and its parts, each with the module on which it hangs and its key there."""
    return [
        (module, key, hook)
        for module in host.modules()
        for key, hook in module._forward_pre_hooks.items()
        if isinstance(hook, Reattaching)
    ]


def _at(host: nn.Module, name: str) -> nn.Module | None:
    module: nn.Module | None = host
    for part in name.split("."):
        module = None if module is None else module._modules.get(part)
    return module
