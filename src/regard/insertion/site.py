"""Places in a user's model where a mechanism can go: the words for them, patterns, names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from regard.base.errors import UserError, near
from regard.insertion.layout import LAYOUTS, Layout
from regard.insertion.survey import CONVOLUTIONS, Output, Survey, dry_run, innermost, layout_of
from regard.networks.borrowing import refuse_unhookable
from regard.registry.registration import PLACES

WORDS = ("auto", *PLACES)
REASONS = {
    "branches": "residual addition that ends in a module with a feature map",
    "convolutions": "residual branch with a convolution over neighbours",
    "expansions": "inverted residual, that is channels added, a depthwise convolution, and channels taken away",
    "kernels": "convolution over neighbours that another one follows",
    "stages": "stacked convolutions with feature maps",
    "transitions": "two stages of differing size",
    "head": "stacked convolutions with feature maps",
}

At = str | Sequence[str] | Callable[[str, nn.Module, tuple[int, ...]], bool]


@dataclass(frozen=True)
class Site:
    """A place in a model where a mechanism can go.

    Attributes:
        name: dotted name of the module whose output is weighed.
        kind: its class.
        shape: (B, C, *spatial) of the map in its output, in the dry run.
        calls: how often one forward pass calls it.
        layout: how the output holds the map, see `regard.insertion.layout.Layout`.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    calls: int
    layout: Layout


def sites(model: nn.Module, at: At = "auto", *, example: Any, layout: str | None = None) -> list[Site]:
    """Find the places of a model where a mechanism can go, by one dry run.

    Args:
        model: any module; it is left exactly as it was.
        at: a word for places that the dry run finds,

            ``"branches"``: the end of each residual branch, before the addition: its last norm, where it has one;
            ``"convolutions"``: the last convolution over neighbours in each residual branch, before its norm;
            ``"expansions"``: the end of the wide part of each inverted residual, before it is narrowed;
            ``"kernels"``: the end of the last convolution over neighbours, norm and activation inside each branch;
            ``"blocks"``: each residual block;
            ``"stages"``: the last block before the map's sides change or its width doubles;
            ``"transitions"``: every stage but the last; ``"head"``: the last stage alone;
            ``"auto"``: branches, or stages where there are none or next to none;

            or a glob over dotted names (``*`` stays within a dot, ``**`` crosses); a list of names; or a function
            ``(name, module, shape) -> bool``, with the shape (B, C, *spatial) of the module's map.
        example: input of the dry run; a tuple is positional arguments, a dict keyword arguments, anything else one.
        layout: how the outputs hold their maps, where the dry run cannot tell or tells it wrong:
            ``"channels_first"`` (B, C, ...), ``"channels_last"`` (B, ..., C) or ``"tokens"`` (B, N, C), the last of
            which are a square map; those before it pass untouched.

    Returns:
        The sites in the order of the forward pass.

    Raises:
        UserError: the model is compiled, the dry run fails, or nothing matches.

    Example:
        >>> import regard, torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> [site.name for site in regard.sites(net, "1", example=torch.randn(1, 3, 9, 9))]
        ['1']
    """
    refuse_unhookable(model)
    return choose(model, at, dry_run(model, example, layout))


def choose(model: nn.Module, at: At, survey: Survey) -> list[Site]:
    modules = dict(model.named_modules())
    first = {module: name for name, module in modules.items()}
    # a module that has several names is known by its first
    names = {name: first[module] for name, module in model.named_modules(remove_duplicate=False)}
    if isinstance(at, str) and at in WORDS:
        found = find(at, modules, survey, once=True) or find(at, modules, survey)
        if not found:
            reason = "the dry run saw no " + REASONS.get(at, REASONS["branches"])
            others = [word for word in PLACES if word != at and find(word, modules, survey)]
            hint = f"try at={' or at='.join(map(repr, others))}, or " if others else ""
            raise UserError(
                f"at={at!r} finds nothing in this {type(model).__name__}: {reason}; {hint}give names or a pattern, "
                f"such as {_some(survey)}"
            )
    elif isinstance(at, str):
        pattern = glob(at)
        matching = [name for name in names if name and pattern.fullmatch(name)]
        found = [names[name] for name in matching if names[name] in survey.outputs]
        if not found:
            uncalled = matching
            if uncalled:
                raise UserError(f"at={at!r} matches {uncalled[0]!r}, but the dry run never called it: try another site")
            raise UserError(f"at={at!r} matches no module{_near(at, survey) or '; there are ' + _some(survey)}")
    elif callable(at):
        maps = {name: outputs[0].map for name, outputs in survey.outputs.items() if name and outputs[0].map}
        try:
            found = [name for name, shape in maps.items() if at(name, modules[name], shape)]
        except TypeError as error:
            raise UserError(f"the function given as `at` takes (name, module, shape): {error}") from error
        if not found:
            raise UserError(f"the function given as `at` chose none of the modules, such as {_some(survey)}")
    else:
        if not isinstance(at, Iterable):
            raise UserError(f"`at` is a word, a pattern, a list of names or a function, got {at!r}")
        asked = list(dict.fromkeys(at))
        found = [names.get(name, name) for name in asked]
        for name in asked:
            if name not in names or not name:
                raise UserError(f"there is no module {name!r}{_near(name, survey) or '; there are ' + _some(survey)}")
            if names[name] not in survey.outputs:
                raise UserError(f"the dry run never called {name!r}: try another site")
        if not found:
            raise UserError("`at` is an empty list: name at least one site")
    found = list(dict.fromkeys(innermost(name, modules) for name in found))
    if survey.layout and at not in WORDS:
        for name in found:
            outputs = survey.outputs[name]
            # where tokens are is known better once they were followed
            told = survey.layout == "tokens" and any(output.followed for output in outputs)
            outputs[:] = outputs if told else [replace(o, layout=layout_of(survey.layout, o.shape)) for o in outputs]
    return [_site(name, modules, survey) for name in sorted(found, key=survey.order.index)]


