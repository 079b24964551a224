"""What is checked before a mechanism stands in a network, and, by one forward pass, once it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard.base.errors import UserError, brief
from regard.insertion.attachment import Attached
from regard.insertion.container import labels, refuse_label
from regard.insertion.record import STARTS
from regard.insertion.site import Site
from regard.insertion.survey import Survey
from regard.insertion.surveyed import Surveyed
from regard.networks.replica import borrowed, call
from regard.registry.info import Info
from regard.registry.registration import wrong_axes


def check_request(card: Info, label: str, start: str, seed: Any, options: Mapping[str, Any]) -> None:
    """Refuse what no network could be given, whatever its sites."""
    if card.place is None:
        raise UserError(f"{card.name} cannot be attached: {card.said('Place')}")
    for option, value in options.items():
        if isinstance(value, nn.Module):
            raise UserError(
                f"{card.name}: the module given as {option} would be shared by all sites: give a word or None"
            )
    refuse_label(label)
    if seed is not None and not isinstance(seed, int):
        raise UserError(f"seed is a whole number or None, got {seed!r}")
    if start not in STARTS:
        raise UserError(f"start is 'identity', 'paper' or 'scaled', got {start!r}")


def check_sites(
    card: Info,
    chosen: Sequence[Site],
    network: Surveyed,
    *,
    label: str,
    options: Mapping[str, Any],
    repeated: bool,
    automatic: bool,
) -> None:
    """Refuse sites at which a mechanism cannot stand.

    Args:
        card: the mechanism.
        chosen: its sites.
        network: theirs.
        label, options, repeated: see `attach`.
        automatic: whether the places were left to ``at="auto"``.
    """
    for site in chosen:
        _check_axes(card, site, options)
        _check_calls(card, site, network, repeated=repeated, automatic=automatic)
        if label in labels(network.modules[site.name]):
            raise UserError(f"site {site.name!r} already has {label!r}: remove it first, or pass another label=")


def _check_axes(card: Info, site: Site, options: Mapping[str, Any]) -> None:
    axes = len(site.shape) - 2
    if axes not in card.spatial:
        raise wrong_axes(card.name, axes, f"the map at {site.name!r}")
    if options.get("spatial_dims", axes) != axes:
        raise UserError(
            f"{card.name} was asked for with spatial_dims={options['spatial_dims']}, and the map at {site.name!r} "
            f"has {axes} spatial axes: leave spatial_dims out"
        )


def _check_calls(card: Info, site: Site, network: Surveyed, *, repeated: bool, automatic: bool) -> None:
    """One mechanism serves every call of its site, so that these must be alike, and several must be meant."""
    outputs, several = network.survey.outputs[site.name], site.calls > 1 and not repeated
    if several and automatic:
        raise UserError(
            f"every place for {card.name} in this {type(network.model).__name__} is called several times in one pass, "
            f"such as {site.name!r}, so that one mechanism would serve all: pass repeated=True if that is meant"
        )
    if len({output.kind for output in outputs}) > 1:
        shapes = list(dict.fromkeys(output.shape for output in outputs))[:3]
        raise UserError(
            f"site {site.name!r} is called with maps that no one mechanism serves, {' and '.join(map(str, shapes))}: "
            "choose a site inside it"
        )
    if several:
        raise UserError(
            f"site {site.name!r} is called {site.calls} times in one pass, so that one mechanism would serve all: "
            "pass repeated=True if that is meant, or choose another site"
        )


def check_by_running(attachment: Attached, example: Any, before: Survey) -> None:
    """Run the model with what was put in: a module that runs all its children would run ours once too often."""
    calls = dict.fromkeys(attachment.modules, 0)

    def count(name: str) -> Callable[..., None]:
        def add(_: nn.Module, args: tuple[Tensor], output: Any) -> None:
            calls[name] += 1
            if not isinstance(output, Tensor) or output.shape != args[-1].shape:
                shape = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
                raise ValueError(f"{attachment.label} turns {tuple(args[-1].shape)} into {shape}")

        return add

    try:
        with borrowed(attachment.model) as replica, torch.no_grad():
            for name, module in attachment.on(replica).modules.items():
                module.register_forward_hook(count(name))
            call(replica, example)
    except UserError as error:
        raise UserError(f"{attachment.label!r} cannot stand there: {error.reason}") from error
    except Exception as error:
        raise UserError(
            f"with {attachment.label!r} attached the model fails ({brief(error)}): choose other sites or options; a "
            "container that runs its children by itself is no site"
        ) from error
    for name, times in calls.items():
        if times != len(before.outputs[name]):
            raise UserError(f"site {name!r} runs all its children by itself: choose the last module inside it")
