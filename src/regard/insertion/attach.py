"""Put a mechanism into a user's model: choose its sites, check them, build it and put it in.

The user's model is borrowed: a site gets one child, ``site.regard``, and one forward hook that sends the site's output
through it. No key is renamed, no mode flipped, no buffer or random state moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any

from torch import Tensor, nn

import regard.mechanisms  # noqa: F401  (registers them)
from regard.base.errors import UserError
from regard.insertion.attachment import Attached
from regard.insertion.checks import check_by_running, check_request, check_sites
from regard.insertion.container import Inserted, hang, stand_beside
from regard.insertion.dry_run import dry_run
from regard.insertion.reattaching import watch_over
from regard.insertion.record import build
from regard.insertion.scaled_start import measure_gates
from regard.insertion.site import At, Site, choose
from regard.insertion.survey import CHILD
from regard.insertion.surveyed import Surveyed
from regard.insertion.words import find
from regard.networks.hookable import refuse_unhookable
from regard.registry.info import Info
from regard.registry.registration import info


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
    card = info(mechanism)
    label = mechanism if label is None else label
    check_request(card, label, start, seed, options)
    refuse_unhookable(model)
    network = Surveyed(model, dry_run(model, example, layout))
    automatic = isinstance(at, str) and at == "auto"
    chosen = choose(_own_place(card, network, repeated) if automatic else at, network)
    if card.beside:
        chosen = _beside(card, chosen, network)
    check_sites(card, chosen, network, label=label, options=options, repeated=repeated, automatic=automatic)
    record = _record(card, chosen, network, start, options)
    with inserted(model, label, record, build(record, seed)) as attachment:
        check_by_running(attachment, example, network.survey)
        if start == "scaled":
            measure_gates(attachment, example)
    return attachment


def _own_place(card: Info, network: Surveyed, repeated: bool) -> At:
    """What ``at="auto"`` stands for: the place that a mechanism was made for, or the one that comes nearest to it."""
    place = card.place
    assert place is not None
    if card.beside:
        return place
    word = place if find(place, network) else "auto"
    if repeated or find(word, network, once=True):
        return word
    return _called_once(word, network) or word


def _called_once(word: str, network: Surveyed) -> list[str]:
    """Names for a mechanism that serves one call alone, where a pass calls what the word stands for several times: the
    blocks around that, what another word stands for, or the last map that is made once; none where there is none."""
    for other in dict.fromkeys((word, "auto", "blocks")):
        names = find(other, network, once=True)
        names = names or [around for name in find(other, network) if (around := _around(name, network))]
        if names:
            return list(dict.fromkeys(names))
    once = network.passing_over_repeated()
    maps = [name for name in once.counted(once.survey.order) if name and once.is_map(name)]
    return [name for name in maps if once.map(name)[1] > 1][-1:]


def _around(name: str, network: Surveyed) -> str:
    """The innermost module around one that is called once and gives a map; "" where only the whole network does."""
    while name := name.rpartition(".")[0]:
        if name in network.survey.outputs and network.is_called_once(name) and network.is_map(name):
            return name
    return ""


def _beside(card: Info, chosen: Sequence[Site], network: Surveyed) -> list[Site]:
    """The sites of a mechanism that takes a convolution of the host for its first branch: the ends of its unit."""
    kernels = network.survey.beside
    ends = {convolution: end for end, convolution in kernels.items()}
    sites = choose([ends.get(site.name, site.name) for site in chosen], network)
    for site in sites:
        if site.name not in kernels:
            names = find("kernels", network)
            instead = f"try {names[0]!r}, or at='kernels'" if names else "this network has no such place"
            raise UserError(
                f"{card.name} stands beside a spatial convolution with its norm and activation, and "
                f"{site.name!r} is the end of none: {instead}"
            )
    return sites


def _record(
    card: Info, chosen: Sequence[Site], network: Surveyed, start: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What is known of the attachment; see `regard.insertion.record.Record`."""
    axes = max(len(site.shape) - 2 for site in chosen)
    if axes != 2 and "spatial_dims" in card.options and "spatial_dims" not in options:
        options = {**options, "spatial_dims": axes}
    channels = {site.name: site.shape[1] for site in chosen}
    beside = {}
    if card.beside:
        for site in chosen:
            name = network.survey.beside[site.name]
            convolution: Any = network.modules[name]
            beside[site.name] = {"convolution": name, "options": card.beside(convolution)}
            channels[site.name] = convolution.in_channels
    layouts = {site.name: astuple(site.layout) for site in chosen}
    return {
        "mechanism": card.name, "options": dict(options), "start": start, "channels": channels, "layouts": layouts,
        "beside": beside,
    }  # fmt: skip


@contextmanager
def inserted(
    model: nn.Module, label: str, record: Mapping[str, Any], mechanisms: Mapping[str, nn.Module]
) -> Iterator[Attached]:
    """Put a mechanism behind each site; where the block fails, everything is taken out again."""
    attachment = _insert(model, label, record, mechanisms)
    try:
        yield attachment
    except BaseException:
        attachment.remove()
        raise


def _insert(model: nn.Module, label: str, record: Mapping[str, Any], mechanisms: Mapping[str, nn.Module]) -> Attached:
    modules = dict(model.named_modules())
    for name in mechanisms:
        if not isinstance(getattr(modules[name], CHILD, Inserted()), Inserted):
            raise UserError(f"site {name!r} has an attribute {CHILD!r} of its own: choose another site")
    for name, mechanism in mechanisms.items():
        site = modules[name]
        if not hasattr(site, CHILD):
            hang(site, Inserted().train(site.training))
        child: Any = getattr(site, CHILD)
        watch_over(model, name, child)
        tensor = _reference_tensor(site, model)
        if tensor is not None:
            mechanism.to(device=tensor.device, dtype=tensor.dtype)
        child.add_module(label, mechanism.train(site.training))
        child.records[label] = {**record, "site": name}
        if beside := record["beside"].get(name):
            stand_beside(modules[beside["convolution"]], child, label)
    return Attached(model, label, record)


def _reference_tensor(site: nn.Module, model: nn.Module) -> Tensor | None:
    """A floating-point parameter (or buffer) of the site, else of the model: its device and dtype are the site's."""
    for module in (site, model):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                return tensor
    return None
