"""Mechanisms attached to a user's model, taken out again, saved and loaded.

The user's model is borrowed: a site gets one child, ``site.regard``, and one forward hook that sends the site's output
through it. No key is renamed, no mode flipped, no buffer or random state moved.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from threading import get_ident
from typing import Annotated, Any, Literal, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.modules.batchnorm import _BatchNorm

import regard.mechanisms  # noqa: F401  (registers them)
from regard.base import notebook
from regard.base.errors import UserError, near
from regard.base.files import opened, whole
from regard.base.schema import Within, fault
from regard.insertion.hidden import narrow, start_as_identity
from regard.insertion.layout import Layout
from regard.insertion.site import At, choose, find, for_one, glob
from regard.insertion.survey import CHILD, CONVOLUTIONS, Survey, dry_run
from regard.layers.tap import Constant, Tap, keep_scale, taps
from regard.networks.borrowing import borrowed, brief, call, is_sharded, refuse_unhookable, same_kind, same_randomness
from regard.registry.registration import check_options, create, info, wrong_axes

Number = Annotated[int, Within(-(2**16), 2**16)]
Side = Annotated[int, Within(1, 2**16)]
Option = Number | Annotated[float, Within(-(2**16), 2**16)] | bool | Annotated[str, Within(1, 200)] | None
Options = dict[str, Option | Annotated[list[Option], Within(1, 16)]]
NAMED = ("channels", "layouts", "beside")  # by the names of sites
STARTS = ("identity", "paper", "scaled")
RECORD = ("mechanism", "options", "start", *NAMED)  # what a file keeps of an attachment


class Beside(TypedDict):
    """The convolution that a mechanism stands beside, and what it is built with therefore."""

    convolution: str
    options: Options


class Header(TypedDict):
    """What a file of `Attached.save` says of itself."""

    label: str
    mechanism: str
    options: Options
    start: Literal["identity", "paper", "scaled"]
    channels: Annotated[dict[str, Side], Within(1)]
    layouts: dict[
        str,
        tuple[
            Literal["channels_first", "channels_last", "tokens"],
            Annotated[int, Within(0, 2**16)],
            Annotated[list[Side], Within(0, 3)],
        ],
    ]
    beside: dict[str, Beside]
    host: list[str]
    fingerprint: str
    shapes: dict[str, list[Annotated[int, Within(0, 2**53)]]]
    sha256: str


class Inserted(nn.Module):
    """What is attached at one site: a child for each label, run in order."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["__module__"] = nn.__name__  # torch.fx calls what is torch's as one node, and traces the rest
        self.records: dict[str, dict[str, Any]] = {}
        # by label and call, what went into the convolution that it stands beside; replicas and twins share this
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
    """The one hook, at every site."""
    inserted: Any = site._modules[CHILD]
    return inserted(output)


