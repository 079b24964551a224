"""The words for places in a network: how the places of each are found, and what a network lacks that has none.

A new word is one entry here; its name among the `PLACES` that a mechanism may register; and a line in the docstring of
`regard.sites` and in the help of the commands that take ``--at``. Tests hold all of them to this list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from regard.insertion.stages import find_blocks, find_stages
from regard.insertion.surveyed import Surveyed

NO_RESIDUAL = "residual addition that ends in a module with a feature map"
NO_STACK = "stacked convolutions with feature maps"


@dataclass(frozen=True)
class Word:
    """A word for places in a network; what it stands for is said by `regard.sites`.

    Attributes:
        name: the word.
        find: the names of the modules that it stands for; none where the network has no such place.
        missing: what the dry run then saw none of.
    """

    name: str
    find: Callable[[Surveyed], list[str]]
    missing: str


def find_auto(network: Surveyed) -> list[str]:
    """Branches, or stages where there are none; the branches of a network that has next to none say little of it."""
    branches, stages = find_branches(network), find_stages(network)
    reached, every = ({network.map(name)[2:] for name in names} for names in (branches, stages))
    return branches if 2 * len(reached) >= len(every) else stages


def find_branches(network: Surveyed) -> list[str]:
    return _wide(network.survey.branches, network)


def find_convolutions(network: Surveyed) -> list[str]:
    return _wide(network.survey.convolutions, network)


def find_expansions(network: Surveyed) -> list[str]:
    return _wide(network.survey.expansions, network)


def find_kernels(network: Surveyed) -> list[str]:
    return _wide(network.survey.beside, network)


def find_transitions(network: Surveyed) -> list[str]:
    return find_stages(network)[:-1]


def find_head(network: Surveyed) -> list[str]:
    return find_stages(network)[-1:]


def _wide(names: Iterable[str], network: Surveyed) -> list[str]:
    """Those that give a map of several channels."""
    return [name for name in network.counted(names) if network.is_map(name) and network.map(name)[1] > 1]


WORDS = {
    word.name: word
    for word in (
        Word("auto", find_auto, missing=NO_RESIDUAL),
        Word("branches", find_branches, missing=NO_RESIDUAL),
        Word("convolutions", find_convolutions, missing="residual branch with a spatial convolution (kernel > 1)"),
        Word(
            "expansions",
            find_expansions,
            missing="inverted residual, that is channels added, a depthwise convolution, and channels taken away",
        ),
        Word("kernels", find_kernels, missing="spatial convolution (kernel > 1) that another layer follows"),
        Word("blocks", find_blocks, missing=NO_RESIDUAL),
        Word("stages", find_stages, missing=NO_STACK),
        Word("transitions", find_transitions, missing="two stages of differing size"),
        Word("head", find_head, missing=NO_STACK),
    )
}


def find(word: str, network: Surveyed, *, once: bool = False) -> list[str]:
    """The names that a word stands for; none where the network has no such place.

    Args:
        word: one of `WORDS`.
        network: that is looked at.
        once: pass over modules that one forward pass calls several times.
    """
    return WORDS[word].find(network.passing_over_repeated() if once else network)
