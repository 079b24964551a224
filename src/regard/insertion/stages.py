"""Blocks and stages: where a network repeats itself, and where its maps change their sides or their width."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from regard.insertion.survey import CONVOLUTIONS
from regard.insertion.surveyed import Surveyed

ALIKE = 0.7  # of a side is still the same resolution: convolutions without padding narrow a map a little


def find_blocks(network: Surveyed) -> list[str]:
    """Each residual block, and each module of a class that is one elsewhere in the network."""
    kinds = {type(network.modules[name]) for name in network.survey.blocks}
    alike = {name for name in network.survey.outputs if name and type(network.modules[name]) in kinds}
    blocks = {name for name in alike.union(network.survey.blocks) if network.is_map(name)}
    blocks -= _nested(blocks, network)
    return network.counted(name for name in network.survey.order if name in blocks)


def find_stages(network: Surveyed) -> list[str]:
    """The last block before the map's sides change or its width doubles; without blocks, what comes nearest to it."""
    blocks = find_blocks(network)
    groups = _runs(blocks, lambda name: network.map(name)[1:]) if blocks else _plain_stages(network)
    return [group[-1] for group in groups]


def _plain_stages(network: Surveyed) -> list[list[str]]:
    """The stages of a network without residual blocks: units of one resolution, among which is a convolution."""
    units = [name for name in _units("", network) if network.is_map(name) and max(network.map(name)[2:]) > 1]
    units = network.counted(units)
    features = [name for name in units if network.survey.goes_on(name)]
    units = features if _convolutions(features, network) > 1 else units
    if _convolutions(units, network) < 2:  # the patch embedding of a transformer is no stage
        return []
    groups = _runs(units, lambda name: (1, *network.map(name)[2:]))
    return [group for group in groups if _convolutions(group, network)]


def _nested(blocks: set[str], network: Surveyed) -> set[str]:
    """Of blocks inside blocks, those that are less than half of them, or that are made of others."""
    size = {name: sum(weight.numel() for weight in network.modules[name].parameters()) for name in blocks}
    dropped: set[str] = set()
    for outer in sorted(blocks, key=lambda name: name.count(".")):
        inner = {name for name in blocks if name.startswith(outer + ".")}
        tops = {name for name in inner if not any(name.startswith(other + ".") for other in inner)}
        if 2 * sum(size[name] for name in tops) < size[outer]:
            dropped |= inner
        elif inner and outer not in dropped:
            dropped.add(outer)
    return dropped


def _units(name: str, network: Surveyed) -> list[str]:
    """What a network without residual blocks is made of: its parts, each seen as a whole while it stays at one or two
    resolutions."""
    if name in network.survey.blocks:
        return []
    units: list[str] = []
    for child, module in network.modules[name].named_children():
        inside = f"{name}.{child}".removeprefix(".")
        whole = not module._modules or _is_unit(inside, network)
        units += [inside] if whole else _units(inside, network)
    return sorted((unit for unit in units if unit in network.survey.outputs), key=network.survey.order.index)


def _is_unit(name: str, network: Surveyed) -> bool:
    """Whether a module with children is seen as a whole."""
    runs_children = type(network.modules[name]).forward is nn.Sequential.forward
    if runs_children or name not in network.survey.outputs or not network.is_map(name):
        return False
    calls = network.survey.outputs.items()
    inside = [output.map for called, outputs in calls if called.startswith(name + ".") for output in outputs]
    return len({shape[2:] for shape in inside if shape}) <= 2


def _convolutions(names: list[str], network: Surveyed) -> int:
    return sum(isinstance(module, CONVOLUTIONS) for name in names for module in network.modules[name].modules())


def _runs(names: list[str], shape: Callable[[str], tuple[int, ...]]) -> list[list[str]]:
    """Neighbours of about one resolution, until the width doubles: dilated networks narrow no map between stages."""
    groups: list[list[str]] = []
    for name in names:
        if groups and _goes_with(shape(groups[-1][0]), shape(name)):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def _goes_with(first: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether a map (C, *spatial) belongs to the stage that began with another."""
    if len(first) != len(other) or not first[0] / 2 < other[0] < first[0] * 2:
        return False
    return all(ALIKE * side < now < side / ALIKE for side, now in zip(first[1:], other[1:], strict=True))
