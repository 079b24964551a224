"""Mechanisms attached to a user's model, taken out again, saved and loaded.

The user's model is borrowed: a site gets one child, ``site.regard``, and one forward hook that sends the site's output
through it. No key is renamed, no mode flipped, no buffer or random state moved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import regard.mechanisms  # noqa: F401  (registers them)
from regard.errors import UserError, near
from regard.files import whole
from regard.registry import create, info
from regard.survey import (
    CHILD,
    At,
    Survey,
    borrowed,
    brief,
    call,
    choose,
    dry_run,
    find,
    refuse_unhookable,
    same_randomness,
)


class Inserted(nn.Module):
    """What is attached at one site: a child for each label, run in order."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[str, dict[str, Any]] = {}

    def forward(self, x: Tensor) -> Tensor:
        for mechanism in self.children():
            x = mechanism(x)
        return x


def _send_through(site: nn.Module, args: Any, output: Tensor) -> Tensor:
    """The one hook, at every site."""
    return site._modules[CHILD](output)  # type: ignore[misc]


class Attached:
    """One attachment: a mechanism under a label at its sites. A view; everything is in the model.

    Attributes:
        model: the host.
        label: the name of its children, ``site.regard.LABEL``.
        mechanism, options, start: how it was made.
        sites: names of the sites, in the order of the forward pass.
        orphans: sites where it no longer works, with the reason (a tool rebuilt the module).
    """

    def __init__(self, model: nn.Module, label: str, record: Mapping[str, Any]) -> None:
        self.model = model
        self.label = label
        self.mechanism: str = record["mechanism"]
        self.options: dict[str, Any] = dict(record["options"])
        self.start: str = record["start"]
        self._channels: dict[str, int] = dict(record["channels"])

    @property
    def sites(self) -> list[str]:
        return list(self._channels)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The mechanism at each site where it still is."""
        everywhere = dict(self.model.named_modules())
        found = {site: everywhere.get(f"{site}.{CHILD}.{self.label}") for site in self.sites}
        return {site: module for site, module in found.items() if module is not None}

    @property
    def orphans(self) -> dict[str, str]:
        everywhere = dict(self.model.named_modules())
        reasons = {}
        for site in self.sites:
            if site not in everywhere:
                reasons[site] = "the site is gone"
            elif f"{site}.{CHILD}.{self.label}" not in everywhere:
                reasons[site] = "the mechanism is gone: the module at the site was rebuilt"
            elif not _hooks(everywhere[site]):
                reasons[site] = "the hook is gone: the module at the site was rebuilt, the mechanism is never called"
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

    def remove(self) -> None:
        """Take everything out again: the outputs and keys of the host are what they were, bit for bit."""
        everywhere = dict(self.model.named_modules())
        for site in self.sites:
            inserted = everywhere.get(f"{site}.{CHILD}")
            if isinstance(inserted, Inserted) and self.label in inserted.records:
                _take_out(everywhere[site], inserted, self.label)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the added weights alone, with what is needed to attach them again, as one safetensors file.

        Raises:
            UserError: some sites are orphans, or the file cannot be written.
        """
        if not self.modules:
            raise UserError(f"cannot save {self.label!r}: it was removed")
        if self.orphans:
            site, reason = next(iter(self.orphans.items()))
            raise UserError(f"cannot save {self.label!r}: at {site!r} {reason}; attach before converting or fusing")
        header = {
            "mechanism": self.mechanism,
            "options": self.options,
            "label": self.label,
            "start": self.start,
            "channels": self._channels,
            "host": _host_keys(self.model),
        }
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in self.state_dict().items()}
        try:
            with whole(path) as temporary:
                save_file(tensors, temporary, metadata={"format": "pt", "regard": json.dumps(header)})
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error

    def __repr__(self) -> str:
        if not self.modules:
            return f"{self.label} ({self.mechanism}), removed"
        count = sum(parameter.numel() for parameter in self.parameters())
        sites = f"{len(self.sites)} site{'s' * (len(self.sites) != 1)}"
        text = f"{self.label} ({self.mechanism}) at {sites}, {count:,} parameters, start={self.start}"
        return text + (f"; {len(self.orphans)} of them orphans" if self.orphans else "")


