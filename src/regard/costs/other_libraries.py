"""The same mechanisms in other libraries, to compare with: each with its library's own defaults."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn

Builder = Callable[[int], nn.Module]
"""From channels to a module."""

HOMES = {
    "timm": "timm.layers",
    "torchvision": "torchvision.ops",
    "fightingcv-attention": "fightingcv_attention.attention",
}
"""Library -> where its modules are."""


def missing() -> dict[str, str]:
    """Libraries that are not installed -> the command that installs them."""
    options = {"fightingcv-attention": "--no-deps fightingcv-attention einops"}  # it asks for an old torch
    return {
        library: f"pip install {options.get(library, library)}"
        for library, home in HOMES.items()
        if find_spec(home.partition(".")[0]) is None
    }


def _module(library: str, place: str, build: Callable[[Any, int], nn.Module] | None) -> dict[str, Builder]:
    module, _, name = f"{HOMES[library]}.{place}".rpartition(".")

    def create(channels: int) -> nn.Module:
        kind = getattr(import_module(module), name)
        return build(kind, channels) if build else kind(channels)

    return {library: create}


def _timm(place: str, build: Callable[[Any, int], nn.Module] | None = None) -> dict[str, Builder]:
    return _module("timm", place, build)


def _torchvision(place: str, build: Callable[[Any, int], nn.Module] | None = None) -> dict[str, Builder]:
    return _module("torchvision", place, build)


def _fightingcv(place: str, build: Callable[[Any, int], nn.Module] | None = None) -> dict[str, Builder]:
    return _module("fightingcv-attention", place, build)


# as many groups as ours take, and the hidden width of the paper where a library leaves it open
OTHER_LIBRARIES: dict[str, dict[str, Builder]] = {
    "se": _timm("SEModule")
    | _torchvision("SqueezeExcitation", lambda kind, c: kind(c, max(1, c // 16)))
    | _fightingcv("SEAttention.SEAttention"),
    "eca": _timm("EcaModule") | _fightingcv("ECAAttention.ECAAttention", lambda kind, c: kind()),
    "cbam": _timm("cbam.CbamModule") | _fightingcv("CBAM.CBAMBlock", lambda kind, c: kind(c, kernel_size=7)),
    "sge": _fightingcv("SGE.SpatialGroupEnhance", lambda kind, c: kind(min(64, c // 4))),
    "shuffle": _fightingcv("ShuffleAttention.ShuffleAttention", lambda kind, c: kind(c, G=min(64, c // 4))),
    "coordinate": _timm("coord_attn.CoordAttn") | _fightingcv("CoordAttention.CoordAtt", lambda kind, c: kind(c, c)),
    "gc": _timm("GlobalContext"),
    "simam": _fightingcv("SimAM.SimAM"),
    "triplet": _fightingcv("TripletAttention.TripletAttention", lambda kind, c: kind()),
    "ge": _timm("GatherExcite"),
    "bam": _fightingcv("BAM.BAMBlock"),
    "sk": _timm("SelectiveKernel", lambda kind, c: kind(c, c)) | _fightingcv("SKAttention.SKAttention"),
    "polarized": _fightingcv("PolarizedSelfAttention.ParallelPolarizedSelfAttention"),
    "non_local": _timm("NonLocalAttn"),
    "criss_cross": _fightingcv("CrissCrossAttention.CrissCrossAttention"),
}
"""Mechanism -> library -> its module of that name. It computes what its library says, not always what ours does."""