class _Keep:
    """The other hook: keeps what goes into a convolution for the mechanism that stands beside it."""

    def __init__(self, inserted: Inserted, label: str) -> None:
        self.inserted, self.label = inserted, label

    def __call__(self, convolution: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.inserted.entering[self.label, _call()] = args[0]


@cache
def _attended(kind: Any) -> Any:
    """The class of a torch layer at which attention stands: the same in all, but for who asks for the class itself.

    What folds a norm into a convolution, as torch.fx and the quantisers do, finds its layers by their exact class, and
    would drop what hangs on them.
    """

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        made: Any = object.__reduce_ex__(self, protocol)
        return _unpickled, (kind,), *made[2:]

    body = {"__module__": kind.__module__, "__reduce_ex__": reduce, "_get_name": lambda self: kind.__name__}
    found = type(kind.__name__, (kind,), body)
    found.__qualname__ = f"{kind.__name__} with attention of regard: fold layers first, then attach"
    return found


def _unpickled(kind: Any) -> nn.Module:
    attended: Any = _attended(kind)
    made: nn.Module = attended.__new__(attended)
    return made


def _mark(site: nn.Module) -> None:
    kind = type(site)
    if kind.__module__.startswith("torch.nn.modules.") and kind is getattr(nn, kind.__name__, None):
        site.__class__ = _attended(kind)


def _unmark(site: nn.Module) -> None:
    base = type(site).__bases__[0]
    if type(site).__dict__.get("__reduce_ex__") and type(site) is _attended(base):
        site.__class__ = base


class _Guard:
    """A hook of the host: puts a mechanism back whose site was rebuilt since, as by the conversions of batch norms."""

    def __init__(self) -> None:
        self.places: dict[str, Inserted] = {}

    def __call__(self, host: nn.Module, args: Any) -> None:
        if not is_compiling():
            for name in self.mend(host):
                del self.places[name]
                warnings.warn(
                    f"the attention at {name!r} is gone, with the module it stood at: the network computes without it; "
                    "attach again, or remove() what is left",
                    stacklevel=4,
                )

    def mend(self, host: nn.Module) -> list[str]:
        """Put back what can be, and name the sites that are gone."""
        lost = [name for name in self.places if not _in_place(_at(host, name))]
        return [name for name in lost if not self._put_back(host, name, self.places[name])]

    def _put_back(self, host: nn.Module, name: str, inserted: Inserted) -> bool:
        for own, module in host.named_modules():
            if module._modules.get(CHILD) is inserted and _in_place(module):  # under another name: it was wrapped
                self.places[own] = self.places.pop(name)
                return True
        site = _at(host, name)
        if site is not None and inserted.records:
            _hook(site, inserted)
        return site is not None or not inserted.records


def _at(host: nn.Module, name: str) -> nn.Module | None:
    module: nn.Module | None = host
    for part in name.split("."):
        module = None if module is None else module._modules.get(part)
    return module


def _in_place(site: nn.Module | None) -> bool:
    return site is not None and CHILD in site._modules and bool(_hooks(site))


def _hook(site: nn.Module, inserted: Inserted) -> None:
    site.add_module(CHILD, inserted)
    site.register_forward_hook(_send_through)
    _mark(site)


def _guard(host: nn.Module) -> _Guard:
    """The host's, made where it has none."""
    for hook in host._forward_pre_hooks.values():
        if isinstance(hook, _Guard):
            return hook
    guard = _Guard()
    host.register_forward_pre_hook(guard)
    return guard


def _mend(model: nn.Module) -> None:
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _Guard):
                hook.mend(module)


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
        found = {site: everywhere.get(f"{site}.{CHILD}.{self.label}") for site in self.sites}
        return {site: module for site, module in found.items() if module is not None}

    @property
    def notes(self) -> list[str]:
        beside = self._record["beside"]
        options = {site: beside.get(site, {}).get("options", {}) | self.options for site in self.sites}
        return narrow(self.mechanism, self._record["channels"], options)

    @property
    def orphans(self) -> dict[str, str]:
        _mend(self.model)
        everywhere = dict(self.model.named_modules())
        graph = getattr(self.model, "graph", None)  # of torch.fx, which calls what is attached to a block by itself
        traced = {node.target for node in getattr(graph, "nodes", ()) if node.op == "call_module"}
        reasons = {}
        for site in self.sites:
            if site not in everywhere:
                reasons[site] = "the site is gone"
            elif f"{site}.{CHILD}.{self.label}" not in everywhere:
                reasons[site] = "the mechanism is gone: the module at the site was rebuilt"
            elif f"{site}.{CHILD}" in traced:
                continue
            elif not _hooks(everywhere[site]):
                reasons[site] = "the hook is gone: the module at the site was rebuilt, the mechanism is never called"
            elif site in self._record["beside"]:
                convolution = self._record["beside"][site]["convolution"]
                if not _keepers(everywhere.get(convolution), everywhere[f"{site}.{CHILD}"], self.label):
                    reasons[site] = f"the hook of {convolution!r} is gone: the convolution was rebuilt"
        return reasons

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
        for text in others:
            every = self.model.named_modules(remove_duplicate=False)
            matched = [module for name, module in every if glob(text).fullmatch(name)]
            found = [id(parameter) for module in matched for parameter in module.parameters()]
            if not found:
                names = [name for name, module in self.model.named_modules() if name and [*module.parameters()]]
                raise UserError(f"no module with parameters matches {text!r}{near(text, names)}")
            kept.update(found)
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
        others = [found for found in attached(self.model) if (found.model, found.label) != (self.model, self.label)]
        return {id(parameter) for other in others for parameter in other._held()}

    def _records(self) -> list[dict[str, Any]]:
        """What the model knows of it, at each of its sites."""
        everywhere = dict(self.model.named_modules())
        found = [everywhere.get(f"{site}.{CHILD}") for site in self.sites]
        return [i.records[self.label] for i in found if isinstance(i, Inserted) and self.label in i.records]

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
        groups: dict[str, list[nn.Parameter]] = {}
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                whose = "added" if id(parameter) in own else "host"
                groups.setdefault(f"{whose}, {'decayed' if parameter.dim() > 1 else 'not decayed'}", []).append(
                    parameter
                )
        rates = {"added": lr, "host": host_lr}
        found = []
        for name, parameters in groups.items():
            rate = rates[name.partition(",")[0]]
            decay = 0.0 if "not" in name else weight_decay
            found.append(
                {"params": parameters, "weight_decay": decay, "name": name} | ({} if rate is None else {"lr": rate})
            )
        return found

    def remove(self) -> None:
        """Take everything out again: the outputs and keys of the host are what they were, bit for bit."""
        everywhere = dict(self.model.named_modules())
        for name, module in everywhere.items():
            called = [node.target for node in module.graph.nodes] if isinstance(module, torch.fx.GraphModule) else []
            if any(CHILD in str(target).split(".") for target in called):
                where = repr(name) if name else "the network"
                raise UserError(
                    f"cannot remove {self.label!r}: {where} was traced by torch.fx, and calls the attention by itself; "
                    "remove it before tracing"
                )
        if self._records():
            self.train_all()
        for site in self.sites:
            inserted = everywhere.get(f"{site}.{CHILD}")
            if isinstance(inserted, Inserted) and self.label in inserted.records:
                _take_out(everywhere, site, inserted, self.label)
        for module in everywhere.values():
            for key, hook in list(module._forward_pre_hooks.items()):
                if isinstance(hook, _Guard):
                    hook.places = {name: held for name, held in hook.places.items() if held.records}
                    if not hook.places:
                        del module._forward_pre_hooks[key]

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
        header = {name: self._record[name] for name in RECORD}
        header |= {"label": self.label, "version": version("regard"), "host": _host_keys(self.model)}
        header["fingerprint"] = _fingerprint(header["host"])
        header["shapes"] = _shapes(self.model, self._record)
        header["sha256"] = _digest(tensors)
        try:
            with whole(path) as temporary:
                save_file(tensors, temporary, metadata={"format": "pt", "regard": json.dumps(header)})
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error

    def _refuse_rebuilt(self) -> None:
        """Of mechanisms that a tool gave other weights, no file could be loaded again."""
        for site, fresh in _build(self._record, {"": 2}, 0).items():
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
        counts = {site: sum(one.numel() for one in module.parameters()) for site, module in modules.items()}
        rows = [
            {"site": site, "channels": f"{channels[site]:,}", "parameters": f"{count:,}"}
            for site, count in counts.items()
        ]
        lost = [f"{site}: {reason}" for site, reason in self.orphans.items()] if rows else []
        return notebook.paragraph(repr(self)) + notebook.table(rows) + notebook.points(lost)


