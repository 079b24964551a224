"""Places in a user's model where a mechanism can go, chosen by a word, a pattern, names or a function."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from regard.base.errors import UserError, near
from regard.insertion.dry_run import dry_run
from regard.insertion.layout import LAYOUTS, Layout
from regard.insertion.outputs import layout_of
from regard.insertion.survey import Survey, innermost
from regard.insertion.surveyed import Surveyed
from regard.insertion.words import WORDS, find
from regard.networks.hookable import refuse_unhookable

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
            ``"convolutions"``: the last spatial convolution of each residual branch, before its norm;
            ``"expansions"``: the end of the wide part of each inverted residual, before it is narrowed;
            ``"kernels"``: the end of the last spatial convolution, norm and activation inside each branch;
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
    return choose(at, Surveyed(model, dry_run(model, example, layout)))


def choose(at: At, network: Surveyed) -> list[Site]:
    """The sites that `at` stands for, in the order of the forward pass; see `sites`."""
    names = list(dict.fromkeys(innermost(name, network.modules) for name in _names(at, network)))
    if network.survey.layout and not _is_word(at):
        for name in names:
            _take_layout(network.survey.layout, name, network.survey)
    return [_site(name, network) for name in sorted(names, key=network.survey.order.index)]


def _is_word(at: At) -> bool:
    return isinstance(at, str) and at in WORDS


def _names(at: At, network: Surveyed) -> list[str]:
    if isinstance(at, str):
        return _by_word(at, network) if _is_word(at) else _by_pattern(at, network)
    if callable(at):
        return _by_function(at, network)
    if isinstance(at, Iterable):
        return _by_names(list(dict.fromkeys(at)), network)
    raise UserError(f"`at` is a word, a pattern, a list of names or a function, got {at!r}")


def _by_word(word: str, network: Surveyed) -> list[str]:
    names = find(word, network, once=True) or find(word, network)
    if names:
        return names
    others = [other for other in WORDS if other not in ("auto", word) and find(other, network)]
    hint = f"try at={' or at='.join(map(repr, others))}, or " if others else ""
    raise UserError(
        f"at={word!r} finds nothing in this {type(network.model).__name__}: the dry run saw no {WORDS[word].missing}; "
        f"{hint}give names or a pattern, such as {_examples(network.survey)}"
    )


def _by_pattern(text: str, network: Surveyed) -> list[str]:
    pattern, first = glob(text), _first_names(network)
    matching = [name for name in first if name and pattern.fullmatch(name)]
    names = [first[name] for name in matching if first[name] in network.survey.outputs]
    if matching and not names:
        raise UserError(f"at={text!r} matches {matching[0]!r}, but the dry run never called it: try another site")
    if not names:
        raise UserError(f"at={text!r} matches no module{_instead(text, network.survey)}")
    return names


def _by_function(accept: Callable[..., Any], network: Surveyed) -> list[str]:
    maps = {name: network.map(name) for name in network.survey.outputs if name and network.map(name)}
    try:
        names = [name for name, shape in maps.items() if accept(name, network.modules[name], shape)]
    except TypeError as error:
        raise UserError(f"the function given as `at` takes (name, module, shape): {error}") from error
    if not names:
        raise UserError(f"the function given as `at` chose none of the modules, such as {_examples(network.survey)}")
    return names


def _by_names(given: list[str], network: Surveyed) -> list[str]:
    first = _first_names(network)
    for name in given:
        if name not in first or not name:
            raise UserError(f"there is no module {name!r}{_instead(name, network.survey)}")
        if first[name] not in network.survey.outputs:
            raise UserError(f"the dry run never called {name!r}: try another site")
    if not given:
        raise UserError("`at` is an empty list: name at least one site")
    return [first[name] for name in given]


def _first_names(network: Surveyed) -> dict[str, str]:
    """Every name of a module, and the first that it has, by which it is known."""
    first = {module: name for name, module in network.modules.items()}
    return {name: first[module] for name, module in network.model.named_modules(remove_duplicate=False)}


def _take_layout(word: str, name: str, survey: Survey) -> None:
    """Hold the outputs of a module that the user chose to be in the user's layout."""
    outputs = survey.outputs[name]
    if word == "tokens" and any(output.followed for output in outputs):
        return  # where tokens are is known better once they were followed
    outputs[:] = [replace(output, layout=layout_of(word, output.shape)) for output in outputs]


def _site(name: str, network: Surveyed) -> Site:
    outputs = network.survey.outputs[name]
    kind = type(network.modules[name]).__name__
    for output in outputs:
        if output.map and (network.survey.layout or network.fits(output)):
            continue
        ways = " or layout=".join(map(repr, LAYOUTS))
        hint = f", or say how it holds a map with layout={ways}" if output.shape else ""
        raise UserError(
            f"site {name!r} ({kind}) gives {output.words}, which is no feature map (B, C, ...) as far as the dry run "
            f"can tell: choose another site{hint}"
        )
    layout = outputs[0].layout
    assert layout is not None
    if name in network.survey.unread:
        raise UserError(f"behind site {name!r} ({kind}) no token of the map is read any more: choose an earlier one")
    return Site(name, kind, outputs[0].map, len(outputs), layout)


def glob(pattern: str) -> re.Pattern[str]:
    """``*`` and ``?`` stay within a dot, ``**`` crosses dots, ``[ab]`` is a set, ``[!ab]`` its opposite."""
    pieces = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    parts = re.split(r"(\*\*|\*|\?|\[[^\]]+\])", pattern)
    sets = {part: part.replace("[!", "[^") for part in parts if part.startswith("[")}
    return re.compile("".join(pieces.get(part) or sets.get(part) or re.escape(part) for part in parts))


def _instead(text: str, survey: Survey) -> str:
    """The end of a sentence: names like a text that is none, or else some that there are."""
    return near(text, [name for name in survey.outputs if name]) or f"; there are {_examples(survey)}"


def _examples(survey: Survey) -> str:
    """A few names across the network, of modules that give a map."""
    names = [name for name, outputs in survey.outputs.items() if name and outputs[0].map]
    return ", ".join(repr(name) for name in names[:: max(1, len(names) // 4)][:5]) or "(none that gives a feature map)"
