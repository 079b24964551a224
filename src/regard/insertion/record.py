"""What is known of an attachment: kept in the model and in its file, and enough to build its mechanisms again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

import torch
from torch import nn

from regard.base.schema import Within
from regard.insertion.identity_start import start_as_identity
from regard.layers.tap import keep_scale
from regard.networks.randomness import same_randomness
from regard.registry.building import create
from regard.registry.registration import info

Number = Annotated[int, Within(-(2**16), 2**16)]
Side = Annotated[int, Within(1, 2**16)]
Option = Number | Annotated[float, Within(-(2**16), 2**16)] | bool | Annotated[str, Within(1, 200)] | None
Options = dict[str, Option | Annotated[list[Option], Within(1, 16)]]


class Beside(TypedDict):
    """The convolution that a mechanism stands beside, and what it is built with therefore."""

    convolution: str
    options: Options


class Record(TypedDict):
    """What is known of an attachment; the last three by the names of its sites."""

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


FIELDS = tuple(Record.__annotations__)
BY_SITE = ("channels", "layouts", "beside")
STARTS = ("identity", "paper", "scaled")


def site_options(record: Mapping[str, Any], site: str) -> dict[str, Any]:
    """What the mechanism at a site is built with."""
    beside = record["beside"].get(site)
    return (beside["options"] if beside else {}) | record["options"]


def below(record: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A record of the sites below a prefix, under their names there."""

    def inside(by_site: Mapping[str, Any]) -> dict[str, Any]:
        return {name.removeprefix(prefix): held for name, held in by_site.items() if name.startswith(prefix)}

    parts = {field: inside(record[field]) for field in BY_SITE}
    for site, beside in parts["beside"].items():
        parts["beside"][site] = beside | {"convolution": beside["convolution"].removeprefix(prefix)}
    return {**record, **parts}


def build(record: Mapping[str, Any], seed: int | None) -> dict[str, nn.Module]:
    """A fresh mechanism for each site, drawn from a generator of its own."""
    card = info(record["mechanism"])
    with torch.inference_mode(False), same_randomness(), torch.device("cpu"):  # weights that can learn
        torch.default_generator.manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
        built = {
            site: create(card.name, channels, **site_options(record, site))
            for site, channels in record["channels"].items()
        }
        for mechanism in built.values():
            if record["start"] == "identity":
                start_as_identity(card, mechanism)
            if record["start"] == "scaled":
                keep_scale(mechanism)
    return built