def attach(
    model: nn.Module,
    mechanism: str,
    *,
    at: At = "auto",
    example: Any,
    start: str = "identity",
    seed: int | None = None,
    label: str | None = None,
    layout: str | None = None,
    repeated: bool = False,
    **options: Any,
) -> Attached:
    """Put a mechanism behind chosen modules of a model, without touching its code or its weights.

    Old state-dict keys keep their names; the new ones are ``SITE.regard.LABEL....``. An optimiser that exists already
    must be told: ``optimiser.add_param_group({"params": list(attached.parameters())})``. The dry run leaves modes,
    buffers and random state as they were. Nothing is changed when anything fails.

    Args:
        model: any module that is not compiled yet.
        mechanism: a registered name.
        at: see `sites`; ``"auto"`` is the mechanism's own placement; where the network has none such, the end of each
            residual branch, or of each stage.
        example: input of the dry run; a tuple is positional arguments, a dict keyword arguments, anything else one.
        start: ``"identity"``: the model computes exactly what it did, and every new parameter can learn, where need be
            from another start than the authors' (see the card): for networks that have learnt; ``"paper"``: as the
            authors start it: for training from scratch, where many networks start the last norm of each branch at 0,
            and an identity in front of a map of zeros would hardly move; ``"scaled"``: the authors' weights, every gate
            that multiplies divided by its mean over the example, so that the branch keeps its scale. That takes an
            example of real images, several of them, normalised as the model sees them: one more pass, with batch norms
            as in training.
        seed: of the mechanism's own generator; drawn from torch's global one otherwise, which is put back.
        label: name under which it is attached, the mechanism's name otherwise; several labels stack.
        layout: how the sites' outputs hold their maps, where the dry run cannot tell, see `sites`.
        repeated: allow sites that one forward pass calls several times, as a head that serves every level of a
            pyramid: one mechanism for maps of any size.
        options: the mechanism's own, see ``info(name).options``.

    Returns:
        The attachment, which can be removed, saved and asked for its parameters.

    Raises:
        UserError: see `sites`; or a site is called with differing layouts or channels, or already has this label.

    Example:
        >>> import regard, torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 3))
        >>> x = torch.randn(2, 3, 8, 8)
        >>> before = net(x)
        >>> attached = regard.attach(net, "se", at="1", example=x)
        >>> torch.equal(net(x), before)
        True
        >>> attached.remove()
    """
    known = info(mechanism)
    if known.place is None:
        raise UserError(f"{mechanism} cannot be attached: {known.said('Place')}")
    for option, value in options.items():
        if isinstance(value, nn.Module):
            raise UserError(
                f"{mechanism}: the module given as {option} would be shared by all sites: give a word or None"
            )
    label = mechanism if label is None else label
    _check_label(label)
    if seed is not None and not isinstance(seed, int):
        raise UserError(f"seed is a whole number or None, got {seed!r}")
    if start not in STARTS:
        raise UserError(f"start is 'identity', 'paper' or 'scaled', got {start!r}")
    refuse_unhookable(model)
    survey = dry_run(model, example, layout)
    modules = dict(model.named_modules())
    auto = at == "auto"
    if auto and (known.beside or find(known.place, modules, survey)):
        at = known.place
    if auto and not known.beside and not repeated and not find(str(at), modules, survey, once=True):
        at = for_one(str(at), modules, survey) or at
    chosen = choose(model, at, survey)
    if known.beside:
        ends = {convolution: end for end, convolution in survey.beside.items()}
        chosen = choose(model, [ends.get(site.name, site.name) for site in chosen], survey)
        for site in chosen:
            if site.name not in survey.beside:
                raise UserError(
                    f"{mechanism} stands beside a convolution over neighbours with its norm and activation, and "
                    f"{site.name!r} is the end of none: {_kernels(modules, survey)}"
                )
    for site in chosen:
        axes = len(site.shape) - 2
        if axes not in known.spatial:
            raise wrong_axes(mechanism, axes, f"the map at {site.name!r}")
        if options.get("spatial_dims", axes) != axes:
            raise UserError(
                f"{mechanism} was asked for with spatial_dims={options['spatial_dims']}, and the map at {site.name!r} "
                f"has {axes} spatial axes: leave spatial_dims out"
            )
        outputs = survey.outputs[site.name]
        if auto and site.calls > 1 and not repeated:
            raise UserError(
                f"every place for {mechanism} in this {type(model).__name__} is called several times in one pass, such "
                f"as {site.name!r}, so that one mechanism would serve all: pass repeated=True if that is meant"
            )
        if len({output.kind for output in outputs}) > 1:
            listed = " and ".join(map(str, list(dict.fromkeys(output.shape for output in outputs))[:3]))
            raise UserError(
                f"site {site.name!r} is called with maps that no one mechanism serves, {listed}: choose "
                "a site inside it"
            )
        if site.calls > 1 and not repeated:
            raise UserError(
                f"site {site.name!r} is called {site.calls} times in one pass, so that one mechanism would serve all: "
                "pass repeated=True if that is meant, or choose another site"
            )
        if label in _labels(modules[site.name]):
            raise UserError(f"site {site.name!r} already has {label!r}: remove it first, or pass another label=")

    record: dict[str, Any] = {"mechanism": mechanism, "options": options, "start": start}
    record["channels"] = {site.name: site.shape[1] for site in chosen}
    record["layouts"] = {site.name: astuple(site.layout) for site in chosen}
    record["beside"] = {}
    if known.beside:
        for site in chosen:
            name = survey.beside[site.name]
            record["beside"][site.name] = {"convolution": name, "options": known.beside(modules[name])}
            record["channels"][site.name] = modules[name].in_channels
    ranks = {site.name: len(site.shape) - 2 for site in chosen}
    built = _build(record, ranks, seed)
    attached = _insert(model, label, record, built)
    try:
        _check_calls(model, example, attached, survey)
        if start == "scaled":
            _measure_gates(attached, example)
    except BaseException:
        attached.remove()
        raise
    return attached


