"""Networks of timm, by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from regard.base.errors import UserError, near
from regard.networks.options import check_options
from regard.networks.source import SIDE, Normalisation, Wanted, cannot_widen, random_images
from regard.registry.named import SMALL, Named


def check(named: Named) -> None:
    check_timm(named.name, SMALL)


def build(named: Named, wanted: Wanted) -> tuple[nn.Module, Any]:
    check(named)
    sizes: dict[str, Any] = {"num_classes": wanted.classes, "in_chans": wanted.channels}
    sizes = {option: number for option, number in sizes.items() if number is not None}
    if wanted.widening != 1.0:
        sizes["channels"] = _widened(named, wanted.widening)
    options = _sized(named.name, wanted.size) | named.options
    return timm_model(named.name, options, pretrained=wanted.pretrained, **sizes), None


def example(named: Named, model: nn.Module, size: int | None, batch: int) -> Any:
    config: Any = model.pretrained_cfg
    channels, side, _ = config.get("input_size") or (3, SIDE, SIDE)
    side = size or named.options.get("img_size") or side
    return random_images(batch, named.options.get("in_chans", channels), side, side)


def image_size(named: Named) -> int | None:
    if isinstance(named.options.get("img_size"), int):
        return int(named.options["img_size"])
    config = _pretrained_cfg(named.name)
    return config.input_size[-1] if config else SIDE


def pretraining(named: Named) -> Normalisation | None:
    config = _pretrained_cfg(named.name)
    return (tuple(config.mean), tuple(config.std)) if config else None


def _widened(named: Named, widening: float) -> tuple[int, ...]:
    """The widths of a ResNet's stages, each a multiple of 8."""
    from timm.models import ResNet

    plain: Any = timm_model(named.name, named.options)
    if not isinstance(plain, ResNet):
        raise cannot_widen(named)
    first: Any = plain.layer1
    widths = [stage["num_chs"] // first[0].expansion for stage in plain.feature_info[1:]]
    return tuple(max(8, round(width * widening / 8) * 8) for width in widths)


def timm_model(name: str, options: Mapping[str, Any], *, pretrained: bool = False, **others: Any) -> nn.Module:
    """Build a network of timm.

    Args:
        name: of the network.
        options: of its constructor, as the user gave them.
        pretrained: with timm's weights.
        others: options that the user may not give.

    Raises:
        UserError: timm has none of this name, does not take the options, or cannot get the pretrained weights.
    """
    check_timm(name)
    check_options(f"timm cannot build {name!r}", options)
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, **others, **options)
    except Exception as error:  # timm checks no option before it uses it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if pretrained:
            raise UserError(
                f"the pretrained weights of {name!r} cannot be had ({reason}): go online, or pass --weights FILE"
            ) from error
        raise UserError(f"timm cannot build {name!r} with these options: {reason}") from error


def check_timm(name: str, *others: str) -> None:
    """Raise a `UserError` when timm has no network of this name; the others are names that would do, too."""
    import timm

    if not timm.is_model(name):
        hint = near(name, [*others, *timm.list_models()]) or "".join(f", and it is not {other}" for other in others)
        raise UserError(f"there is no model {name!r} in timm{hint}")


def _pretrained_cfg(name: str) -> Any:
    import timm

    return timm.get_pretrained_cfg(name) if timm.is_model(name) else None


def _sized(name: str, size: int | None) -> dict[str, Any]:
    """A network for images of one size alone is built for that size."""
    config = _pretrained_cfg(name) if size else None
    other = config and config.fixed_input_size and size != config.input_size[-1]
    return {"img_size": size} if other else {}