def _site(name: str, modules: Mapping[str, nn.Module], survey: Survey) -> Site:
    outputs = survey.outputs[name]
    kind = type(modules[name]).__name__
    for output in outputs:
        if output.map and (survey.layout or fits(output, modules)):
            continue
        ways = " or layout=".join(map(repr, LAYOUTS))
        hint = f", or say how it holds a map with layout={ways}" if output.shape else ""
        raise UserError(
            f"site {name!r} ({kind}) gives {output.words}, which is no feature map (B, C, ...) as far as the dry run "
            f"can tell: choose another site{hint}"
        )
    layout = outputs[0].layout
    assert layout is not None
    if name in survey.unread:
        raise UserError(f"behind site {name!r} ({kind}) no token of the map is read any more: choose an earlier one")
    return Site(name, kind, outputs[0].map, len(outputs), layout)


def for_one(word: str, modules: Mapping[str, nn.Module], survey: Survey) -> list[str]:
    """Names for a mechanism that serves one call alone, where a pass calls what the word stands for several times: the
    blocks around that, what another word stands for, or the last map that is made once; none where there is none."""
    for tried in dict.fromkeys((word, "auto", "blocks")):
        names = find(tried, modules, survey, once=True)
        names = names or [around for name in find(tried, modules, survey) if (around := _around(name, modules, survey))]
        if names:
            return list(dict.fromkeys(names))
    maps = [name for name in survey.order if name and _is_map(name, survey, modules) and _is_called_once(name, survey)]
    return [name for name in maps if survey.outputs[name][0].map[1] > 1][-1:]


def _around(name: str, modules: Mapping[str, nn.Module], survey: Survey) -> str:
    """The innermost module around one that is called once and gives a map; "" where only the whole network does."""
    while name := name.rpartition(".")[0]:
        if name in survey.outputs and _is_called_once(name, survey) and _is_map(name, survey, modules):
            return name
    return ""


def _is_called_once(name: str, survey: Survey) -> bool:
    return len(survey.outputs[name]) == 1


def find(word: str, modules: Mapping[str, nn.Module], survey: Survey, *, once: bool = False) -> list[str]:
    """The names that a word stands for; none where the network has no such place.

    Args:
        word, modules, survey: see `choose`.
        once: pass over modules that one forward pass calls several times.
    """
    if word == "auto":
        branches, stages = (find(word, modules, survey, once=once) for word in ("branches", "stages"))
        reached = {survey.outputs[name][0].map[2:] for name in branches}
        # the branches of a network that has next to none say little of it
        return branches if 2 * len(reached) >= len({survey.outputs[name][0].map[2:] for name in stages}) else stages
    if word == "transitions":
        return find("stages", modules, survey, once=once)[:-1]
    if word == "head":
        return find("stages", modules, survey, once=once)[-1:]
    ends = {
        "branches": survey.branches,
        "convolutions": survey.convolutions,
        "expansions": survey.expansions,
        "kernels": survey.beside,
    }
    if word in ends:
        names = [name for name in dict.fromkeys(ends[word]) if _is_map(name, survey, modules)]
        names = [name for name in names if not once or _is_called_once(name, survey)]
        return [name for name in names if survey.outputs[name][0].map[1] > 1]
    blocks = set(survey.blocks)
    kinds = {type(modules[name]) for name in blocks}
    blocks |= {name for name in survey.outputs if type(modules[name]) in kinds and name}
    blocks = {name for name in blocks if _is_map(name, survey, modules)}
    blocks -= _nested(blocks, modules)
    in_order = [name for name in dict.fromkeys(survey.order) if name in blocks]
    in_order = [name for name in in_order if not once or _is_called_once(name, survey)]
    if word == "blocks":
        return in_order
    if in_order:
        groups = _runs(in_order, lambda name: survey.outputs[name][0].map[1:])
    else:
        units = [name for name in _units("", modules, survey) if _is_map(name, survey, modules)]
        units = [name for name in units if max(survey.outputs[name][0].map[2:]) > 1]
        units = [name for name in units if not once or _is_called_once(name, survey)]
        features = [name for name in units if survey.goes_on(name)]
        units = features if _convolutions(features, modules) > 1 else units
        groups = _runs(units, lambda name: (1, *survey.outputs[name][0].map[2:]))
        groups = [group for group in groups if _convolutions(group, modules)]
        if _convolutions(units, modules) < 2:  # the patch embedding of a transformer is no stage
            groups = []
    return [group[-1] for group in groups]


