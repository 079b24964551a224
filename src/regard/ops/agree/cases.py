"""Named inputs of `agree` that tests and benchmarks both draw from."""

from collections.abc import Callable, Iterator

import torch

Arguments = Callable[[torch.dtype, str], tuple]


def cases() -> Iterator[tuple[str, Arguments]]:
    """Name and a function (dtype, device) -> the op's arguments, the big tensor first."""

    def case(
        shape: tuple[int, ...],
        groups: int,
        *,
        unbiased: bool = True,
        faded: bool = False,
        scaled: bool = False,
        watched: bool = False,
        layout: str = "",
    ) -> Arguments:
        def arguments(dtype: torch.dtype, device: str) -> tuple:
            generator = torch.Generator().manual_seed(0)

            def draw(*shape: int) -> torch.Tensor:
                return torch.randn(shape, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)

            x = draw(*shape) + 1  # averages that are not nearly 0: what agrees with nothing is noise in bfloat16
            if layout == "channels_last":
                x = x.movedim(1, -1).contiguous().movedim(-1, 1)
            elif layout == "sliced":
                x = torch.cat([x, x], dim=-1)[..., : shape[-1]]
            weight, bias, strength = draw(groups), draw(groups), draw(1)
            watch = (lambda mask: mask.square()) if watched else None
            return x, weight, bias, strength if faded or scaled else None, not scaled, unbiased, 1e-5, watch

        return arguments

    last = "channels_last"
    yield "groups", case((2, 20, 7, 13), 5)
    yield "groups channels_last", case((2, 20, 7, 13), 5, layout=last)
    yield "groups odd", case((1, 8, 33, 65), 2)
    yield "groups of 3 channels_last", case((2, 12, 7, 63), 4, layout=last)
    yield "wide groups channels_last", case((2, 72, 17, 9), 2, layout=last)
    for width in (4, 8, 16, 32):  # whole vectors of groups
        yield f"16 groups of {width} channels_last", case((2, 16 * width, 7, 9), 16, faded=width == 4, layout=last)
    yield "a large map channels_last", case((2, 64, 47, 63), 16, layout=last)  # in tiles
    yield "groups sliced", case((2, 8, 7, 13), 2, layout="sliced")
    yield "one group", case((2, 20, 7, 63), 1, unbiased=False)
    yield "one channel each", case((2, 8, 7, 13), 8)
    yield "faded", case((2, 12, 7, 21), 3, faded=True)
    yield "faded channels_last", case((2, 16, 7, 13), 2, faded=True, layout=last)
    yield "scaled", case((2, 12, 7, 13), 3, scaled=True)
    yield "scaled channels_last", case((2, 16, 7, 13), 2, scaled=True, layout=last)
    yield "16 groups of 4 scaled channels_last", case((2, 64, 5, 9), 16, scaled=True, layout=last)
    yield "watched", case((2, 8, 7, 13), 2, watched=True)
    yield "1x1", case((2, 8, 1, 1), 2)
    yield "sequence", case((2, 20, 63), 5)
    yield "volume", case((2, 20, 3, 5, 7), 5)
