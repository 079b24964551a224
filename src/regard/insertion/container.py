"""What stands at a site: one child, which holds every mechanism attached there, and the hooks that call it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from threading import get_ident
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling

from regard.base.errors import UserError
from regard.insertion.attended_class import give_attended_class, give_own_class
from regard.insertion.layout import Layout
from regard.insertion.survey import CHILD


class Inserted(nn.Module):
    """What is attached at one site: a child for each label, run in order."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["__module__"] = nn.__name__  # torch.fx calls what is torch's as one node, and traces the rest
        self.records: dict[str, dict[str, Any]] = {}  # by label, a `Record`, the site's name, and what is frozen
        # by label and call, what went into the convolution that it stands beside; replicas share this
        self.entering: dict[tuple[str, int], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        mechanism: Any
        for label, mechanism in self._modules.items():
            record = self.records[label]
            layout = record["layouts"][record["site"]]
            entered = self.entering.pop((label, _call()), None) if self.entering else None
            through: Any = mechanism if entered is None else partial(mechanism, entered)
            # most maps lie as they are: what each call builds is paid in every step, with cold caches
            x = through(x) if layout[0] == "channels_first" else Layout(*layout).through(through, x)
        return x

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"entering": {}}  # a pass that failed half-way leaves a tensor


def _call() -> int:
    """Which of the calls that run side by side this is: each has a thread of its own."""
    return 0 if is_compiling() else get_ident()


def _send_through(site: nn.Module, args: Any, output: Tensor) -> Tensor:
    """The hook at every site."""
    inserted: Any = site._modules[CHILD]
    return inserted(output)


class _Keep:
    """The hook at a convolution: keeps what goes into it for the mechanism that stands beside it."""

    def __init__(self, inserted: Inserted, label: str) -> None:
        self.inserted, self.label = inserted, label

    def __call__(self, convolution: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.inserted.entering[self.label, _call()] = args[0]


def hang(site: nn.Module, inserted: Inserted) -> None:
    """Put the child at a site, with its hook."""
    site.add_module(CHILD, inserted)
    site.register_forward_hook(_send_through)
    give_attended_class(site)


def is_hooked(site: nn.Module) -> bool:
    """Whether a site still sends its output through its child."""
    return bool(_hooks(site))


def is_in_place(site: nn.Module | None) -> bool:
    return site is not None and CHILD in site._modules and is_hooked(site)


def labels(site: nn.Module) -> list[str]:
    """Of what is attached at a site."""
    inserted = getattr(site, CHILD, None)
    return list(inserted.records) if isinstance(inserted, Inserted) else []


def refuse_label(label: str) -> None:
    """Refuse a label that cannot be the name of a mechanism among the children at a site."""
    if not isinstance(label, str) or not label.isidentifier() or hasattr(Inserted(), label):
        raise UserError(
            f"a label is an identifier such as 'se' or 'second' that no torch module uses, got {label!r}: "
            "pass another label="
        )


def stand_beside(convolution: nn.Module, inserted: Inserted, label: str) -> None:
    """Keep what goes into a convolution for a mechanism."""
    convolution.register_forward_pre_hook(_Keep(inserted, label))


def stands_beside(convolution: nn.Module | None, inserted: nn.Module, label: str) -> bool:
    """Whether what goes into a convolution is still kept for a mechanism."""
    return bool(_keepers(convolution, inserted, label))


def take_out(modules: Mapping[str, nn.Module], name: str, label: str) -> None:
    """Take one mechanism out of a site, and the child with its hooks where it was the last."""
    site = modules[name]
    inserted: Any = site._modules[CHILD]
    if beside := inserted.records[label]["beside"].get(name):
        convolution = modules.get(beside["convolution"])
        for key in _keepers(convolution, inserted, label):
            del convolution._forward_pre_hooks[key]  # type: ignore[union-attr]
    del inserted._modules[label], inserted.records[label]
    if not inserted.records:
        del site._modules[CHILD]
        for key in _hooks(site):
            del site._forward_hooks[key]
        give_own_class(site)


def host_keys(model: nn.Module) -> list[str]:
    """The state-dict keys of the host alone, whatever is attached to it."""
    return [key for key in model.state_dict() if not is_added(key)]


def is_added(key: str) -> bool:
    """Whether a dotted name leads into what is attached."""
    return f".{CHILD}." in f".{key}"


def _hooks(site: nn.Module) -> list[int]:
    return [key for key, hook in site._forward_hooks.items() if hook is _send_through]


def _keepers(convolution: nn.Module | None, inserted: nn.Module, label: str) -> list[int]:
    hooks = convolution._forward_pre_hooks.items() if convolution is not None else ()
    return [key for key, hook in hooks if isinstance(hook, _Keep) and hook.inserted is inserted and hook.label == label]