def _nested(blocks: set[str], modules: Mapping[str, nn.Module]) -> set[str]:
    """Of blocks inside blocks, those that are less than half of them, or that are made of others."""
    size = {name: sum(parameter.numel() for parameter in modules[name].parameters()) for name in blocks}
    dropped: set[str] = set()
    for outer in sorted(blocks, key=lambda name: name.count(".")):
        inner = {name for name in blocks if name.startswith(outer + ".")}
        tops = {name for name in inner if not any(name.startswith(other + ".") for other in inner)}
        if 2 * sum(size[name] for name in tops) < size[outer]:
            dropped |= inner
        elif inner and outer not in dropped:
            dropped.add(outer)
    return dropped


def _units(name: str, modules: Mapping[str, nn.Module], survey: Survey) -> list[str]:
    """What a network without residual blocks is made of: its parts, each seen as a whole while it stays at one or two
    resolutions."""
    units: list[str] = []
    if name in survey.blocks:
        return units
    for child, module in modules[name].named_children():
        inside = f"{name}.{child}".removeprefix(".")
        sizes = {
            output.map[2:]
            for called, outputs in survey.outputs.items()
            for output in outputs
            if called.startswith(inside + ".") and output.map
        }
        whole = type(module).forward is not nn.Sequential.forward and len(sizes) <= 2
        whole = whole and inside in survey.outputs and _is_map(inside, survey, modules)
        units += [inside] if whole or not module._modules else _units(inside, modules, survey)
    called = [unit for unit in units if unit in survey.outputs]
    return sorted(called, key=survey.order.index)


def _convolutions(names: list[str], modules: Mapping[str, nn.Module]) -> int:
    return sum(isinstance(module, CONVOLUTIONS) for name in names for module in modules[name].modules())


def _is_map(name: str, survey: Survey, modules: Mapping[str, nn.Module]) -> bool:
    return name not in survey.unread and fits(survey.outputs[name][0], modules)


def fits(output: Output, modules: Mapping[str, nn.Module]) -> bool:
    """Whether an output is a map of as many axes as the network's convolutions have."""
    ranks = {len(module.kernel_size) for module in modules.values() if isinstance(module, CONVOLUTIONS)}
    first = output.layout == Layout("channels_first")
    return bool(output.map) and (len(output.map) - 2 in ranks or not ranks or not first)


def _runs(names: list[str], shape: Callable[[str], tuple[int, ...]]) -> list[list[str]]:
    """Neighbours of about one resolution, until the width doubles: dilated networks narrow no map between stages."""
    groups: list[list[str]] = []
    for name in names:
        width, *sides = shape(name)
        first = shape(groups[-1][0]) if groups else (0,)
        alike = len(first) == 1 + len(sides) and all(
            0.7 * a < b < a / 0.7 for a, b in zip(first[1:], sides, strict=True)
        )
        if alike and first[0] / 2 < width < first[0] * 2:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def glob(pattern: str) -> re.Pattern[str]:
    """``*`` and ``?`` stay within a dot, ``**`` crosses dots, ``[ab]`` is a set, ``[!ab]`` its opposite."""
    pieces = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    parts = re.split(r"(\*\*|\*|\?|\[[^\]]+\])", pattern)
    sets = {part: part.replace("[!", "[^") for part in parts if part.startswith("[")}
    return re.compile("".join(pieces.get(part) or sets.get(part) or re.escape(part) for part in parts))


def _near(pattern: str, survey: Survey) -> str:
    return near(pattern, [name for name in survey.outputs if name])


def _some(survey: Survey) -> str:
    names = [name for name, outputs in survey.outputs.items() if name and outputs[0].map]
    return ", ".join(repr(name) for name in names[:: max(1, len(names) // 4)][:5]) or "(none that gives a feature map)"