def attached(model: nn.Module) -> list[Attached]:
    """Everything that is attached to a model, also to a copied, pickled or converted one, in the order of its sites.

    Example:
        >>> import regard, torch
        >>> regard.attached(torch.nn.Linear(2, 2))
        []
    """
    _mend(model)
    found: dict[tuple[str, str], Attached] = {}
    for name, module in model.named_modules():
        if isinstance(module, Inserted):
            for label, record in module.records.items():
                here = name.removesuffix(
                    f".{CHILD}"
                )  # the host may be a part of this model, stand in a wrapper, or hold it
                host, above = _host(here, record["site"])
                if (host, label) not in found:
                    part = model.get_submodule(host)
                    found[host, label] = Attached(part, label, _below(record, above), above)
    return list(found.values())


def _host(here: str, site: str) -> tuple[str, str]:
    """Where the host of a site is in a model that has the site here, and which prefix names have only in the host."""
    ours, theirs = here.split("."), site.split(".")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop(), theirs.pop()
    return ".".join(ours), "".join(f"{part}." for part in theirs)


def _below(record: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A record of the sites below a prefix, under their names there."""
    inside = {key: {n.removeprefix(prefix): v for n, v in record[key].items() if n.startswith(prefix)} for key in NAMED}
    for beside in inside["beside"]:
        held = inside["beside"][beside]
        inside["beside"][beside] = held | {"convolution": held["convolution"].removeprefix(prefix)}
    return {**record, **inside}


def load(model: nn.Module, path: str | os.PathLike[str]) -> Attached:
    """Attach what `Attached.save` wrote to a fresh host. The file cannot run code.

    Args:
        model: a host that has the same sites.
        path: a safetensors file.

    Raises:
        UserError: the file is missing, broken or not ours, or the host does not have its sites.
    """
    path = Path(path)
    refuse_unhookable(model)
    label, host, shapes, record, tensors = _read(path)
    modules = dict(model.named_modules())
    for site in (*record["channels"], *(beside["convolution"] for beside in record["beside"].values())):
        if site not in modules:
            raise UserError(f"{path} was made for a site {site!r} that this host lacks{near(site, list(modules))}")
        if label in _labels(modules[site]):
            raise UserError(f"site {site!r} already has {label!r}: remove it first")
    for site, beside in record["beside"].items():
        if not isinstance(modules[beside["convolution"]], CONVOLUTIONS):
            raise UserError(
                f"{path} was made for a convolution at {beside['convolution']!r}: {site!r} has none before it"
            )
    own = _host_keys(model)
    differing = [f"this host lacks {', '.join(map(repr, keys))}" for keys in [_missing(own, host)] if keys]
    differing += [f"only this host has {', '.join(map(repr, keys))}" for keys in [_missing(host, own)] if keys]
    if differing:
        raise UserError(
            f"{path} was made for another host: {'; '.join(differing)}: build the host as it was when it was saved"
        )
    for key, shape in _shapes(model, record).items():
        if shape != shapes.get(key):
            raise UserError(f"{path} was made for another host: there {key!r} is {shapes.get(key)}, here {shape}")
    ranks = {site: record["options"].get("spatial_dims", 2) for site in record["channels"]}
    try:
        built = _build(record, ranks, 0)
    except UserError:
        raise
    except Exception as error:  # whatever a mechanism makes of a value that it did not expect
        raise UserError(
            f"{path} asks for a {record['mechanism']} that cannot be built ({brief(error)}): write it again with save"
        ) from error
    weights: dict[str, dict[str, Tensor]] = {}
    for site, mechanism in built.items():
        prefix, new = f"{site}.{CHILD}.{label}.", mechanism.state_dict()
        held = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        weights[site] = held
        if held.keys() != new.keys() or any(held[name].shape != new[name].shape for name in new):
            raise UserError(f"{path} does not hold the weights of {record['mechanism']} at {site!r}")
        for name in new:
            if not same_kind(held[name], new[name]):
                raise UserError(f"{path} holds {prefix}{name} as {held[name].dtype}, where {new[name].dtype} belongs")
    attached = _insert(model, label, record, built)
    try:
        for site, mechanism in attached.modules.items():
            mechanism.load_state_dict(weights[site])
    except BaseException:
        attached.remove()
        raise
    return attached


def _shapes(model: nn.Module, record: Mapping[str, Any]) -> dict[str, list[int]]:
    """The shapes of the host's tensors at the sites; where a site has none, beside it."""
    found: dict[str, list[int]] = {}
    for site in record["channels"]:
        module, name = model.get_submodule(site), site
        if not any(f".{CHILD}." not in f".{key}" for key in module.state_dict()):
            name = record["beside"].get(site, {}).get("convolution") or site.rpartition(".")[0]
            module = model.get_submodule(name)
        if name:  # the whole model may have another classifier
            own = {key: tensor for key, tensor in module.state_dict().items() if f".{CHILD}." not in f".{key}"}
            found |= {f"{name}.{key}": list(tensor.shape) for key, tensor in own.items()}
    return found


def _read(path: Path) -> tuple[str, list[str], dict[str, list[int]], dict[str, Any], dict[str, Tensor]]:
    """Label, host's keys and shapes, record and tensors of a file, which may come from anybody."""
    opened(path).close()
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("regard")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    try:
        header = json.loads(text or "null")
        wrong = None if text else "it has no header of ours"
    except (ValueError, RecursionError) as error:
        header, wrong = None, f"its header is no JSON: {str(error).partition(chr(10))[0]}"
    if wrong := wrong or fault(header, Header) or _unsound(header):
        raise UserError(f"{path} holds no attachment of regard ({wrong}): write one with attached.save(path)")
    record = {name: header[name] for name in RECORD}
    _check_label(header["label"])
    known = info(record["mechanism"])
    if known.place is None:
        raise UserError(f"{path} holds no attachment of regard ({known.name} cannot be attached): write one with save")
    try:
        count = 0
        for site, channels in record["channels"].items():
            options = record["beside"].get(site, {}).get("options", {}) | record["options"]
            check_options(known, options)
            count += known.parameters(channels, **options)
    except Exception as error:  # a formula makes anything of options that no module would take
        raise UserError(f"{path} asks for a {known.name} that cannot be built: {brief(error)}") from error
    if header["sha256"] != _digest(tensors):
        raise UserError(f"{path} is damaged: its weights are not those that were written")
    # before anything is built: a small file asks for no large modules
    if count > sum(tensor.numel() for tensor in tensors.values()):
        raise UserError(f"{path} does not hold the weights of {known.name}: it is cut short or was changed")
    return header["label"], header["host"], header["shapes"], record, tensors


def _unsound(header: Any) -> str | None:
    """What of a header cannot be, though every field is of its kind."""
    sites = header["channels"].keys()
    if header["fingerprint"] != _fingerprint(header["host"]):
        return "fingerprint is not that of host"
    if header["layouts"].keys() != sites or not header["beside"].keys() <= sites:
        return "layouts or beside are not those of the sites in channels"
    for site in (*sites, *(beside["convolution"] for beside in header["beside"].values())):
        if not site or f".{CHILD}." in f".{site}.":
            return f"channels has a site {site!r}"
    for site, (word, prefix, grid) in header["layouts"].items():
        if bool(grid) != (word == "tokens") or (prefix and word != "tokens"):
            return f"layouts.{site} has a prefix or a grid that does not belong to {word}"
    return None


def _missing(keys: list[str], wanted: list[str]) -> list[str]:
    """The first few that are wanted and are not among the keys."""
    return sorted(set(wanted) - set(keys))[:3]


def _check_label(label: str) -> None:
    if not isinstance(label, str) or not label.isidentifier() or hasattr(Inserted(), label):
        raise UserError(
            f"a label is an identifier such as 'se' or 'second' that no torch module uses, got {label!r}: "
            "pass another label="
        )


def _build(record: dict[str, Any], ranks: Mapping[str, int], seed: int | None) -> dict[str, nn.Module]:
    """A mechanism for each site, drawn from a generator of its own; a mechanism that must know the rank is told it."""
    known = info(record["mechanism"])
    if "spatial_dims" in known.options and "spatial_dims" not in record["options"]:
        rank = max(ranks.values())
        record["options"] = record["options"] | ({"spatial_dims": rank} if rank != 2 else {})
    with torch.inference_mode(False), same_randomness(), torch.device("cpu"):  # weights that can learn
        torch.default_generator.manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
        built = {
            site: create(known.name, channels, **record["beside"].get(site, {}).get("options", {}) | record["options"])
            for site, channels in record["channels"].items()
        }
        if record["start"] == "identity":
            for mechanism in built.values():
                start_as_identity(known, mechanism)
        if record["start"] == "scaled":
            for mechanism in built.values():
                keep_scale(mechanism)
    return built


def _insert(model: nn.Module, label: str, record: dict[str, Any], built: Mapping[str, nn.Module]) -> Attached:
    modules = dict(model.named_modules())
    for name in built:
        site = modules[name]
        if hasattr(site, CHILD) and not isinstance(getattr(site, CHILD), Inserted):
            raise UserError(f"site {name!r} has an attribute {CHILD!r} of its own: choose another site")
    for name, mechanism in built.items():
        site = modules[name]
        if not hasattr(site, CHILD):
            _hook(site, Inserted().train(site.training))
        inserted: Any = getattr(site, CHILD)
        _guard(model).places[name] = inserted
        tensor = _reference_tensor(site, model)
        if tensor is not None:
            mechanism.to(device=tensor.device, dtype=tensor.dtype)
        inserted.add_module(label, mechanism.train(site.training))
        inserted.records[label] = record | {"site": name}
        if name in record["beside"]:
            modules[record["beside"][name]["convolution"]].register_forward_pre_hook(_Keep(inserted, label))
    return Attached(model, label, record)


def _reference_tensor(site: nn.Module, model: nn.Module) -> Tensor | None:
    """A floating-point parameter (or buffer) of the site, else of the model: its device and dtype are the site's."""
    for module in (site, model):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                return tensor
    return None


def _check_calls(model: nn.Module, example: Any, attached: Attached, before: Survey) -> None:
    """A module that runs all its children would run ours once too often: seen by running."""
    calls = dict.fromkeys(attached.modules, 0)

    def count(name: str) -> Callable[..., None]:
        def add(_: nn.Module, args: tuple[Tensor], output: Any) -> None:
            calls[name] += 1
            if not isinstance(output, Tensor) or output.shape != args[-1].shape:
                shape = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
                raise ValueError(f"{attached.label} turns {tuple(args[-1].shape)} into {shape}")

        return add

    try:
        with borrowed(model) as twin, torch.no_grad():
            for name, module in attached.on(twin).modules.items():
                module.register_forward_hook(count(name))
            call(twin, example)
    except UserError as error:
        raise UserError(
            f"{attached.label!r} cannot stand there: {str(error).removeprefix(attached.mechanism + ': ')}"
        ) from error
    except Exception as error:
        raise UserError(
            f"with {attached.label!r} attached the model fails ({brief(error)}): choose other sites or options; a "
            "container that runs its children by itself is no site"
        ) from error
    for name, times in calls.items():
        if times != len(before.outputs[name]):
            raise UserError(f"site {name!r} runs all its children by itself: choose the last module inside it")


@contextmanager
def rehearsed(attached: Attached) -> Iterator[tuple[nn.Module, list[tuple[Tap, Tap]]]]:
    """A borrowed twin of the host and each tap of the attachment with its copy in there, to be hooked and called.

    Batch norms are as in training: those of the host where they are so now, those of the mechanisms always.
    """
    with borrowed(attached.model) as twin:
        own = {id(part) for module in attached.modules.values() for part in module.modules()}
        for part, copy in zip(attached.model.modules(), twin.modules(), strict=True):
            if isinstance(part, _BatchNorm):
                copy.training = part.training or id(part) in own
        copies = attached.on(twin).modules
        pairs = [
            (tap, copy)
            for site, module in attached.modules.items()
            for (_, tap), (_, copy) in zip(taps(module), taps(copies[site]), strict=True)
        ]
        yield twin, pairs


def _measure_gates(attached: Attached, example: Any) -> None:
    """Give every gate its factor, in the order of the pass, so that later ones see the earlier ones as they will be."""
    with rehearsed(attached) as (twin, pairs), torch.no_grad():
        seen: set[Tap] = set()

        def measure(tap: Tap, args: tuple[Tensor], value: Tensor) -> Tensor:
            if tap not in seen:
                seen.add(tap)
                tap.measure(args[0])
            return tap.forward(args[0])

        for tap, copy in pairs:
            if tap.scale is not None:
                copy.register_forward_hook(measure)
        try:
            call(twin, example)
        except Exception as error:
            raise UserError(
                f"the model fails on the example with batch norms as in training ({brief(error)}), which the start "
                "'scaled' needs: give an example of several images"
            ) from error
        for tap, copy in pairs:
            if tap.scale is not None and copy.scale is not None:
                tap.scale.copy_(copy.scale)


def _host_keys(model: nn.Module) -> list[str]:
    """The state-dict keys of the host alone, whatever is attached to it."""
    return [key for key in model.state_dict() if f".{CHILD}." not in f".{key}"]


def _labels(site: nn.Module) -> list[str]:
    inserted = getattr(site, CHILD, None)
    return list(inserted.records) if isinstance(inserted, Inserted) else []


def _hooks(site: nn.Module) -> list[int]:
    return [key for key, hook in site._forward_hooks.items() if hook is _send_through]


def _keepers(convolution: nn.Module | None, inserted: nn.Module, label: str) -> list[int]:
    hooks = convolution._forward_pre_hooks.items() if convolution is not None else ()
    return [key for key, hook in hooks if isinstance(hook, _Keep) and hook.inserted is inserted and hook.label == label]


def _take_out(everywhere: Mapping[str, nn.Module], site: str, inserted: Inserted, label: str) -> None:
    module = everywhere[site]
    if beside := inserted.records[label]["beside"].get(site):
        convolution = everywhere.get(beside["convolution"])
        for key in _keepers(convolution, inserted, label):
            del convolution._forward_pre_hooks[key]  # type: ignore[union-attr]
    del inserted._modules[label], inserted.records[label]
    if not inserted.records:
        del module._modules[CHILD]
        for key in _hooks(module):
            del module._forward_hooks[key]
        _unmark(module)


def _kernels(modules: Mapping[str, nn.Module], survey: Survey) -> str:
    names = find("kernels", modules, survey)
    return f"try {names[0]!r}, or at='kernels'" if names else "this network has no such place"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Of all bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _fingerprint(keys: list[str]) -> str:
    """Of a host's set of keys, whatever their order."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:16]
