"""Named inputs of `squeeze` that tests and benchmarks both draw from."""

from collections.abc import Callable, Iterator

import torch

Arguments = Callable[[torch.dtype, str], tuple]


def cases() -> Iterator[tuple[str, Arguments]]:
    """Name and a function (dtype, device) -> the op's arguments, the big tensor first."""

    def case(shape: tuple[int, ...], dims: tuple[int, ...], kinds: tuple[str, ...], layout: str = "") -> Arguments:
        def arguments(dtype: torch.dtype, device: str) -> tuple:
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            x = x.to(device=device, dtype=dtype)
            if layout == "channels_last":
                x = x.contiguous(memory_format=torch.channels_last)
            elif layout == "sliced":
                x = torch.cat([x, x], dim=-1)[..., : shape[-1]]
            elif layout == "ties":
                x = x.round()
            return x, dims, kinds

        return arguments

    yield "channel", case((2, 64, 14, 14), (2, 3), ("avg",))
    yield "channel max", case((2, 20, 7, 13), (2, 3), ("avg", "max"))
    yield "channel all", case((2, 20, 7, 13), (2, 3), ("avg", "max", "lp", "lse"))
    yield "channel channels_last", case((2, 20, 7, 13), (2, 3), ("avg", "max"), "channels_last")
    yield "channel sliced", case((2, 20, 7, 13), (2, 3), ("avg", "max"), "sliced")
    yield "channel ties", case((2, 20, 7, 63), (2, 3), ("max",), "ties")
    yield "channel 1x1", case((1, 8, 1, 1), (2, 3), ("avg", "max"))
    yield "spatial", case((2, 20, 7, 13), (1,), ("max", "avg"))
    yield "spatial ties", case((2, 20, 7, 13), (1,), ("max", "avg"), "ties")
    yield "rows", case((2, 20, 7, 63), (3,), ("avg",))
    yield "columns", case((2, 20, 7, 63), (2,), ("avg",), "channels_last")
    yield "sequence", case((2, 20, 63), (2,), ("avg", "max"))
    yield "volume", case((2, 20, 3, 5, 7), (2, 3, 4), ("avg", "max"))
