"""An attachment: what can be asked of it, frozen, saved and taken out again, and how it is found in a model."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regard.base import notebook
from regard.base.errors import UserError, near
from regard.insertion import storage
from regard.insertion.container import Inserted, is_hooked, stands_beside, take_out
from regard.insertion.hidden import narrow
from regard.insertion.reattaching import forget, reattach
from regard.insertion.record import below, build, site_options
from regard.insertion.site import glob
from regard.insertion.survey import CHILD
from regard.layers.tap import Constant
from regard.networks.hookable import is_sharded


class Attached:
    """One attachment: a mechanism under a label at its sites. A view; everything is in the model.

    Attributes:
        model: the host.
        label: the name of its children, ``site.regard.LABEL``.
        mechanism, options, start: how it was made.
        sites: names of the sites, in the order of the forward pass.
        notes: what to know of it at its sites, a sentence each: where a gate has very few hidden units.
        orphans: sites where it no longer works, with the reason (a tool rebuilt the module).
    """

    def __init__(self, model: nn.Module, label: str, record: Mapping[str, Any], above: str = "") -> None:
        self.model = model
        self.label = label
        self.mechanism: str = record["mechanism"]
        self.options: dict[str, Any] = dict(record["options"])
        self.start: str = record["start"]
        self._record = dict(record)
        self._above = above  # what the names of the model's parts began with when this was attached

    def on(self, model: nn.Module) -> Attached:
        """The same attachment in a copy of the model."""
        return Attached(model, self.label, self._record, self._above)

    @property
    def sites(self) -> list[str]:
        return list(self._record["channels"])

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The mechanism at each site where it still is."""
        everywhere = dict(self.model.named_modules())
        children = {site: everywhere.get(f"{site}.{CHILD}.{self.label}") for site in self.sites}
        return {site: module for site, module in children.items() if module is not None}

    @property
    def notes(self) -> list[str]:
        options = {site: site_options(self._record, site) for site in self.sites}
        return narrow(self.mechanism, self._record["channels"], options)

    @property
    def orphans(self) -> dict[str, str]:
        reattach(self.model)
        everywhere = dict(self.model.named_modules())
        graph = getattr(self.model, "graph", None)  # of torch.fx, which calls what is attached to a block by itself
        traced = {node.target for node in getattr(graph, "nodes", ()) if node.op == "call_module"}
        reasons = {site: self._why_orphan(site, everywhere, traced) for site in self.sites}
        return {site: reason for site, reason in reasons.items() if reason}

    def _why_orphan(self, site: str, everywhere: Mapping[str, nn.Module], traced: Collection[Any]) -> str | None:
        if site not in everywhere:
            return "the site is gone"
        if f"{site}.{CHILD}.{self.label}" not in everywhere:
            return "the mechanism is gone: the module at the site was rebuilt"
        if f"{site}.{CHILD}" in traced:
            return None
        if not is_hooked(everywhere[site]):
            return "the hook is gone: the module at the site was rebuilt, the mechanism is never called"
        if beside := self._record["beside"].get(site):
            convolution = beside["convolution"]
            if not stands_beside(everywhere.get(convolution), everywhere[f"{site}.{CHILD}"], self.label):
                return f"the hook of {convolution!r} is gone: the convolution was rebuilt"
        return None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The added parameters, under the host's keys."""
        for site, module in self.modules.items():
            for name, parameter in module.named_parameters():
                yield f"{site}.{CHILD}.{self.label}.{name}", parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """The added parameters."""
        for _, parameter in self.named_parameters():
            yield parameter

    def state_dict(self) -> dict[str, Tensor]:
        """The added weights and buffers, under the host's keys."""
        return {
            f"{site}.{CHILD}.{self.label}.{name}": tensor
            for site, module in self.modules.items()
            for name, tensor in module.state_dict().items()
        }

    def train(self, mode: bool = True) -> None:
        """Set the mode of the added modules alone, as ``model.train(mode)`` does for all.

        ``model.eval(); attached.train()`` leaves the statistics of the host's batch norms as they are.
        """
        for module in self.modules.values():
            module.train(mode)

    def train_only(self, *others: str) -> None:
        """Freeze the host: only the added parameters get gradients, and those of other modules that are named.

        `train_all` and `remove` undo it; what another attachment froze as well, or the user, stays frozen. The host's
        batch norms still follow the batches in training mode, see `train`.

        Args:
            others: patterns of names of the host's modules, such as ``"fc"`` or ``"layer4.**"``, see `regard.sites`.

        Raises:
            UserError: a pattern matches nothing that has parameters.

        Example:
            >>> import regard, torch
            >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
            >>> attached = regard.attach(net, "eca", at="1", example=torch.randn(1, 3, 8, 8))
            >>> attached.train_only("2")
            >>> [name for name, parameter in net.named_parameters() if parameter.requires_grad]
            ['1.regard.eca.conv.weight', '1.regard.eca.gate.strength', '2.weight', '2.bias']
        """
        kept = {id(parameter) for parameter in self.parameters()}
        for pattern in others:
            kept.update(id(parameter) for parameter in self._matching(pattern))
        self.train_all()
        held = self._held_by_others()
        frozen = [
            name
            for name, parameter in self.model.named_parameters()
            if id(parameter) not in kept and (parameter.requires_grad or id(parameter) in held)
        ]
        for record in self._records():
            record["frozen"] = [*record.get("frozen", ()), *(self._above + name for name in frozen)]
        for name in frozen:
            self.model.get_parameter(name).requires_grad_(False)

    def _matching(self, pattern: str) -> list[nn.Parameter]:
        """The parameters of the modules whose names match."""
        every = self.model.named_modules(remove_duplicate=False)
        modules = [module for name, module in every if glob(pattern).fullmatch(name)]
        parameters = [parameter for module in modules for parameter in module.parameters()]
        if not parameters:
            names = [name for name, module in self.model.named_modules() if name and [*module.parameters()]]
            raise UserError(f"no module with parameters matches {pattern!r}{near(pattern, names)}")
        return parameters

    def train_all(self) -> None:
        """Undo `train_only`: what it froze gets gradients again, unless another attachment froze it too."""
        if not self._records():
            raise UserError(f"{self.label!r} was removed: attach it again")
        released = self._held()
        for record in self._records():
            record["frozen"] = [name for name in record.get("frozen", ()) if not name.startswith(self._above)]
        held = self._held_by_others()
        for parameter in released:
            if id(parameter) not in held:
                parameter.requires_grad_(True)

    def _held(self) -> list[nn.Parameter]:
        """What it keeps frozen."""
        names = {name.removeprefix(self._above) for record in self._records() for name in record.get("frozen", ())}
        return [parameter for name, parameter in self.model.named_parameters() if name in names]

    def _held_by_others(self) -> set[int]:
        """Ids of what the other attachments keep frozen."""
        every = attached(self.model)
        others = [other for other in every if (other.model, other.label) != (self.model, self.label)]
        return {id(parameter) for other in others for parameter in other._held()}

    def _records(self) -> list[dict[str, Any]]:
        """What the model knows of it, at each of its sites."""
        everywhere = dict(self.model.named_modules())
        children = [everywhere.get(f"{site}.{CHILD}") for site in self.sites]
        inserted = [child for child in children if isinstance(child, Inserted)]
        return [child.records[self.label] for child in inserted if self.label in child.records]

    def parameter_groups(
        self, *, weight_decay: float, lr: float | None = None, host_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Groups for an optimiser: the host's parameters and the added ones, with and without weight decay.

        Biases, norms and the strength of gates (whatever has one axis) are not decayed. What is frozen is left out, and
        so are groups that would be empty.

        Args:
            weight_decay: of the decayed groups.
            lr: learning rate of the added parameters; the optimiser's own otherwise.
            host_lr: of all others.

        Returns:
            Dicts with ``params``, ``weight_decay``, ``name`` and, where given, ``lr``.
        """
        if not isinstance(weight_decay, int | float) or weight_decay < 0:
            raise UserError(f"weight_decay is a number from 0 up, got {weight_decay!r}")
        own = {id(parameter) for parameter in self.parameters()}
        rates = {"added": lr, "host": host_lr}
        groups: dict[str, dict[str, Any]] = {}
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                continue
            whose, decayed = "added" if id(parameter) in own else "host", parameter.dim() > 1
            name = f"{whose}, {'decayed' if decayed else 'not decayed'}"
            if name not in groups:
                groups[name] = {"params": [], "weight_decay": weight_decay if decayed else 0.0, "name": name}
                groups[name] |= {} if rates[whose] is None else {"lr": rates[whose]}
            groups[name]["params"].append(parameter)
        return list(groups.values())

    def remove(self) -> None:
        """Take everything out again: the outputs and keys of the host are what they were, bit for bit."""
        self._refuse_traced()
        if self._records():
            self.train_all()
        everywhere = dict(self.model.named_modules())
        for site in self.sites:
            child = everywhere.get(f"{site}.{CHILD}")
            if isinstance(child, Inserted) and self.label in child.records:
                take_out(everywhere, site, self.label)
        forget(self.model)

    def _refuse_traced(self) -> None:
        for name, module in self.model.named_modules():
            called = [node.target for node in module.graph.nodes] if isinstance(module, torch.fx.GraphModule) else []
            if any(CHILD in str(target).split(".") for target in called):
                where = repr(name) if name else "the network"
                raise UserError(
                    f"cannot remove {self.label!r}: {where} was traced by torch.fx, and calls the attention by itself; "
                    "remove it before tracing"
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the added weights alone, with what is needed to attach them again, as one safetensors file.

        Raises:
            UserError: some sites are orphans, or the file cannot be written.
        """
        if not self.modules:
            raise UserError(f"cannot save {self.label!r}: it was removed")
        if any(isinstance(part, Constant) for module in self.modules.values() for part in module.modules()):
            raise UserError(
                f"cannot save {self.label!r}: its gates are constants now, and no {self.mechanism} has those"
            )
        if self.orphans:
            site, reason = next(iter(self.orphans.items()))
            raise UserError(f"cannot save {self.label!r}: at {site!r} {reason}; attach before converting or fusing")
        self._refuse_rebuilt()
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in self.state_dict().items()}
        if any(is_sharded(tensor) for tensor in tensors.values()):
            raise UserError(
                f"cannot save {self.label!r} from a sharded model: gather its state dict in full, load it into a whole "
                "model with the same attachment, and save from there"
            )
        storage.write(path, self.model, self.label, self._record, tensors)

    def _refuse_rebuilt(self) -> None:
        """Of mechanisms that a tool gave other weights, no file could be loaded again."""
        for site, fresh in build(self._record, 0).items():
            wanted, here = list(fresh.state_dict()), list(self.modules[site].state_dict())
            if set(wanted) != set(here):
                other = next(name for name in (*here, *wanted) if (name in here) != (name in wanted))
                raise UserError(
                    f"cannot save {self.label!r}: at {site!r} another tool holds its weights in its own way ({other!r} "
                    f"is {'new' if other in here else 'gone'}); first undo pruning, parametrisations and quantisation, "
                    "or merge adapters, or keep the network's whole state dict"
                )

    def __repr__(self) -> str:
        if not self.modules:
            return f"{self.label} ({self.mechanism}), removed"
        count = sum(parameter.numel() for parameter in self.parameters())
        sites = f"{len(self.sites)} site{'s' * (len(self.sites) != 1)}"
        text = f"{self.label} ({self.mechanism}) at {sites}, {count:,} parameters, start={self.start}"
        return "; ".join([text, *([f"{len(self.orphans)} of them orphans"] if self.orphans else []), *self.notes])

    def _repr_html_(self) -> str:
        """For notebooks: the mechanism at each of its sites, and what to know of it."""
        modules, channels = self.modules, self._record["channels"]
        counts = {site: sum(weight.numel() for weight in module.parameters()) for site, module in modules.items()}
        rows = [
            {"site": site, "channels": f"{channels[site]:,}", "parameters": f"{count:,}"}
            for site, count in counts.items()
        ]
        lost = [f"{site}: {reason}" for site, reason in self.orphans.items()] if rows else []
        return notebook.paragraph(repr(self)) + notebook.table(rows) + notebook.points(lost)


def attached(model: nn.Module) -> list[Attached]:
    """Everything that is attached to a model, also to a copied, pickled or converted one, in the order of its sites.

    Example:
        >>> import regard, torch
        >>> regard.attached(torch.nn.Linear(2, 2))
        []
    """
    reattach(model)
    every: dict[tuple[str, str], Attached] = {}
    for name, child in model.named_modules():
        for label, record in child.records.items() if isinstance(child, Inserted) else ():
            # the host may be a part of this model, stand in a wrapper, or hold it
            host, above = _host(name.removesuffix(f".{CHILD}"), record["site"])
            if (host, label) not in every:
                every[host, label] = Attached(model.get_submodule(host), label, below(record, above), above)
    return list(every.values())


def _host(here: str, site: str) -> tuple[str, str]:
    """Where the host of a site is in a model that has the site here, and which prefix names have only in the host."""
    ours, theirs = here.split("."), site.split(".")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop(), theirs.pop()
    return ".".join(ours), "".join(f"{part}." for part in theirs)