def attach(
    model: nn.Module,
    mechanism: str,
    *,
    at: At = "auto",
    example: Any,
    start: str = "identity",
    seed: int | None = None,
    label: str | None = None,
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
        at: see `sites`; ``"auto"`` is the mechanism's own placement.
        example: input of the dry run; a tuple is positional arguments, a dict keyword arguments, anything else one.
        start: ``"identity"``: the model computes exactly what it did, and every new parameter can learn: for networks
            that have learnt; ``"paper"``: as the authors start it: for training from scratch, where many networks start
            the last norm of each branch at 0, and an identity in front of a map of zeros would hardly move.
        seed: of the mechanism's own generator; drawn from torch's global one otherwise, which is put back.
        label: name under which it is attached, the mechanism's name otherwise; several labels stack.
        repeated: allow sites that one forward pass calls several times (with one shape).
        options: the mechanism's own, see ``info(name).options``.

    Returns:
        The attachment, which can be removed, saved and asked for its parameters.

    Raises:
        UserError: see `sites`; or a site is called with differing shapes, or already has this label.

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
        raise UserError(f"{mechanism} cannot be attached: {' '.join(known.slots['Place'].split())}")
    for option, value in options.items():
        if isinstance(value, nn.Module):
            raise UserError(
                f"{mechanism}: the module given as {option} would be shared by all sites: give a word or None"
            )
    label = mechanism if label is None else label
    if not label.isidentifier() or hasattr(Inserted(), label):
        raise UserError(
            f"a label is an identifier such as 'se' or 'second' that no torch module uses, got {label!r}: "
            "pass another label="
        )
    if start not in ("identity", "paper"):
        raise UserError(f"start is 'identity' or 'paper', got {start!r}")
    refuse_unhookable(model)
    survey = dry_run(model, example)
    if at == "auto":
        at = known.place if find(known.place, dict(model.named_modules()), survey) else "auto"
    chosen = choose(model, at, survey)
    modules = dict(model.named_modules())
    for site in chosen:
        shapes = list(dict.fromkeys(survey.outputs[site.name]))
        if len(shapes) > 1:
            listed = " and ".join(map(str, shapes[:3]))
            raise UserError(f"site {site.name!r} is called with differing shapes, {listed}: choose a site inside it")
        if site.calls > 1 and not repeated:
            raise UserError(
                f"site {site.name!r} is called {site.calls} times in one pass, so that one mechanism would serve all: "
                "pass repeated=True if that is meant, or choose another site"
            )
        if label in _labels(modules[site.name]):
            raise UserError(f"site {site.name!r} already has {label!r}: remove it first, or pass another label=")

    record: dict[str, Any] = {"mechanism": mechanism, "options": options, "start": start}
    record["channels"] = {site.name: site.shape[1] for site in chosen}
    ranks = {site.name: len(site.shape) - 2 for site in chosen}
    built = _build(record, ranks, seed)
    attached = _insert(model, label, record, built)
    try:
        _check_calls(model, example, attached, survey)
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
    found: dict[tuple[str, str], Attached] = {}
    for name, module in model.named_modules():
        if isinstance(module, Inserted):
            for label, record in module.records.items():
                # the host may be a part of this model, or stand inside a wrapper
                host = f".{name}".removesuffix(f".{record['site']}.{CHILD}").removeprefix(".")
                host = "" if host == name else host
                if (host, label) not in found:
                    found[host, label] = Attached(model.get_submodule(host), label, record)
    return list(found.values())


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
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["regard"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            label, host = str(header["label"]), header["host"]
            record = {key: header[key] for key in ("mechanism", "options", "start", "channels")}
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} holds no attachment of regard: write one with attached.save(path)") from error

    modules = dict(model.named_modules())
    for site in record["channels"]:
        if site not in modules:
            raise UserError(f"{path} was made for a site {site!r} that this host lacks{near(site, list(modules))}")
        if label in _labels(modules[site]):
            raise UserError(f"site {site!r} already has {label!r}: remove it first")
    if differing := sorted({*host} ^ {*_host_keys(model)}):
        whose = "this host lacks" if differing[0] in host else "only this host has"
        raise UserError(
            f"{path} was made for another host: {whose} {differing[0]!r}, one of {len(differing)} such keys"
        )
    ranks = {site: record["options"].get("spatial_dims", 2) for site in record["channels"]}
    attached = _insert(model, label, record, _build(record, ranks, 0))
    for site, mechanism in attached.modules.items():
        prefix = f"{site}.{CHILD}.{label}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        try:
            mechanism.load_state_dict(own)
        except RuntimeError as error:
            attached.remove()
            raise UserError(f"{path} does not hold the weights of {record['mechanism']} at {site!r}") from error
    return attached


def _build(record: dict[str, Any], ranks: Mapping[str, int], seed: int | None) -> dict[str, nn.Module]:
    """A mechanism for each site, drawn from a generator of its own; a mechanism that must know the rank is told it."""
    known = info(record["mechanism"])
    if "spatial_dims" in known.options and "spatial_dims" not in record["options"]:
        rank = max(ranks.values())
        record["options"] = record["options"] | ({"spatial_dims": rank} if rank != 2 else {})
    with same_randomness(), torch.device("cpu"):
        torch.default_generator.manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
        built = {
            site: create(known.name, channels, **record["options"]) for site, channels in record["channels"].items()
        }
        if record["start"] == "identity" and known.identity is not None:
            for mechanism in built.values():
                known.identity(mechanism)
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
            site.add_module(CHILD, Inserted().train(site.training))
            site.register_forward_hook(_send_through)
        inserted: Any = getattr(site, CHILD)
        tensor = _reference_tensor(site, model)
        if tensor is not None:
            mechanism.to(device=tensor.device, dtype=tensor.dtype)
        inserted.add_module(label, mechanism.train(site.training))
        inserted.records[label] = record | {"site": name}
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
            if not isinstance(output, Tensor) or output.shape != args[0].shape:
                shape = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
                raise ValueError(f"{attached.label} turns {tuple(args[0].shape)} into {shape}")

        return add

    handles = [module.register_forward_hook(count(name)) for name, module in attached.modules.items()]
    try:
        with borrowed(model), torch.no_grad():
            call(model, example)
    except UserError as error:
        raise UserError(f"{attached.label!r} cannot stand there: {error}") from error
    except Exception as error:
        raise UserError(
            f"with {attached.label!r} attached the model fails ({brief(error)}): choose other sites or options; a "
            "container that runs its children by itself is no site"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    for name, times in calls.items():
        if times != len(before.outputs[name]):
            raise UserError(f"site {name!r} runs all its children by itself: choose the last module inside it")


def _host_keys(model: nn.Module) -> list[str]:
    """The state-dict keys of the host alone, whatever is attached to it."""
    return [key for key in model.state_dict() if f".{CHILD}." not in f".{key}"]


def _labels(site: nn.Module) -> list[str]:
    inserted = getattr(site, CHILD, None)
    return list(inserted.records) if isinstance(inserted, Inserted) else []


def _hooks(site: nn.Module) -> list[int]:
    return [key for key, hook in site._forward_hooks.items() if hook is _send_through]


def _take_out(site: nn.Module, inserted: Inserted, label: str) -> None:
    del inserted._modules[label], inserted.records[label]
    if not inserted.records:
        del site._modules[CHILD]
        for key in _hooks(site):
            del site._forward_hooks[key]
