"""Attach what was saved: a file is held against the host before anything is put in."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor, nn

from regard.base.errors import UserError, brief, near
from regard.insertion.attach import inserted
from regard.insertion.attachment import Attached
from regard.insertion.container import host_keys, labels
from regard.insertion.record import build
from regard.insertion.storage import Saved, read, site_shapes
from regard.insertion.survey import CHILD, CONVOLUTIONS
from regard.networks.hookable import refuse_unhookable
from regard.networks.weights import same_kind


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
    saved = read(path)
    _check_sites(path, saved, model)
    _check_host(path, saved, model)
    mechanisms = _build(path, saved)
    weights = {site: _weights(path, saved, site, mechanism) for site, mechanism in mechanisms.items()}
    with inserted(model, saved.label, saved.record, mechanisms) as attachment:
        for site, mechanism in attachment.modules.items():
            mechanism.load_state_dict(weights[site])
    return attachment


def _check_sites(path: Path, saved: Saved, model: nn.Module) -> None:
    modules = dict(model.named_modules())
    beside = {site: held["convolution"] for site, held in saved.record["beside"].items()}
    for name in (*saved.record["channels"], *beside.values()):
        if name not in modules:
            raise UserError(f"{path} was made for a site {name!r} that this host lacks{near(name, list(modules))}")
        if saved.label in labels(modules[name]):
            raise UserError(f"site {name!r} already has {saved.label!r}: remove it first")
    for site, name in beside.items():
        if not isinstance(modules[name], CONVOLUTIONS):
            raise UserError(f"{path} was made for a convolution at {name!r}: {site!r} has none before it")


def _check_host(path: Path, saved: Saved, model: nn.Module) -> None:
    """Whether it is the network that the file was made for, by its keys, and at the sites by the shapes."""
    own, theirs = set(host_keys(model)), set(saved.host)
    both = (("this host lacks", theirs - own), ("only this host has", own - theirs))
    differing = [f"{words} {', '.join(map(repr, sorted(keys)[:3]))}" for words, keys in both if keys]
    if differing:
        raise UserError(
            f"{path} was made for another host: {'; '.join(differing)}: build the host as it was when it was saved"
        )
    for key, shape in site_shapes(model, saved.record).items():
        if shape != saved.shapes.get(key):
            raise UserError(f"{path} was made for another host: there {key!r} is {saved.shapes.get(key)}, here {shape}")


def _build(path: Path, saved: Saved) -> dict[str, nn.Module]:
    try:
        return build(saved.record, 0)
    except UserError:
        raise
    except Exception as error:  # whatever a mechanism makes of a value that it did not expect
        raise UserError(
            f"{path} asks for a {saved.record['mechanism']} that cannot be built ({brief(error)}): write it again with "
            "save"
        ) from error


def _weights(path: Path, saved: Saved, site: str, mechanism: nn.Module) -> dict[str, Tensor]:
    """What the file holds for the mechanism at a site."""
    prefix, new = f"{site}.{CHILD}.{saved.label}.", mechanism.state_dict()
    held = {name.removeprefix(prefix): tensor for name, tensor in saved.tensors.items() if name.startswith(prefix)}
    if held.keys() != new.keys() or any(held[name].shape != new[name].shape for name in new):
        raise UserError(f"{path} does not hold the weights of {saved.record['mechanism']} at {site!r}")
    for name in new:
        if not same_kind(held[name], new[name]):
            raise UserError(f"{path} holds {prefix}{name} as {held[name].dtype}, where {new[name].dtype} belongs")
    return held
